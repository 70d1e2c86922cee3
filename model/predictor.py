"""A network, ready to turn images into masks and probabilities: views, tiles, batches, strips.

images → resized once per scale (any thread) → network, by views → strips of rows → mask
"""

# B batch, C classes, H W pixels of the image, h w of the network's input

import copy
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..errors import DataError, first_line
from .fuse import Piece, Readings, class_strips, probability_strips, read_strips, strip_numbers
from .memory import OutOfMemory, is_out_of_memory
from .pipeline import Transfer, read_ahead
from .precision import autocast
from .preprocess import HostNormalizer, Preprocess
from .tiles import Tiling
from .view import View

log = logging.getLogger(__name__)

_SMALLEST_STRIP = 2**16  # numbers; below it, smaller strips free too little to continue


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is predicted for one image."""

    mask: NDArray[np.integer]
    """Train ids: uint8, or uint16 beyond 256 classes, shape (H, W)."""
    confidence: NDArray[np.float32] | None = None
    """Probability of the class in the mask, 0…1, shape (H, W)."""
    probabilities: NDArray[np.float16] | None = None
    """Of all classes, shape (H, W, C)."""


@dataclass(frozen=True, slots=True)
class DevicePrediction:
    """A prediction on the network's device; the host need not have waited for it."""

    mask: Tensor
    """Train ids: uint8, or int32 beyond 256 classes, shape (H, W)."""
    confidence: Tensor | None = None
    """float32, shape (H, W)."""
    probabilities: NDArray[np.float16] | None = None
    truth_probability: Tensor | None = None
    """Of each pixel's true class, float32, shape (H, W)."""
    loss: Tensor | None = None
    """Cross entropy of the truth, added up over the pixels, int64; see `loss_units`."""
    finite: Tensor | None = None
    """Whether all logits that it is made of were finite numbers; None where there were none."""
    origin: str = ""
    """The network's, for the error if they were not."""

    def to_host(self) -> "ComingPrediction":
        """Start its transfer to the host."""
        return ComingPrediction(self)


def check_finite(finite: bool, origin: str) -> None:
    """Raise a `DataError` unless the logits of the network from `origin` were finite."""
    if not finite:
        raise DataError(
            f"{origin}: the network's logits are not finite (NaN): its weights are damaged, its "
            "training diverged, or they are out of float16's range "
            "(model.inference_precision: float32)"
        )


class ComingPrediction:
    """A prediction on its way to the host."""

    def __init__(self, prediction: DevicePrediction) -> None:
        tensors = (prediction.mask, prediction.confidence, prediction.finite)
        self._transfer = Transfer(*(tensor for tensor in tensors if tensor is not None))
        self._probabilities = prediction.probabilities
        # Not the prediction itself: its memory on the device is free from here on.
        self._has_logits, self._origin = prediction.finite is not None, prediction.origin

    def wait(self) -> Prediction:
        """Return it once it has arrived; any thread may.

        Raises
        ------
        DataError
            If the network's logits were not finite.
        """
        mask, *more = self._transfer.wait()
        if self._has_logits:
            check_finite(bool(more.pop()), self._origin)
        narrow = mask if mask.dtype == np.uint8 else mask.astype(np.uint16)
        return Prediction(narrow, more[0] if more else None, self._probabilities)


@dataclass(frozen=True, slots=True)
class _SameShape:
    """Images that are resized to one shape."""

    places: Sequence[int]
    """Where each is among the images, ascending."""
    pixels: Tensor
    """uint8 RGB, shape (B, h, w, 3), on the host; page-locked where a GPU reads them."""

    def among(self, places: Sequence[int]) -> "_SameShape":
        """Return those of some consecutive images."""
        first = bisect_left(self.places, places[0])
        last = bisect_right(self.places, places[-1])
        return _SameShape(self.places[first:last], self.pixels[first:last])


@dataclass(frozen=True, slots=True)
class Inputs:
    """Images and what the network sees of them, resized but not yet normalized."""

    images: Sequence[NDArray[np.uint8]]
    """uint8 RGB, shape (H, W, 3) each."""
    whole: Sequence[int]
    """Places of those that are not cut into tiles, ascending."""
    by_scale: Mapping[float, Sequence[_SameShape]]
    """By the scale of a view: the whole images, in groups of one shape."""


class Predictor:
    """Turns images into predictions.

    Parameters
    ----------
    network
        In eval mode on its device. Its weights may change between two calls.
    views
        Whose probabilities are averaged.
    precision
        What the network computes in; everything behind it is float32.
    tiling
        How images are cut whose longer side is above `tile_above`; None cuts none.
    tile_above
        In pixels.
    batch_size
        Most images, or tiles, that go through the network at once.
    origin
        Where the network is from, for errors.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        views: Sequence[View] = (View(),),
        *,
        precision: torch.dtype = torch.float32,
        tiling: Tiling | None = None,
        tile_above: int = 0,
        batch_size: int = 8,
        origin: str = "",
    ) -> None:
        self.device = next(network.parameters()).device
        self.precision = precision
        self._network = network
        self._preprocess = preprocess
        self._host_normalizer = HostNormalizer(preprocess)
        self._normalizer = preprocess.normalizer().to(self.device)
        self._views = views
        self._scales = list(dict.fromkeys(view.scale for view in views))
        self._tiling = tiling
        self._tile_above = tile_above
        self._batch_size = batch_size
        self._strip = strip_numbers(self.device)
        self._origin = origin

    def without_augmentation(self) -> "Predictor":
        """Return one of the same network that sees each image once, as it is."""
        other = copy.copy(self)
        other._views, other._scales = [View()], [1.0]
        return other

    def resize(self, image: NDArray[np.uint8]) -> list[NDArray[np.uint8]] | None:
        """Resize an image to each scale once, in any thread; None if it will be cut into tiles."""
        if self._tiling is not None and max(image.shape[:2]) > self._tile_above:
            return None
        return self._resized(image)

    def inputs(
        self,
        images: Sequence[NDArray[np.uint8]],
        resized: Sequence[list[NDArray[np.uint8]] | None] | None = None,
    ) -> Inputs:
        """Gather images that go through the network together, in any thread.

        Parameters
        ----------
        images
            uint8 RGB, shape (H, W, 3) each.
        resized
            What `resize` returned for each; without it, it is called here.
        """
        if resized is None:
            resized = [self.resize(image) for image in images]
        whole = [place for place, one in enumerate(resized) if one is not None]
        by_scale = {}
        for number, scale in enumerate(self._scales):
            small = {place: one[number] for place, one in enumerate(resized) if one is not None}
            shapes = dict.fromkeys(image.shape for image in small.values())
            by_scale[scale] = [
                self._gathered({place: one for place, one in small.items() if one.shape == shape})
                for shape in shapes
            ]
        return Inputs(images, whole, by_scale)

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.integer]]:
        """Return the masks of images, uint8 RGB of shape (H, W, 3) each."""
        return [one.to_host().wait().mask for one in self.predictions(self.inputs(images))]

    @torch.no_grad()  # in inference mode autocast would round the weights again for every view
    def predictions(
        self,
        inputs: Inputs,
        *,
        confidence: bool = False,
        probabilities: bool = False,
        truths: Sequence[Tensor] | None = None,
        loss: bool = False,
    ) -> Iterator[DevicePrediction]:
        """Yield a prediction for each image.

        Images that are not cut go through the network together, those of one input shape in one
        batch. Beside the logits, which are a sixteenth of the input's pixels, some rows of one
        image's probabilities are held at a time; with `probabilities` all of it in float16, on the
        host. If the device runs out of memory, strips become smaller first, then batches.

        Parameters
        ----------
        confidence, probabilities
            Whether these are requested, too.
        truths
            Train ids of each image, shape (H, W): with `confidence`, their probabilities are
            taken too.
        loss
            Whether the loss of the truths is added up: with one view, of images that are not cut.

        Raises
        ------
        OutOfMemory
            If the device has too little even for one image, and some rows, at a time.
        """
        waiting: dict[int, Sequence[Tensor]] = {}
        for place, image in enumerate(inputs.images):
            whole = place in inputs.whole
            made: Readings | None = None
            truth = None
            if truths is not None:
                truth = truths[place].to(self.device, non_blocking=True)
            while made is None:
                if whole and place not in waiting:
                    after = inputs.whole[bisect_left(inputs.whole, place) :]
                    waiting = self._logits(inputs, after[: self._batch_size])
                made = _read(
                    self._strips(image, waiting.get(place)),
                    image.shape[:2],
                    of_logits=whole and len(self._views) == 1,
                    confidence=confidence,
                    probabilities=probabilities,
                    truth=truth,
                    loss=loss,
                )
                if made is None:
                    self._free_memory(waiting if whole else {})
            waiting.pop(place, None)
            yield DevicePrediction(
                made.mask,
                made.confidence,
                made.probabilities,
                made.truth_probability,
                made.loss,
                made.finite,
                self._origin,
            )

    def _strips(
        self, image: NDArray[np.uint8], logits: Sequence[Tensor] | None
    ) -> Iterator[Tensor]:
        """Yield rows of an image: its logits if it has one view, else mean probabilities.

        Parameters
        ----------
        logits
            Of every view; None: the image is cut into tiles.
        """
        height, width = image.shape[:2]
        if logits is None:
            assert self._tiling is not None
            yield from self._tiling.strips(
                image,
                self._tile_inputs,
                self._tile_logits,
                self.device,
                self._views,
                self._strip,
            )
        elif len(logits) == 1:
            yield from class_strips(logits[0], height, width, self._strip, self._views[0])
        else:
            piece = Piece(logits, 0, 0, height, width, views=self._views)
            yield from probability_strips([piece], range(height), width, self._strip)

    def _tile_inputs(self, tiles: Sequence[NDArray[np.uint8]]) -> Inputs:
        return self.inputs(tiles, [self._resized(tile) for tile in tiles])

    def _tile_logits(self, tiles: Inputs) -> list[Sequence[Tensor]]:
        logits = self._logits(tiles, tiles.whole)
        return [logits[place] for place in tiles.whole]

    def _resized(self, image: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        return [self._preprocess.resize(image, scale) for scale in self._scales]

    def _gathered(self, images: Mapping[int, NDArray[np.uint8]]) -> _SameShape:
        """Copy images of one shape into one tensor."""
        shape = next(iter(images.values())).shape
        pixels = torch.empty(
            (len(images), *shape), dtype=torch.uint8, pin_memory=self.device.type == "cuda"
        )
        there = pixels.numpy()
        for row, image in enumerate(images.values()):
            there[row] = image
        return _SameShape(list(images), pixels)

    def _logits(self, inputs: Inputs, places: Sequence[int]) -> dict[int, Sequence[Tensor]]:
        """Run the network on some of the whole images, in batches that fit into memory.

        Returns
        -------
        dict
            By the image's place: the logits of every view as the network gave them, mirrored,
            shape (C, h, w) each.
        """
        found: dict[int, Sequence[Tensor]] = {}
        done = 0
        while done < len(places):
            batch = places[done : done + self._batch_size]
            try:
                found |= self._run_network(inputs, batch)
                done += len(batch)
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise self._explained(
                        error, [inputs.images[place] for place in batch]
                    ) from error
            self._halve_batch()  # here: the error has let go of the tensors it held
        return found

    def _explained(self, error: RuntimeError, images: Sequence[NDArray[np.uint8]]) -> Exception:
        """Return which sizes a network failed of, where they follow from the images' own."""
        if self._preprocess.resizing is None:
            return error
        sizes = {f"{image.shape[1]} × {image.shape[0]}" for image in images}
        return DataError(
            f"{self._origin}: the network fails of images of {', '.join(sorted(sizes))} pixels, "
            "resized as its image processor says (do_resize, size in preprocessor_config.json): "
            f"{first_line(error)}"
        )

    def _run_network(self, inputs: Inputs, places: Sequence[int]) -> dict[int, Sequence[Tensor]]:
        jobs = [
            (number, group)
            for number, view in enumerate(self._views)
            for group in (group.among(places) for group in inputs.by_scale[view.scale])
            if group.places
        ]
        found: dict[int, dict[int, Tensor]] = {place: {} for place in places}
        with autocast(self.device, self.precision):
            for (number, group), x in self._normalized(jobs):
                network: Any = self._network
                logits = network(pixel_values=x).logits
                for place, one in zip(group.places, logits, strict=True):
                    found[place][number] = one
        views = range(len(self._views))
        return {place: [by_view[view] for view in views] for place, by_view in found.items()}

    def _normalized(
        self, jobs: Sequence[tuple[int, _SameShape]]
    ) -> Iterator[tuple[tuple[int, _SameShape], Tensor]]:
        """Yield what the network sees of each view, float32, shape (B, 3, h, w), on its device."""
        if self.device.type == "cpu":  # by another thread, which is one view ahead

            def on_host(job: tuple[int, _SameShape]) -> Tensor:
                number, group = job
                return self._host_normalizer(group.pixels, self._views[number])

            yield from read_ahead(jobs, on_host, self.device)
            return
        for scale, of_scale in groupby(jobs, key=lambda job: self._views[job[0]].scale):
            del scale
            plain: dict[int, Tensor] = {}  # each is copied and normalized once for all mirrorings
            for number, group in of_scale:
                first = group.places[0]
                if first not in plain:
                    pixels = group.pixels.to(self.device, non_blocking=True)
                    plain[first] = self._normalizer(pixels)
                yield (number, group), self._views[number].mirror(plain[first], 2, 3)

    def _free_memory(self, waiting: dict[int, Sequence[Tensor]]) -> None:
        """Make room after strips did not fit: smaller ones, then logits of fewer images.

        Parameters
        ----------
        waiting
            Logits of whole images; none of them if the image is cut into tiles.
        """
        if self._strip > _SMALLEST_STRIP:
            self._strip //= 2
            log.warning("out of memory while upsampling: strips of half the size from now on")
            self._empty_cache()
        elif len(waiting) > 1:
            self._batch_size = len(waiting)
            waiting.clear()
            self._halve_batch()
        elif waiting:
            raise OutOfMemory("upsampling the logits of one image")
        else:
            raise OutOfMemory("the logits of a row of tiles")

    def _halve_batch(self) -> None:
        if self._batch_size == 1:
            raise OutOfMemory("the network, at batch size 1")
        self._batch_size //= 2
        self._strip = strip_numbers(self.device)  # there is room for them now
        self._empty_cache()
        log.warning(
            "out of memory: batches of %d images from now on; the last bits of probabilities may "
            "differ from those of larger batches",
            self._batch_size,
        )

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _read(
    strips: Iterator[Tensor],
    size: tuple[int, int],
    *,
    of_logits: bool,
    confidence: bool,
    probabilities: bool,
    truth: Tensor | None,
    loss: bool,
) -> Readings | None:
    """Read an image's strips; None if the device is out of memory."""
    try:
        return read_strips(
            strips,
            size,
            of_logits=of_logits,
            confidence=confidence,
            probabilities=probabilities,
            truth=truth,
            loss=loss,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
