"""Images and masks as small JPEGs for a page."""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..colors import overlay_mask
from .blocks import Jpeg

SIDE = 320
"""Longer side of a thumbnail [pixels]."""
QUALITY = 80


def thumbnail(image: NDArray[np.uint8], side: int = SIDE) -> Jpeg:
    """Shrink an image to `side`; a smaller one keeps its size.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    """
    small = Image.fromarray(image)
    # A gap of 2 halves by boxes first: 5 x faster, and nobody sees it at this size.
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2)
    return _jpeg(small)


def _jpeg(small: Image.Image) -> Jpeg:
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return Jpeg(buffer.getvalue(), small.width, small.height)


def overlay_thumbnail(
    image: NDArray[np.uint8],
    mask: NDArray[np.integer],
    ignore_index: int | None = None,
    side: int = SIDE,
) -> Jpeg:
    """Lay a mask over its image and shrink both; see `colors.overlay_mask`.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    mask
        Train ids, shape (H, W), uint8 or uint16.

    Raises
    ------
    ValueError
        If the sizes differ.
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"image {image.shape} and mask {mask.shape} differ in size")
    height, width = mask.shape
    scale = side / max(height, width)
    if scale > 0.5:
        return thumbnail(overlay_mask(image, mask, ignore_index=ignore_index), side)
    # Blended at twice the size: smooth outlines, and large images cost little.
    size = 2 * max(1, round(width * scale)), 2 * max(1, round(height * scale))
    if size != (width, height):
        shrunk = Image.fromarray(image).resize(size, Image.Resampling.BOX, reducing_gap=2)
        image = np.asarray(shrunk)
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    return _jpeg(Image.fromarray(overlay_mask(image, mask, ignore_index=ignore_index)).reduce(2))
