"""Images as JPEG and masks as PNG for the page, small or at full size."""

# H W pixels

import io

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..shards.png import Mask, encode_mask


def jpeg(image: NDArray[np.uint8], side: int | None = None) -> bytes:
    """Encode an image, uint8 RGB of shape (H, W, 3); its longer side is at most `side` pixels.

    At full size, where single pixels are looked at, without color subsampling.
    """
    size = _fitted(image.shape[:2], side)
    if size is not None:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    buffer = io.BytesIO()
    options = {"quality": 85} if side else {"quality": 95, "subsampling": 0}
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def label_png(mask: Mask, side: int | None = None) -> bytes:
    """Encode train ids, shape (H, W), so that a browser can read them back from a canvas.

    A gray PNG of 8 bits; of 16-bit masks an RGB one, with the high byte in red and the low byte in
    green. Shrunk to `side` pixels, each pixel is one of the mask's own.
    """
    size = _fitted(mask.shape, side)
    if size is not None:
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)
    if mask.dtype == np.uint8:
        return encode_mask(mask)
    split = np.stack([mask >> 8, mask & 255, np.zeros_like(mask)], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(split).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _fitted(shape: tuple[int, ...], side: int | None) -> tuple[int, int] | None:
    """Return (width, height) within `side`, or None if it is no larger."""
    height, width = shape
    if side is None or max(shape) <= side:
        return None
    factor = side / max(shape)
    return max(1, round(width * factor)), max(1, round(height * factor))
