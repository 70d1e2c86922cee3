"""Training transforms, by albumentations: crop, flip, colour, blur; all on uint8.

The one place that knows albumentations. Normalisation is left to the device: a uint8 batch costs a
quarter of the transport of a float one.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks PyPI at import

import albumentations
import cv2
import numpy as np
from numpy.typing import NDArray

from .config import AugmentConfig


class TrainingTransform:
    """Turn a photograph and its mask into a square training crop.

    Parameters
    ----------
    config
        Ranges and probabilities.
    input_size
        Side of the crop [pixels].
    ignore_index
        Unused pixels never arise: a crop lies inside its image.
    """

    def __init__(self, config: AugmentConfig, input_size: int) -> None:
        cv2.setNumThreads(1)  # loader processes share the cores already
        self._compose = albumentations.Compose(
            [
                albumentations.RandomResizedCrop(
                    size=(input_size, input_size),
                    scale=config.scale_range,
                    ratio=config.ratio_range,
                    interpolation=cv2.INTER_LINEAR,
                    area_for_downscale="image",  # antialiased, as validation's resize is
                    mask_interpolation=cv2.INTER_NEAREST_EXACT,
                ),
                albumentations.HorizontalFlip(p=config.flip),
                albumentations.ColorJitter(
                    brightness=(1 - config.brightness, 1 + config.brightness),
                    contrast=(1 - config.contrast, 1 + config.contrast),
                    saturation=(1 - config.saturation, 1 + config.saturation),
                    hue=(-config.hue, config.hue),
                    p=config.color_jitter,
                ),
                albumentations.GaussianBlur(p=config.blur),
            ]
        )

    def __call__(
        self, image: NDArray[np.uint8], mask: NDArray[np.integer], seed: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Transform one sample; the same seed gives the same crop, colours and all.

        Parameters
        ----------
        image
            uint8 RGB, shape (H, W, 3).
        mask
            Train ids, shape (H, W).
        seed
            0 … 2³² - 1.

        Returns
        -------
        image, mask
            Shapes (S, S, 3) and (S, S), dtypes unchanged, S being the input size.
        """
        self._compose.set_random_seed(seed)
        result = self._compose(image=image, mask=mask)
        return result["image"], result["mask"]
