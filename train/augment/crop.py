"""A random part of the image, resized to the input size."""

import albumentations
import cv2

from ..config import AugmentConfig


def random_resized_crop(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform | None:
    """Crop by area and aspect ratio; nothing comes from outside the image."""
    if config.scale_jitter is not None:
        return None
    return albumentations.RandomResizedCrop(
        size=(input_size, input_size),
        scale=config.scale_range,
        ratio=config.ratio_range,
        interpolation=cv2.INTER_LINEAR,
        area_for_downscale="image",  # antialiased, as validation's resize is
        mask_interpolation=cv2.INTER_NEAREST_EXACT,
    )
