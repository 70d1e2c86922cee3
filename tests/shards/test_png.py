"""Mask files: what `encode_mask` writes comes back by the fast way, all else by Pillow."""

import io
import struct
import zlib

import numpy as np
import pytest
from cocoseg.errors import DataError
from cocoseg.shards.decode import decode_mask
from cocoseg.shards.png import decode_plain, encode_mask
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

shapes = st.tuples(st.integers(1, 40), st.integers(1, 40))
masks = st.one_of(
    shapes.flatmap(lambda shape: arrays.arrays(np.uint8, shape)),
    shapes.flatmap(lambda shape: arrays.arrays(np.uint16, shape)),
)


def by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(image)


@given(masks)
def test_masks_come_back_by_the_fast_way(mask):
    content = encode_mask(mask)
    pixels = decode_plain(content)
    assert pixels is not None
    assert pixels.dtype == mask.dtype
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.array_equal(pixels, mask)
    assert np.array_equal(pixels, by_pillow(content))


@given(masks, st.booleans())
def test_masks_of_other_writers_come_back_too(mask, optimize):
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG", optimize=optimize)
    pixels = decode_mask(buffer.getvalue(), "here")
    assert pixels.dtype == mask.dtype
    assert np.array_equal(pixels, mask)


def chunk(kind, body):
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def png(raw, *, size=(4, 3), depth=8, color=0, interlace=0, parts=1):
    packed = zlib.compress(raw)
    step = -(-len(packed) // parts)
    idats = (chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step))
    header = struct.pack(">IIBBBBB", *size, depth, color, 0, 0, interlace)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(idats) + chunk(b"IEND", b"")


ROWS = b"".join(b"\0" + bytes(range(4 * i, 4 * i + 4)) for i in range(3))


def test_this_layout_is_the_fast_one():
    assert decode_plain(png(ROWS)).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@pytest.mark.parametrize(
    "content",
    [
        png(b"\1" + ROWS[1:]),  # a filtered row
        png(ROWS, parts=2),
        png(ROWS + b"\0"),  # more than the rows need
        png(ROWS[:-1]),
        png(ROWS * 4, size=(4, 12))[:-30] + png(ROWS)[-30:],
        png(b"\0" + bytes(12) + b"\0" + bytes(12), size=(4, 2), color=2),
        png(ROWS, color=3),
        png(ROWS, interlace=1),
        png(b"\0\1" * 3, size=(2, 3), depth=4),
        png(ROWS)[:-1],
        png(ROWS) + b"\0",
        png(ROWS)[:20],
        b"",
        png(ROWS).replace(b"IDAT", b"IDAR"),
    ],
    ids=range(14),
)
def test_any_other_layout_is_left_to_pillow(content):
    assert decode_plain(content) is None


def test_a_flipped_bit_anywhere_is_never_another_mask():
    content = encode_mask(np.arange(48, dtype=np.uint8).reshape(6, 8))
    for place in range(len(content)):
        for bit in range(8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << bit
            assert decode_plain(bytes(damaged)) is None, place


def test_a_bomb_costs_nothing(monkeypatch):
    giant = png(ROWS, size=(60_000, 60_000))
    with pytest.raises(DataError, match="differ in size"):
        decode_mask(giant, "here", expected=(3, 4))
    with pytest.raises(DataError, match="DecompressionBomb"):
        decode_mask(giant, "here")
    assert decode_plain(png(bytes(10**8))) is None  # 100 MB of zeros for 15 bytes of rows
