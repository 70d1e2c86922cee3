"""Masks as single-channel grayscale PNGs whose values are train ids.

Source: PNG specification (W3C, third edition), 5 and 11.
"""

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray
from zlib_ng import zlib_ng

Mask = NDArray[np.uint8] | NDArray[np.uint16]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GRAY, _NO_FILTER = 0, 0
_LEVEL = 2
_IHDR = b"\0\0\0\x0dIHDR"  # how the first chunk begins
_HEADER_END = 33  # behind the signature and the IHDR chunk
_CHUNK_EXTRA = 12  # length, name and checksum of a chunk
_IEND = b"\0\0\0\0IEND\xae\x42\x60\x82"  # the empty last chunk


def encode_mask(mask: Mask) -> bytes:
    """Encode a mask.

    No palette: OpenCV and others would decode that to colors. Rows are not filtered, which suits
    flat regions best, and deflated by zlib-ng, whose output depends on nothing but the input. Of
    its levels, 1 gives files that are 70 % larger, and 3 takes 60 % longer.

    Parameters
    ----------
    mask
        Train ids, shape (H, W), uint8 or uint16; column-major is fastest.

    Returns
    -------
    bytes
        A PNG of 8 or 16 bits per pixel.
    """
    height, width = mask.shape
    depth = mask.dtype.itemsize
    rows = np.empty((height, 1 + width * depth), np.uint8)
    rows[:, 0] = _NO_FILTER
    if depth == 2:
        rows[:, 1:] = mask.astype(">u2", order="C").view(np.uint8)
    elif mask.flags.f_contiguous:
        cv2.transpose(mask.T, dst=rows[:, 1:])  # in blocks: 10 x faster than NumPy's copy
    else:
        rows[:, 1:] = mask
    header = struct.pack(">IIBBBBB", width, height, 8 * depth, _GRAY, 0, 0, 0)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", header),
            _chunk(b"IDAT", zlib_ng.compress(rows, _LEVEL)),
            _chunk(b"IEND", b""),
        )
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(content, zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(content)), kind, content, struct.pack(">I", checksum)))


def read_size(content: bytes) -> tuple[int, int] | None:
    """Return (height, width) as the header says [pixels]; None if it is not a PNG."""
    if not content.startswith(_SIGNATURE + _IHDR) or len(content) < _HEADER_END:
        return None
    width, height = struct.unpack(">II", content[16:24])
    return height, width


def decode_plain(content: bytes) -> Mask | None:
    """Decode a PNG that is laid out as `encode_mask` does: four times faster than Pillow.

    Returns
    -------
    ndarray or None
        uint8 or uint16, shape (H, W), C-contiguous, writable. None for any other layout:
        colors, palettes, fewer bits, filtered rows, several parts, whatever is damaged.
    """
    size = read_size(content)
    idat, iend = content[_HEADER_END : _HEADER_END + 8], len(content) - _CHUNK_EXTRA
    if size is None or idat[4:] != b"IDAT" or content[iend:] != _IEND:
        return None
    (length,) = struct.unpack(">I", idat[:4])
    body = _HEADER_END + 8
    if (
        body + length + 4 != iend
        or not _checked(content, 12, 17)
        or not _checked(content, body - 4, 4 + length)
    ):
        return None
    depth, *rest = content[24:29]
    if depth not in (8, 16) or rest != [_GRAY, 0, 0, 0]:  # deflate, no filters, not interlaced
        return None
    height, width = size
    row = 1 + width * (depth // 8)
    inflater = zlib_ng.decompressobj()
    try:
        inflated = inflater.decompress(content[body : body + length], height * row + 1)
    except zlib_ng.error:  # type: ignore[misc]  # in its stub, a value
        return None
    if len(inflated) != height * row or not inflater.eof or inflater.unused_data:
        return None
    rows = np.frombuffer(inflated, np.uint8).reshape(height, row)
    if rows[:, 0].any():
        return None
    pixels = rows[:, 1:].copy()
    return pixels if depth == 8 else pixels.view(">u2").astype(np.uint16)


def _checked(content: bytes, start: int, length: int) -> bool:
    """Return whether a checksum follows a chunk's name and body, and is right."""
    (checksum,) = struct.unpack_from(">I", content, start + length)
    return bool(zlib.crc32(content[start : start + length]) == checksum)
