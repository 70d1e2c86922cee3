"""Encode a mask as a single-channel grayscale PNG whose values are train ids."""

import struct
import zlib

import numpy as np
from isal import isal_zlib

from .rasterize import Mask

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _NO_FILTER = 0, 0


def encode_mask(mask: Mask) -> bytes:
    """Encode a mask.

    No palette: OpenCV and others would decode that to colours. Rows are not filtered, which suits
    flat regions best, and deflated by Intel's ISA-L: 20 x faster than zlib's level 6.
    Source: PNG specification (W3C, third edition), 5 and 11.

    Parameters
    ----------
    mask
        Train ids, shape (H, W), uint8 or uint16.

    Returns
    -------
    bytes
        A PNG of 8 or 16 bits a pixel.
    """
    height, width = mask.shape
    depth = mask.dtype.itemsize
    rows = np.zeros((height, 1 + width * depth), np.uint8)
    rows[:, 0] = _NO_FILTER
    big_endian = np.ascontiguousarray(mask if depth == 1 else mask.astype(">u2"))
    rows[:, 1:] = big_endian.view(np.uint8)
    header = struct.pack(">IIBBBBB", width, height, 8 * depth, _GRAY, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", isal_zlib.compress(rows, 1)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))
