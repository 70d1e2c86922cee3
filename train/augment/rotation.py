"""Turned images."""

import albumentations
import cv2

from ..config import AugmentConfig
from .outside import COLOR


def rotation(
    config: AugmentConfig, input_size: int, ignore_index: int
) -> albumentations.BasicTransform | None:
    """Turn the crop about its center by a uniform angle; its corners come from outside it."""
    if not config.rotation:
        return None
    return albumentations.Rotate(
        limit=(-config.rotation, config.rotation),
        interpolation=cv2.INTER_LINEAR,
        mask_interpolation=cv2.INTER_NEAREST,
        border_mode=cv2.BORDER_CONSTANT,
        fill=COLOR,
        fill_mask=ignore_index,
        p=1.0,
    )
