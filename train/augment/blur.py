"""Blurred images."""

import albumentations

from ..config import AugmentConfig


def gaussian_blur(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform:
    """Blur by a Gaussian of σ 0.5 … 3 pixels of the input size."""
    return albumentations.GaussianBlur(p=config.blur)
