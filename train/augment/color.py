"""Changed colors; masks stay as they are."""

import albumentations

from ..config import AugmentConfig


def color_jitter(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform:
    """Change brightness, contrast, saturation and hue, in a random order each time."""
    return albumentations.ColorJitter(
        brightness=(1 - config.brightness, 1 + config.brightness),
        contrast=(1 - config.contrast, 1 + config.contrast),
        saturation=(1 - config.saturation, 1 + config.saturation),
        hue=(-config.hue, config.hue),
        p=config.color_jitter,
    )


def grayscale(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform:
    """Take the colors away: three equal channels."""
    return albumentations.ToGray(p=config.extra["grayscale"])
