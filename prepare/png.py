"""Encode a mask as a single-channel grayscale PNG whose values are train ids."""

import io

from PIL import Image

from .rasterize import Mask


def encode_mask(mask: Mask) -> bytes:
    """Encode a mask.

    No palette: OpenCV and others would decode that to colours.

    Parameters
    ----------
    mask
        Train ids, shape (H, W), uint8 or uint16.

    Returns
    -------
    bytes
        A PNG of 8 or 16 bits a pixel.
    """
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
