"""Members become pixels or an error: of the size that the index says, before any is allocated."""

import io
import struct
import zlib

import numpy as np
import pytest
from cocoseg import jpeg, photo
from cocoseg.errors import DataError
from cocoseg.shards import decode
from cocoseg.shards.decode import decode_mask, decode_photo
from cocoseg.shards.png import encode_mask
from cocoseg.shards.reader import ShardSet
from msgspec.structs import replace
from PIL import Image, ImageFile

WHERE = "shard: key"


def png(mode, size=(4, 3)):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind, body):
    checksum = zlib.crc32(kind + body)
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def header(bits=8, size=(4, 3)):
    return chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, 0, 0, 0, 0))


def gray_png(bits, before=b"", size=(4, 3)):
    """A grayscale PNG, of fewer than 8 bits a pixel too, which Pillow does not write."""
    rows = zlib.compress(bytes(min(10**6, size[1] * (1 + size[0] * bits // 8))))
    parts = (before, header(bits, size), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


COMMENT = chunk(b"tEXt", b"Title\0eight and more")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png("RGB"), "mode RGB"),
        (png("P"), "mode P"),
        (png("LA"), "mode LA"),
        (png("1"), "mode 1"),
        (gray_png(4), "4 bits per pixel"),  # Pillow would read train ids 1, 2 as 17, 34
        (gray_png(2), "2 bits per pixel"),
        (gray_png(4, before=COMMENT), "4 bits per pixel"),
        (gray_png(4, before=header(8)), "4 bits per pixel"),  # Pillow believes the second header
        (png("L", (3, 4)), "differ in size"),
        (gray_png(8, before=header(), size=(3, 4)), "differ in size"),
        (gray_png(8, before=COMMENT, size=(3, 4)), "differ in size"),
        (gray_png(8, before=header(), size=(60_000, 60_000))[:90], "DecompressionBomb"),
        (gray_png(8)[:33] + chunk(b"IEND", b""), "mask"),  # no pixels at all
        (png("L")[:45], "mask"),
        (b"", "mask: is empty"),
        (b"\xff\xd8\xff", "mask: is not a PNG"),
    ],
)  # fmt: skip
def test_only_a_gray_png_of_the_right_size_is_a_mask(content, message):
    with pytest.raises(DataError, match=message) as refused:
        decode_mask(content, WHERE, expected=(3, 4))
    assert str(refused.value).startswith(f"{WHERE}: ")
    assert "IndexError" not in str(refused.value)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("before", [b"", COMMENT], ids=["plain", "comment first"])
def test_a_gray_png_is_c_contiguous_and_writable_by_either_way(bits, before):
    mask = decode_mask(gray_png(bits, before), WHERE, expected=(3, 4))
    assert (mask.dtype, mask.shape) == (np.dtype(f"uint{bits}"), (3, 4))
    assert mask.flags.c_contiguous
    assert mask.flags.writeable


def test_the_fast_way_and_pillow_agree_on_real_masks(golden, stored, monkeypatch):
    samples = stored(golden.shards("train")).values()
    fast = [decode_mask(sample.mask_file, WHERE) for sample in samples]
    monkeypatch.setattr(decode, "decode_plain", lambda content: None)
    for sample, mask in zip(samples, fast, strict=True):
        assert np.array_equal(decode_mask(sample.mask_file, WHERE), mask)
        assert np.array_equal(sample.mask, mask)


@pytest.fixture
def no_pixels(monkeypatch):
    """Fail where a pixel would be decoded or allocated."""

    def refuse(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(jpeg, "decode", refuse)
    monkeypatch.setattr(photo, "_load", refuse)
    monkeypatch.setattr(ImageFile.ImageFile, "load", refuse)
    monkeypatch.setattr(decode, "decode_plain", refuse)


@pytest.fixture
def row(golden):
    return replace(ShardSet([str(golden.shards("train"))]).row(0), width=4, height=3, orientation=1)


def encoded(form, orientation=1, size=(4, 3)):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, form, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("stored", "turn", "says"), [
    ((5, 3), 1, "5 x 3"), ((3, 4), 1, "3 x 4"), ((4, 3), 6, "3 x 4"), ((9000, 9000), 1, "9000 x"),
])  # fmt: skip
def test_a_photo_of_another_size_is_told_before_it_is_decoded(
    row, form, stored, turn, says, request
):
    content = encoded(form, turn, stored)  # a PNG's EXIF may make Pillow decode all of it
    request.getfixturevalue("no_pixels")
    message = f"^{WHERE}: image: the photo is {says}.*, the index says 4 x 3$"
    with pytest.raises(DataError, match=message):
        decode_photo(content, replace(row, orientation=turn), WHERE)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("exif", [1, 6])
@pytest.mark.parametrize("turn", [1, 6])
def test_the_index_turns_a_photo_whatever_exif_says(row, form, exif, turn):
    size = (4, 3) if turn == 1 else (3, 4)
    pixels = decode_photo(encoded(form, exif, size), replace(row, orientation=turn), WHERE)
    assert pixels.shape == (3, 4, 3)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable


def test_a_mask_of_another_size_is_told_before_it_is_decoded(no_pixels):
    with pytest.raises(DataError, match="mask 2 x 9 and image 4 x 3 differ in size"):
        decode_mask(encode_mask(np.zeros((9, 2), np.uint8)), WHERE, expected=(3, 4))


def test_what_is_no_photo_says_where(row):
    with pytest.raises(DataError, match=f"^{WHERE}: image: is not an image"):
        decode_photo(b"<html>", row, WHERE)
