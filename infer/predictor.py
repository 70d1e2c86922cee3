"""A checkpoint, ready to turn photographs into masks and probabilities."""

# C classes, H W pixels of the photograph

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CocosegError, ConfigError, DataError
from ..model.config import ModelConfig
from ..model.device import pick_device
from ..model.fuse import Piece, best_classes, class_strips, probability_strips
from ..model.score import forward
from ..model.sizes import check_input_size
from ..model.view import View
from ..model.weights import LoadedNetwork, load_network
from ..processes import keep_freed_memory
from .config import InferConfig
from .tiles import Tiling
from .views import views_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted for one photograph."""

    mask: NDArray[np.integer]
    """Train ids: uint8, or uint16 beyond 256 classes, shape (H, W)."""
    confidence: NDArray[np.float32] | None = None
    """Probability of the class in the mask, 0…1, shape (H, W)."""
    probabilities: NDArray[np.float16] | None = None
    """Of all classes, shape (H, W, C)."""


class ReadyNetwork:
    """A network on its device, with the views and tiles that it looks at.

    Parameters
    ----------
    loaded
        The network, in eval mode on its device, and what belongs to it.
    views
        Whose probabilities are averaged.
    tiling
        How photographs are cut whose longer side is above `tile_above`; None cuts none.
    tile_above
        In pixels.
    batch_size
        Most images, or tiles, that go through the network at once.
    """

    def __init__(
        self,
        loaded: LoadedNetwork,
        views: Sequence[View],
        tiling: Tiling | None = None,
        tile_above: int = 0,
        batch_size: int = 8,
    ) -> None:
        self.loaded = loaded
        self._views = views
        self._tiling = tiling
        self._tile_above = tile_above
        self._batch_size = batch_size

    @classmethod
    def of(cls, config: InferConfig, model: ModelConfig) -> "ReadyNetwork":
        """Load ``infer.checkpoint`` onto ``infer.device``.

        Raises
        ------
        ConfigError, DataError
            See `load_network`; also if the network cannot take the size of a view.
        """
        if config.checkpoint is None:
            raise ConfigError(
                "--checkpoint: give a run, a checkpoint folder or a Hugging Face name"
            )
        loaded = load_network(config.checkpoint, model)
        views = views_of(config)
        for scale in sorted({view.scale for view in views}):
            side = loaded.preprocess.target_size(1, 1, scale)[0]
            said = f"infer.tta_scales {scale:g}, an input of"
            check_input_size(loaded.network, side, config.checkpoint, said)
        device = pick_device(config.device)
        if device.type == "cpu":
            keep_freed_memory()
        loaded.network.to(device)
        size = config.tile_size or 2 * loaded.preprocess.input_size
        tiling = Tiling(size, config.tile_overlap) if config.tile_above else None
        return cls(loaded, views, tiling, config.tile_above, config.batch_size)

    def digest(self) -> str:
        """Return the XXH3-128 of the names and values of all weights, in hex."""
        digest = xxhash.xxh3_128()
        for name, value in sorted(self.loaded.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.cpu().contiguous().view(-1).numpy().tobytes())
        return digest.hexdigest()

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.integer]]:
        """Return the masks of photographs, uint8 RGB of shape (H, W, 3) each."""
        return [prediction.mask for prediction in self.predictions(images)]

    @torch.inference_mode()
    def predictions(
        self,
        images: Sequence[NDArray[np.uint8]],
        *,
        confidence: bool = False,
        probabilities: bool = False,
    ) -> Iterator[Prediction]:
        """Yield a prediction for each photograph.

        Photographs that are not cut go through the network together, those of one input shape in
        one batch. Beside the logits, which are a sixteenth of the input's pixels, some rows of one
        photograph's probabilities are held at a time; with `probabilities` all of it in float16.

        Parameters
        ----------
        images
            uint8 RGB, shape (H, W, 3) each.
        confidence, probabilities
            Whether these are wanted, too.

        Raises
        ------
        CocosegError
            If the device's memory does not do, even for one image at a time.
        DataError
            If logits are not finite.
        """
        whole = [i for i, image in enumerate(images) if not self._is_cut(image)]
        views = dict(zip(whole, self._logits([images[i] for i in whole]), strict=True))
        for i, image in enumerate(images):
            height, width = image.shape[:2]
            logits = views.pop(i, None)
            one_view = logits is not None and len(logits) == 1
            if logits is None:
                assert self._tiling is not None
                strips = self._tiling.strips(image, self._logits)
            elif one_view:
                strips = class_strips(logits[0], height, width)
            else:
                piece = Piece(logits, 0, 0, height, width)
                strips = probability_strips([piece], range(height), width)
            try:
                made = _read_off(strips, (height, width), one_view, confidence, probabilities)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                raise CocosegError(
                    f"the device's memory does not do for the logits of {len(images)} images and "
                    "some rows of probabilities: a smaller infer.batch_size, or infer.device=cpu"
                ) from None
            yield made

    def _is_cut(self, image: NDArray[np.uint8]) -> bool:
        return self._tiling is not None and max(image.shape) > self._tile_above

    def _logits(self, images: Sequence[NDArray[np.uint8]]) -> list[tuple[Tensor, ...]]:
        """Return the logits of every view of each image, as `forward` does."""
        found: list[tuple[Tensor, ...]] = []
        while len(found) < len(images):
            batch = images[len(found) : len(found) + self._batch_size]
            by_view = self._fitting(batch)
            if by_view is None:
                self._halve()
            else:
                if not all(logits.isfinite().all() for view in by_view for logits in view):
                    raise DataError(
                        f"{self.loaded.origin}: the network's logits are not finite (NaN): its "
                        "weights are damaged, or its training diverged"
                    )
                found += zip(*by_view, strict=True)
        return found

    def _fitting(self, batch: Sequence[NDArray[np.uint8]]) -> list[list[Tensor]] | None:
        """Return logits by view and image; None if the device's memory does not do."""
        network, preprocess = self.loaded.network, self.loaded.preprocess
        try:
            return [forward(network, preprocess, batch, view) for view in self._views]
        except RuntimeError as error:
            if _is_out_of_memory(error):
                return None
            raise

    def _halve(self) -> None:
        if self._batch_size == 1:
            raise CocosegError(
                "the device's memory does not do for a single image: a smaller model.input_size "
                "or smaller infer.tta_scales, or infer.device=cpu"
            )
        self._batch_size //= 2
        torch.cuda.empty_cache()
        log.warning(
            "out of memory: %d images at a time from now on (infer.batch_size); the last bits of "
            "probabilities may differ from those of larger batches",
            self._batch_size,
        )


def _is_out_of_memory(error: RuntimeError) -> bool:
    # A CPU's allocator has no error of its own.
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _read_off(
    strips: Iterator[Tensor],
    size: tuple[int, int],
    of_logits: bool,
    confidence: bool,
    probabilities: bool,
) -> Prediction:
    """Take what is wanted from strips of probabilities, or of one view's logits.

    The mask is that of the logits even where probabilities are wanted: those of logits that hardly
    differ are equal in float32, and another class would win.
    """
    sure = np.empty(size, np.float32) if confidence else None
    every: list[NDArray[np.float16]] = []

    def watched() -> Iterator[Tensor]:
        first = 0
        for strip_RWC in strips:
            if confidence or probabilities:
                p_RWC = strip_RWC.softmax(dim=2) if of_logits else strip_RWC
                if sure is not None:
                    sure[first : first + len(p_RWC)] = p_RWC.amax(dim=2).cpu().numpy()
                    first += len(p_RWC)
                if probabilities:
                    every.append(p_RWC.half().cpu().numpy())
            yield strip_RWC

    mask = best_classes(watched(), *size)
    return Prediction(mask, sure, np.concatenate(every) if probabilities else None)
