"""Mirrored images."""

import albumentations

from ..config import AugmentConfig


def horizontal_flip(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform:
    """Swap left and right."""
    return albumentations.HorizontalFlip(p=config.flip)


def vertical_flip(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform:
    """Swap top and bottom: for images without an upright, taken from above or by a microscope."""
    return albumentations.VerticalFlip(p=config.extra["vertical_flip"])
