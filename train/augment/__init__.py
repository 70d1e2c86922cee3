"""Training transforms, by albumentations; all on uint8.

The one room that knows albumentations. Normalization is left to the device: a uint8 batch costs a
quarter of the transport of a float one. To add an augmentation, write a builder in a module here,
enter it in `AUGMENTATIONS`, and test it.
"""

import difflib
import os
import zlib

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks PyPI at import

from collections.abc import Callable

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...errors import ConfigError
from ..config import AugmentConfig
from .blur import gaussian_blur
from .color import color_jitter, grayscale
from .crop import random_resized_crop
from .flip import horizontal_flip, vertical_flip
from .rotation import rotation
from .scale_jitter import scale_jitter

Builder = Callable[[AugmentConfig, int, int], albumentations.BasicTransform | None]
"""(settings, input size, ignore index) → a transform, or None where it is off.

It must keep sizes once the image is cropped, and where it brings in pixels that are not the
image's, give them the ignore index in the mask.
"""

AUGMENTATIONS: dict[str, Builder] = {
    "scale_range": random_resized_crop,
    "scale_jitter": scale_jitter,
    "flip": horizontal_flip,
    "rotation": rotation,
    "color_jitter": color_jitter,
    "blur": gaussian_blur,
    "vertical_flip": vertical_flip,
    "grayscale": grayscale,
}
"""In the order in which they are applied, by the key of `AugmentConfig` that switches each, or by
its name in `AugmentConfig.extra`."""


class TrainingTransform:
    """Turn an image and its mask into a square training crop.

    Parameters
    ----------
    config
        Ranges and probabilities.
    input_size
        Side S of the crop [pixels].
    ignore_index
        Value of mask pixels that come from outside the image.
    """

    def __init__(self, config: AugmentConfig, input_size: int, ignore_index: int) -> None:
        self.input_size = input_size
        built = {
            name: build(config, input_size, ignore_index)
            for name, build in AUGMENTATIONS.items()
            if config.enabled and (name in AugmentConfig.model_fields or config.extra.get(name))
        }
        used = {name: transform for name, transform in built.items() if transform is not None}
        self._compose = albumentations.Compose(list(used.values()))
        self._words = [zlib.crc32(name.encode()) for name in used]

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.integer], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Transform one sample; the same seed gives the same crop, colors and all.

        Parameters
        ----------
        image
            uint8 RGB, shape (H, W, 3).
        mask
            Train ids, uint8 or uint16, shape (H, W).
        seed
            0 … 2³² - 1.

        Returns
        -------
        image, mask
            Shapes (S, S, 3) and (S, S), dtypes unchanged.
        """
        if not self._compose.transforms:
            return self._resized(image, mask)
        # Compose would give all of them the same seed, and so the same numbers: what is blurred
        # (a tenth) would always be flipped (a half), and what is flipped change its colors.
        for word, transform in zip(self._words, self._compose.transforms, strict=True):
            (own,) = np.random.SeedSequence((seed, word)).generate_state(1)
            transform.set_random_seed(int(own))
        result = self._compose(image=image, mask=mask)
        return result["image"], result["mask"]

    def _resized(
        self, image: NDArray[np.uint8], mask: NDArray[np.integer]
    ) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Resize as `Preprocess.resize` does, into memory that PyTorch may write to."""
        size = (self.input_size, self.input_size)
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        return np.array(resized), cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)


def check_extra(config: AugmentConfig) -> None:
    """Refuse names in `AugmentConfig.extra` that are not augmentations, or have keys of their own.

    Raises
    ------
    ConfigError
        Names what there is.
    """
    known = [name for name in AUGMENTATIONS if name not in AugmentConfig.model_fields]
    for name in config.extra:
        if name in AugmentConfig.model_fields:
            raise ConfigError(f"augment.extra: {name!r} is a key of its own, augment.{name}")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"augment.extra: unknown augmentation {name!r}; {hint}there are {', '.join(known)}"
            )
