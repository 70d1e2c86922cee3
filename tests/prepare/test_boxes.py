"""A box without a segmentation never teaches background unless somebody says so."""

import itertools
import json

import numpy as np
import pytest
from cocoseg.errors import DataError
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.prepare.outlines import Instances
from cocoseg.prepare.rasterize import PaintRules, rasterize
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

WIDTH, HEIGHT = 16, 12
SOUND = [[1, 1, 9, 1, 9, 9, 1, 9]]
BOX = [5, 5, 8, 4]


def pixels_of(box):
    """The pixels that pycocotools gives a COCO box."""
    (rle,) = coco_mask.frPyObjects(np.array([box], np.float64), HEIGHT, WIDTH)
    return coco_mask.decode(rle).astype(bool)


def painted(*annotations, boxes="ignore", crowd="paint", overlap="area", **rules):
    """Paint (segmentation, train id, crowd, bbox) of one image."""
    segmentations, train_ids, crowds, found = zip(*annotations, strict=True)
    instances = Instances(
        tuple(range(len(annotations))),
        train_ids,
        crowds,
        json.dumps(segmentations).encode(),
        json.dumps([[box, None] for box in found]).encode(),
    )
    rules = PaintRules(overlap, crowd, 255, boxes=boxes, **rules)
    painting = rasterize(instances, WIDTH, HEIGHT, rules)
    values, counts = np.unique(painting.mask, return_counts=True)
    expected = tuple(zip(values.tolist(), counts.tolist(), strict=True))
    assert painting.class_pixels == expected
    return painting


side = st.floats(0.01, 30, allow_nan=False) | st.integers(1, 30)
corner = st.floats(-15, 31, allow_nan=False) | st.integers(-15, 31)


@given(st.tuples(corner, corner, side, side).filter(lambda b: b[0] + b[2] < 32 > b[1] + b[3]))
def test_an_ignored_box_covers_the_pixels_that_pycocotools_gives_it(box):
    painting = painted(([], 1, False, list(box)))
    assert np.array_equal(painting.mask == 255, pixels_of(list(box)))
    assert painting.counts["boxes_ignored"] == 1


SMALL, LARGE = [[6, 6, 8, 6, 8, 8, 6, 8]], [[0, 0, 16, 0, 16, 12, 0, 12]]
RLE = {"size": [HEIGHT, WIDTH], "counts": [60, 72, 60]}


@pytest.mark.parametrize("other", [SMALL, LARGE, SOUND, RLE])
@pytest.mark.parametrize("train_id", [0, 3, 255])
@pytest.mark.parametrize("crowd", [None, "paint", "beneath"])
@pytest.mark.parametrize("overlap", ["area", "order"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_box_is_ignored_only_where_no_other_instance_paints(
    other, train_id, crowd, overlap, place
):
    one = [([], 1, False, BOX)]
    one.insert(place, (other, train_id, crowd is not None, None))
    mask = painted(*one, crowd=crowd or "paint", overlap=overlap, priorities={1: 5}).mask
    alone = painted((other, 7, False, None)).mask == 7
    expected = np.where(alone, train_id, np.where(pixels_of(BOX), 255, 0))
    assert np.array_equal(mask, expected)


def test_what_is_background_anyway_needs_no_segmentation():
    painting = painted((SOUND, 1, False, None), ([], 0, False, BOX), boxes="quarantine")
    assert painting.counts["no_segmentation"] == 1
    assert 255 not in painting.mask


def test_a_crowd_that_is_dropped_marks_no_box():
    assert not painted(([], 1, True, BOX), crowd="drop").mask.any()


BAD = {
    "NaN": ("[NaN,5,8,4]", "bad-box"),
    "Infinity": ("[5,5,Infinity,4]", "bad-box"),
    "1e999": ("[5,5,8,1e999]", "bad-box"),
    "negative": ("[5,5,-8,4]", "bad-box"),
    "three numbers": ("[5,5,8]", "bad-box"),
    "five numbers": ("[5,5,8,4,1]", "bad-box"),
    "a null": ("[5,5,null,4]", "bad-box"),
    "a bool": ("[5,5,true,4]", "bad-box"),
    "a word": ('"5 5 8 4"', "bad-box"),
    "an object": ('{"x":5,"y":5,"w":8,"h":4}', "bad-box"),
    "a number": ("5", "bad-box"),
    "far right": ("[5,5,28,4]", "coordinates-far-off"),
    "far left": ("[-17,5,28,4]", "coordinates-far-off"),
    "1e300": ("[5,5,8,1e300]", "coordinates-far-off"),
    "400 digits": (f"[5,5,8,{'9' * 400}]", "bad-box"),
}


@pytest.mark.parametrize(("bbox", "reason"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("boxes", ["quarantine", "ignore", "background"])
def test_a_bad_box_is_never_marked(coco_set, tmp_path, run_cocoseg, bbox, reason, boxes):
    for image_id in (1, 2):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, SOUND)
    coco_set.annotate(2, [], id=77, bbox="HERE")
    coco_set.write().write_text(coco_set.json.read_text().replace('"HERE"', bbox))
    output = tmp_path / "shards"
    flags = (*coco_set.flags, "--output", output, "--engine", "inline", "--boxes", boxes)
    ran = run_cocoseg("prepare", *flags)
    assert ran.code == (0 if boxes == "background" else 4)
    if ran.code:
        (entry,) = map(json.loads, (output / "quarantine.jsonl").read_text().splitlines())
        assert (entry["image_id"], entry["annotation_id"]) == (2, 77)
        assert entry["reason"] == ("box-only" if boxes == "quarantine" else reason)


@pytest.fixture
def mixed(coco_set):
    """Image 1 has polygons; image 2 also a box alone; image 3 an empty annotation."""
    for image_id in (1, 2, 3):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, SOUND)
    coco_set.annotate(2, [], 2, id=77, bbox=BOX, area=32)
    coco_set.annotate(3, None, 2)
    return coco_set


def test_by_default_the_image_is_left_out_with_the_annotation_named(mixed, tmp_path, stored):
    result = mixed.prepare(tmp_path / "shards")
    (entry,) = result.quarantined
    assert (entry.image_id, entry.annotation_id, entry.reason) == (2, 77, "box-only")
    assert "[5, 5, 8, 4]" in entry.detail
    assert result.manifest.counts["no_segmentation"] == 1
    assert "boxes" not in result.manifest.settings
    assert len(stored(tmp_path / "shards")) == 2


@pytest.mark.parametrize("boxes", ["ignore", "background"])
def test_the_two_other_ways_keep_the_image(mixed, tmp_path, run_cocoseg, stored, boxes):
    mixed.write()
    flags = ("--output", tmp_path / "shards", "--engine", "inline", "--boxes", boxes, "--json")
    ran = run_cocoseg("prepare", *mixed.flags, *flags)
    assert ran.code == 0
    name = {"ignore": "boxes_ignored", "background": "boxes_as_background"}[boxes]
    counts = json.loads(ran.out)["counts"]
    assert (counts[name], counts["no_segmentation"]) == (1, 1)
    manifest = json.loads((tmp_path / "shards" / "manifest.json").read_text())
    assert manifest["settings"]["boxes"] == boxes
    mask = stored(tmp_path / "shards")[f"{2:012d}"].mask
    square = stored(tmp_path / "shards")[f"{1:012d}"].mask
    marked = pixels_of(BOX) & (square == 0) & (boxes == "ignore")
    assert np.array_equal(mask, np.where(marked, 255, square))


@pytest.mark.parametrize("blank", ["[]", "[ ]", "[\n" + " " * 99 + "]", "null", "{}", "{\t}"])
@pytest.mark.parametrize("ids", ["", '"'], ids=["usual", "ids as text"])
def test_how_an_empty_segmentation_is_written_does_not_matter(mixed, tmp_path, blank, ids):
    mixed.content["annotations"][3]["segmentation"] = "HERE"
    text = json.dumps(mixed.content).replace('"HERE"', blank)
    for number in (1, 2, 3):
        text = text.replace(f'"image_id": {number},', f'"image_id": {ids}{number}{ids},')
    mixed.write = lambda: mixed.json.write_text(text)
    result = mixed.prepare(tmp_path / "shards")
    assert [(entry.image_id, entry.reason) for entry in result.quarantined] == [(2, "box-only")]


@pytest.mark.parametrize(
    ("bbox", "area", "is_object"),
    [
        (None, None, False), ([], 0, False), ([0, 0, 0, 0], 0, False), ([3, 3, 0, 5], 0.0, False),
        (None, -5, False), ({}, "0", False), (None, float("nan"), False),
        (BOX, None, True), (BOX, 0, True), (None, 12.5, True), ([0, 0, 0, 0], "12.5", True),
        (["5", "5", "8", "4"], None, True),
    ],
)  # fmt: skip
def test_only_what_has_neither_box_nor_area_is_accepted(mixed, tmp_path, bbox, area, is_object):
    mixed.content["annotations"][3] |= {"bbox": bbox, "area": area}
    result = mixed.prepare(tmp_path / "shards")
    assert [entry.reason for entry in result.quarantined] == ["box-only"] * is_object
    assert result.manifest.counts["no_segmentation"] == 2 - is_object


def test_an_area_without_a_box_cannot_be_ignored(mixed, tmp_path):
    mixed.content["annotations"][3] |= {"bbox": None, "area": 12.5}
    (entry,) = mixed.prepare(tmp_path / "shards", boxes="ignore").quarantined
    assert (entry.reason, entry.annotation_id) == ("bad-box", 77)
    assert "12.5" in entry.detail


def test_a_file_of_boxes_alone_is_refused_unless_it_goes_with_another(make_coco_set, tmp_path):
    boxes, polygons = make_coco_set("boxes"), make_coco_set("polygons")
    for made, segmentation in ((boxes, []), (polygons, SOUND)):
        for image_id in (1, 2):
            made.photo(image_id)
            made.annotate(image_id, segmentation, bbox=BOX, area=32)
        made.write()

    def build(way, *sets):
        return prepare_shards(
            PrepareConfig(
                annotations=tuple(str(made.json) for made in sets),
                images=tuple(str(made.images) for made in sets),
                output=str(tmp_path / f"{way}-{len(sets)}"),
                engine="inline",
                boxes=way,
            )
        )

    message = "none of its 2 annotations has a segmentation"
    for way, sets in itertools.product(("quarantine", "ignore", "background"), (1, 2)):
        given_sets = (boxes, polygons)[:sets]
        if sets == 1 or way == "quarantine":
            with pytest.raises(DataError, match=message):
                build(way, *given_sets)
        else:
            result = build(way, *given_sets)
            assert result.quarantined == ()
            assert (result.manifest.ignored_pixels > 0) == (way == "ignore")
