"""What one image becomes: untouched, shrunk on request, its oddities counted."""

import io
import zlib

import numpy as np
import pytest
from cocoseg.prepare.rasterize import count_pixels
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.verify import verify
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
    )
)
def test_pixels_are_counted_one_by_one(mask):
    values, counts = np.unique(mask, return_counts=True)
    assert count_pixels(mask) == tuple(zip(values.tolist(), counts.tolist(), strict=True))


# ---- shrinking


@pytest.mark.parametrize(
    ("size", "max_side", "expected"),
    [
        ((64, 48), 32, (32, 24)),
        ((64, 48), 33, (33, 25)),
        ((48, 64), 16, (12, 16)),
        ((64, 48), 64, (64, 48)),
        ((100, 1), 10, (10, 1)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_larger_images_are_shrunk_to_the_longer_side_and_stay_upright(
    coco_set, tmp_path, stored, size, max_side, expected, orientation
):
    turned = orientation == 6
    coco_set.photo(1, *(size[::-1] if turned else size), orientation=orientation, annotated=size)
    coco_set.annotate(1, [[0, 0, size[0] / 2, 0, size[0] / 2, size[1], 0, size[1]]])
    result = coco_set.prepare(tmp_path / "shards", max_side=max_side)
    (sample,) = stored(tmp_path / "shards").values()
    assert (sample.meta["width"], sample.meta["height"]) == expected
    assert sample.mask.shape == expected[::-1]
    resized = size != expected
    assert result.manifest.counts.get("resized", 0) == resized
    with Image.open(io.BytesIO(sample.photo)) as image:
        assert image.size == (expected if resized or not turned else expected[::-1])
    left, right = sample.mask[:, : expected[0] // 2 - 1], sample.mask[:, expected[0] // 2 + 1 :]
    assert (left == 1).all()
    assert (right == 0).all()
    assert ShardSet([str(tmp_path / "shards")]).read(0).image.shape[:2] == expected[::-1]
    assert verify(str(tmp_path / "shards")).problems == ()


def test_a_shrunk_mask_holds_only_classes_of_the_exact_one_and_pixels_lie_where_they_were(
    coco_set, tmp_path, stored
):
    coco_set.photo(1, 60, 60)
    coco_set.annotate(1, [[0, 0, 30, 0, 30, 30, 0, 30]], 7)
    coco_set.annotate(1, [[30, 30, 60, 30, 60, 60, 30, 60]], 2)
    coco_set.prepare(tmp_path / "exact")
    coco_set.prepare(tmp_path / "shards", max_side=20)
    (exact,), (shrunk,) = (stored(tmp_path / n).values() for n in ("exact", "shards"))
    assert np.array_equal(shrunk.mask, exact.mask[1::3, 1::3])  # the center of each 3 x 3 block


def test_the_photo_is_averaged_not_sampled_when_it_is_shrunk(coco_set, tmp_path, stored):
    path = coco_set.photo(1, 64, 64, name="1.png")
    checkers = ((np.indices((64, 64)).sum(0) % 2) * 255).astype(np.uint8)
    Image.fromarray(checkers).save(path)
    coco_set.prepare(tmp_path / "shards", max_side=16)
    (sample,) = stored(tmp_path / "shards").values()
    assert sample.extension == "jpg"
    gray = np.asarray(Image.open(io.BytesIO(sample.photo)).convert("L"), np.float64)
    assert abs(gray.mean() - 127.5) < 4
    assert gray.std() < 8


# ---- oddities


@pytest.mark.parametrize(
    ("name", "mode", "save", "counted", "meta"),
    [
        ("1.jpg", "L", {}, {"photo_L": 1}, {"mode": "L"}),
        ("1.jpg", "CMYK", {}, {"photo_CMYK": 1}, {"mode": "CMYK"}),
        ("1.png", "RGBA", {}, {"photo_RGBA": 1, "photo_alpha": 1}, {"alpha": True}),
        ("1.png", "LA", {}, {"photo_LA": 1, "photo_alpha": 1}, {"alpha": True}),
        ("1.png", "P", {}, {"photo_P": 1}, {"mode": "P"}),
        ("1.png", "I;16", {}, {"photo_I_16": 1}, {"mode": "I;16"}),
        ("1.png", "RGB", {}, {}, {"mode": "RGB"}),
        (
            "1.gif",
            "P",
            {"save_all": True, "append_images": [Image.new("P", (16, 12), 3)]},
            {"photo_P": 1, "photo_animated": 1},
            {"frames": 2},
        ),
    ],
)
def test_what_is_no_plain_rgb_photo_is_kept_as_it_is_recorded_and_counted(
    coco_set, tmp_path, stored, name, mode, save, counted, meta
):
    path = coco_set.images / name
    if mode == "I;16":
        Image.fromarray(np.arange(192, dtype=np.uint16).reshape(12, 16) * 300).save(path)
    else:
        gradient = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(12, 16))
        gradient.convert("RGB").convert(mode).save(path, **save)
    coco_set.entry(1, name)
    result = coco_set.prepare(tmp_path / "shards")
    assert result.quarantined == ()
    found = {k: n for k, n in result.manifest.counts.items() if k.startswith("photo_")}
    assert found == counted
    (sample,) = stored(tmp_path / "shards").values()
    assert sample.photo == path.read_bytes()
    assert sample.meta.items() >= meta.items()
    assert ShardSet([str(tmp_path / "shards")]).read(0).image.shape == (12, 16, 3)


# ---- how photographs are checked


def without_pixels(path):
    """Take the pixels out of a PNG; its checksums are right, and only decoding tells."""
    content = path.read_bytes()
    start = content.index(b"IDAT")
    chunk = b"IDAT" + zlib.compress(b"\0")
    rest = content[start + 8 + int.from_bytes(content[start - 4 : start], "big") :]
    whole = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path.write_bytes(content[: start - 4] + whole + rest)


@pytest.mark.parametrize(("check", "quarantined"), [("header", 0), ("full", 1)])
def test_full_checks_decode_every_pixel(coco_set, tmp_path, check, quarantined):
    without_pixels(coco_set.photo(1, 64, 64, name="1.png"))
    coco_set.photo(2)
    result = coco_set.prepare(tmp_path / "shards", check_images=check)
    assert len(result.quarantined) == quarantined
    assert result.manifest.settings.get("check_images", "header") == check


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_a_file_that_was_cut_is_found_by_the_header_check_wherever_it_was_cut(
    coco_set, tmp_path, form
):
    whole = coco_set.photo(0, 40, 30, name="0.image", format=form).read_bytes()
    cuts = sorted({1, 9, 30, len(whole) // 4, len(whole) // 2, len(whole) - 9, len(whole) - 1})
    for number, cut in enumerate(cuts, start=1):
        path = coco_set.images / f"{number}.image"
        path.write_bytes(whole[:cut])
        coco_set.entry(number, path.name, (40, 30))
    result = coco_set.prepare(tmp_path / "shards")
    assert result.manifest.samples >= 1
    survived = {*range(len(cuts) + 1)} - {entry.image_id for entry in result.quarantined}
    for number in survived:  # the last byte of a GIF or a WebP is padding or a mark
        with Image.open(coco_set.images / f"{number}.image") as image:
            image.load()
