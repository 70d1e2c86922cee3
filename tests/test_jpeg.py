"""JPEG pixels are those of plain Pillow, whatever the file, and so is the verdict on damage."""

import io
import random

import numpy as np
import pytest
from cocoseg import jpeg, photo
from cocoseg.photo import BadPhoto
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image


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


@settings(max_examples=400)
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from(["RGB", "L", "CMYK", "YCbCr"]),
    st.integers(0, 2**32 - 1),
    st.fixed_dictionaries(
        {
            "quality": st.integers(1, 100),
            "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1", "4:4:0"]),
            "progressive": st.booleans(),
            "optimize": st.booleans(),
            "restart_marker_rows": st.integers(0, 2),
            "keep_rgb": st.booleans(),
        }
    ),
)
def test_pixels_are_those_of_pillow(width, height, mode, seed, save):
    if mode not in ("RGB", "YCbCr"):
        save = {name: value for name, value in save.items() if name != "subsampling"}
    try:
        content = draw(width, height, mode, seed, **save)
    except (TypeError, ValueError, OSError):  # a combination that Pillow does not write
        return
    pixels = photo.decode(content, 1)
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    assert np.array_equal(pixels, by_pillow(content))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_usual_kinds_take_the_fast_way_and_cmyk_does_not(mode):
    assert jpeg.decode(draw(40, 30, mode, 1)) is not None
    assert jpeg.decode(draw(40, 30, "CMYK", 1)) is None


def test_real_photographs(real_data, record_property):
    paths = sorted((real_data / "coco").glob("*2017/*.jpg"))
    fast = 0
    for path in paths:
        content = path.read_bytes()
        fast += jpeg.decode(content) is not None
        assert np.array_equal(photo.decode(content, 1), by_pillow(content)), path.name
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


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_anywhere_is_judged_as_pillow_does(progressive):
    content = draw(33, 21, "RGB", 3, quality=60, progressive=progressive)
    assert len(content) > 600
    assert [cut for cut in range(len(content)) if not agrees(content[:cut])] == []


def test_flipped_bits_are_judged_as_pillow_does():
    content, rng = draw(48, 37, "RGB", 4, quality=70), random.Random(1)
    strange = []
    for _ in range(600):
        damaged = bytearray(content)
        place = rng.randrange(len(damaged))
        damaged[place] ^= 1 << rng.randrange(8)
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
    monkeypatch.setattr(jpeg, "decode", lambda content: pytest.fail("decoded"))
    for size, turn in (((30, 40), 1), ((40, 30), 6), ((40, 31), 1)):
        with pytest.raises(BadPhoto, match="expected") as refused:
            photo.decode(content, turn, size=size)
        assert refused.value.reason == "size-mismatch"


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    content = bytearray(draw(8, 8, "RGB", 8))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = (65000).to_bytes(2, "big") * 2
    monkeypatch.setattr(jpeg, "decode", lambda content: pytest.fail("decoded"))
    with pytest.raises(BadPhoto) as refused:
        photo.decode(bytes(content))
    assert refused.value.reason == "image-too-large"
