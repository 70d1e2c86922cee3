"""What is written for each image: its mask, and whatever else was asked for."""

# C classes, H W pixels of the image

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...colors import add_legend, mask_to_color, overlay_mask
from ...model.predictor import Prediction
from ...shards.png import Mask, encode_mask
from ...storage import locate
from ...taxonomy import Taxonomy
from ..config import InferConfig
from ..folder import mask_file
from .coco_json import category_ids, segments


def files_of(config: InferConfig, name: str) -> dict[str, str]:
    """Return the relative paths of what is written for an image, by the settings' names."""
    files = {"mask": mask_file(name)}
    for kind in ("color", "overlay", "confidence"):
        if getattr(config, kind):
            files[kind] = f"{kind}/{name}.png"
    if config.probabilities:
        files["probabilities"] = f"probabilities/{name}.npy"
    return files


class Outputs:
    """Writes predictions below a folder.

    ``NAME.png`` is the mask; ``color/NAME.png`` and ``overlay/NAME.png`` are for people;
    ``confidence/NAME.png`` holds the probability of the mask's class, 8 bits, 255 is 1.0;
    ``probabilities/NAME.npy`` those of all classes, float16, shape (H, W, C).

    Raises
    ------
    ConfigError
        If category ids are asked for and classes have none, or several.
    """

    def __init__(self, config: InferConfig, taxonomy: Taxonomy) -> None:
        self.config = config
        self._folder = locate(str(config.output))
        self._ignore_index = taxonomy.ignore_index
        self._bits = taxonomy.bits
        self._names = taxonomy.names
        needed = config.ids == "coco" or config.coco_json
        self._category_ids = category_ids(taxonomy) if needed else []

    @property
    def wants_confidence(self) -> bool:
        """Whether `write` needs the probability of each mask's class."""
        config = self.config
        return config.confidence or config.coco_json or config.min_confidence > 0

    def write(self, name: str, image: NDArray[np.uint8], prediction: Prediction) -> dict[str, Any]:
        """Write one image's files, each at once or not at all; return what they hold.

        Parameters
        ----------
        name
            Path below the folder, without an extension.
        image
            uint8 RGB, shape (H, W, 3).

        Returns
        -------
        dict
            What `files_of` does, ``height``, ``width``, ``class_pixels`` (train id → pixels) and,
            with ``coco_json``, ``segments``: see `coco_json.segments`.

        Raises
        ------
        OSError
            If the disk is full or fails.
        """
        config, files = self.config, files_of(self.config, name)
        mask: Mask = _narrowed(prediction.mask, self._bits)
        if config.min_confidence > 0:
            assert prediction.confidence is not None
            doubtful = prediction.confidence < config.min_confidence
            mask = np.where(doubtful, mask.dtype.type(self._ignore_index), mask)
        self._put(files["mask"], encode_mask(self._numbered(mask)))
        if config.color:
            colors = mask_to_color(mask, self._ignore_index, config.palette)
            self._put(files["color"], _png(Image.fromarray(colors)))
        if config.overlay:
            picture = overlay_mask(
                image, mask, ignore_index=self._ignore_index, palette=config.palette
            )
            names = self._names if config.legend else ()
            self._put(files["overlay"], _png(add_legend(picture, mask, names, config.palette)))
        if config.confidence:
            assert prediction.confidence is not None
            gray = np.rint(prediction.confidence * 255).astype(np.uint8)
            self._put(files["confidence"], _png(Image.fromarray(gray)))
        if config.probabilities:
            assert prediction.probabilities is not None
            buffer = io.BytesIO()
            np.save(buffer, prediction.probabilities, allow_pickle=False)
            self._put(files["probabilities"], buffer.getvalue())
        train_ids, pixels = np.unique(mask, return_counts=True)
        record: dict[str, Any] = {
            **files,
            "height": mask.shape[0],
            "width": mask.shape[1],
            "class_pixels": {
                str(one): int(count) for one, count in zip(train_ids, pixels, strict=True)
            },
        }
        if config.coco_json:
            assert prediction.confidence is not None
            record["segments"] = segments(mask, prediction.confidence, self._category_ids)
        return record

    def _numbered(self, mask: Mask) -> Mask:
        """Return train ids, or category ids, as the settings say; ignored pixels stay."""
        if self.config.ids == "train":
            return mask
        ids = [category_id or 0 for category_id in self._category_ids]  # background is 0
        bits = 8 if max(ids) < 255 and self._bits == 8 else 16
        numbers = np.full(self._ignore_index + 1, 2**bits - 1)
        numbers[: len(ids)] = ids
        return _narrowed(numbers[mask], bits)

    def _put(self, path: str, content: bytes) -> None:
        (self._folder / path).publish_bytes(content)


def _narrowed(mask: NDArray[np.integer], bits: int) -> Mask:
    return mask.astype(np.uint8) if bits == 8 else mask.astype(np.uint16)


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
