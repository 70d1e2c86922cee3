"""JPEG pixels are those of plain Pillow, whatever the file, and so is the verdict on damage."""

import io
import random
import struct

import numpy as np
import pytest
import simplejpeg
from cocoseg import jpeg, photo
from cocoseg.photo import BadPhoto
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps


def by_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))


def draw(width: int, height: int, mode: str, seed: int, **save: object) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 7 + 1, width // 5 + 1, 3), np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.convert(mode).save(buffer, "JPEG", **save)
    return buffer.getvalue()


def size_of(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        return image.size


def assert_same(content: bytes) -> None:
    pixels = photo.decode(content, 1)
    assert (pixels.dtype, pixels.flags.c_contiguous, pixels.flags.writeable) == (
        np.uint8, True, True,
    )  # fmt: skip
    assert np.array_equal(pixels, by_pillow(content))


COLORS = st.one_of(
    st.just({"mode": "L"}),
    st.just({"mode": "CMYK"}),
    st.just({"mode": "RGB", "keep_rgb": True}),  # stored as RGB: Adobe's transform 0
    st.fixed_dictionaries(
        {"mode": st.just("RGB"), "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0"])}
    ),
)
SIZES = st.one_of(
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.just(1), st.integers(1, 70)),
    st.tuples(st.integers(1, 70), st.just(1)),
)


@settings(max_examples=400)
@given(
    SIZES,
    COLORS,
    st.integers(0, 2**32 - 1),
    st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "progressive": st.booleans(),
            "optimize": st.booleans(),
            "restart_marker_rows": st.integers(0, 2),
            "restart_marker_blocks": st.integers(0, 3),
        }
    ),
)
def test_pixels_are_those_of_pillow(size, colors, seed, save):
    assert_same(draw(*size, seed=seed, **colors, **save))


@given(
    SIZES,
    st.sampled_from(["444", "422", "420", "440", "411", "Gray"]),  # Pillow writes but four of them
    st.integers(1, 100),
    st.integers(0, 2**32 - 1),
)
def test_subsamplings_that_pillow_does_not_write(size, subsampling, quality, seed):
    pixels = by_pillow(draw(*size, "RGB", seed, quality=100))
    content = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, colorspace="RGB", colorsubsampling=subsampling
    )
    assert jpeg.decode(content, size) is not None
    assert_same(content)


def test_4_by_1_blocks_upright_are_left_to_pillow():
    pixels = by_pillow(draw(32, 32, "RGB", 1))
    content = bytearray(simplejpeg.encode_jpeg(pixels, 90, "RGB", "411"))
    frame = content.index(b"\xff\xc0")
    assert content[frame + 11] == 0x41
    content[frame + 11] = 0x14  # as many blocks in a unit, as many units: a healthy file
    assert jpeg.decode(bytes(content), (32, 32)) is None
    assert_same(bytes(content))


@pytest.mark.parametrize(("mode", "fast"), [("RGB", True), ("L", True), ("CMYK", False)])
def test_the_usual_kinds_take_the_fast_way_and_cmyk_does_not(mode, fast):
    assert (jpeg.decode(draw(40, 30, mode, 1), (40, 30)) is not None) == fast


def test_another_size_than_pillow_finds_is_left_to_pillow():
    content = draw(40, 30, "RGB", 1)
    assert jpeg.decode(content, (30, 40)) is None
    assert jpeg.decode(content, (40, 30)) is not None


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("exif", range(1, 9))
def test_turns_are_those_of_pillow(exif, orientation):
    def tagged(turn: int) -> bytes:
        tags = Image.Exif()
        tags[0x0112] = turn
        return draw(40, 30, "RGB", 1, exif=tags)

    with Image.open(io.BytesIO(tagged(exif if orientation is None else orientation))) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = photo.decode(tagged(exif), orientation)
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, expected)


def test_the_first_picture_of_several_counts_and_no_thumbnail_does():
    first, second = (Image.open(io.BytesIO(draw(40, 30, "RGB", seed))) for seed in (1, 2))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    assert size_of(buffer.getvalue()) == (40, 30)
    assert_same(buffer.getvalue())
    thumbnail = draw(8, 6, "RGB", 3)
    entries = struct.pack(">HHIIHHII", 0x201, 4, 1, 44, 0x202, 4, 1, len(thumbnail))
    tiff = b"MM\0*" + struct.pack(">IHIH", 8, 0, 14, 2) + entries + bytes(4) + thumbnail
    assert_same(draw(40, 30, "RGB", 1, exif=b"Exif\0\0" + tiff))


def test_real_photographs(real_data, record_property):
    paths = sorted((real_data / "coco").glob("*2017/*.jpg"))
    fast = 0
    for path in paths:
        content = path.read_bytes()
        fast += jpeg.decode(content, size_of(content)) is not None
        assert np.array_equal(photo.decode(content, 1), by_pillow(content)), path.name
        coarse = io.BytesIO()  # COCO's are 4:4:4, cameras' are not
        Image.open(path).save(coarse, "JPEG", quality=90, subsampling="4:2:0")
        assert np.array_equal(photo.decode(coarse.getvalue(), 1), by_pillow(coarse.getvalue()))
    record_property("figure", f"{len(paths)} real JPEGs: Pillow's pixels, {fast} by turbojpeg")
    assert len(paths) > 300
    assert fast == len(paths)


def verdict(content: bytes) -> np.ndarray | None:
    """What plain Pillow makes of a file that may be damaged."""
    try:
        return by_pillow(content)
    except Exception:
        return None


def agrees(content: bytes) -> bool:
    try:
        ours = photo.decode(content, 1)
    except BadPhoto:
        return verdict(content) is None
    theirs = verdict(content)
    return theirs is not None and np.array_equal(ours, theirs)


KINDS = {
    "baseline": draw(33, 21, "RGB", 3, quality=60),
    "progressive": draw(33, 21, "RGB", 3, quality=60, progressive=True),
    "gray": draw(48, 37, "L", 3),
    "restart markers": draw(48, 37, "RGB", 4, quality=70, restart_marker_blocks=1),
    "stored as RGB": draw(33, 21, "RGB", 5, keep_rgb=True),
    "CMYK": draw(33, 21, "CMYK", 6),
}


@pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)
def test_a_cut_anywhere_is_judged_as_pillow_does(content):
    assert len(content) > 500
    assert [cut for cut in range(len(content)) if not agrees(content[:cut])] == []


@pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)
def test_flipped_bits_and_lost_bytes_are_judged_as_pillow_does(content):
    rng, strange = random.Random(1), []
    for attempt in range(400):
        damaged = bytearray(content)
        place = rng.randrange(len(damaged))
        damaged[place] ^= 1 << rng.randrange(8)
        if attempt % 4 == 0:
            del damaged[place : place + rng.randrange(1, 9)]
        if not agrees(bytes(damaged)):
            strange.append(place)
    assert strange == []


def test_what_follows_the_picture_changes_nothing():
    content = draw(20, 20, "RGB", 5)
    for behind in (b"\0" * 100, b"trailing", draw(30, 10, "RGB", 6)):
        assert np.array_equal(photo.decode(content + behind, 1), by_pillow(content))


def test_another_size_than_expected_is_told_before_any_pixel_is_decoded(monkeypatch):
    content = draw(40, 30, "RGB", 7)
    assert photo.decode(content, 1, size=(40, 30)).shape == (30, 40, 3)
    assert photo.decode(content, 6, size=(30, 40)).shape == (40, 30, 3)
    monkeypatch.setattr(jpeg, "decode", lambda *_: pytest.fail("decoded"))
    for size, turn in (((30, 40), 1), ((40, 30), 6), ((40, 31), 1)):
        with pytest.raises(BadPhoto, match="the photo is") as refused:
            photo.decode(content, turn, size=size)
        assert refused.value.reason == "size-mismatch"


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    content = bytearray(draw(8, 8, "RGB", 8))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = (65000).to_bytes(2, "big") * 2
    monkeypatch.setattr(jpeg, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(BadPhoto) as refused:
        photo.decode(bytes(content))
    assert refused.value.reason == "image-too-large"
