"""The demo data set is COCO, is true to what is drawn, and is the same every time."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cocoseg.demo.annotations import annotate, run_lengths, trace
from cocoseg.demo.composition import Scene, draw_scene
from cocoseg.demo.objects import KINDS
from cocoseg.demo.scenes import DemoDataset, draw_dataset
from cocoseg.taxonomy import COCO_CATEGORIES
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

TRAIN, VAL = 40, 12


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DemoDataset:
    folder = tmp_path_factory.mktemp("demo")
    return draw_dataset(folder, train_images=TRAIN, val_images=VAL, seed=3)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


def decode(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """What the mask contract takes an annotation's pixels to be."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return np.asarray(coco_mask.decode(rle), bool)


def paint(annotations: list[dict[str, Any]], height: int, width: int) -> NDArray[np.object_]:
    """Categories by the mask contract: largest rasterized area first."""
    canvas = np.full((height, width), "", object)
    masks = [decode(annotation["segmentation"], height, width) for annotation in annotations]
    for k in sorted(range(len(masks)), key=lambda k: -int(masks[k].sum())):
        canvas[masks[k]] = annotations[k]["category"]
    return canvas


def drawn_categories(scene: Scene) -> NDArray[np.object_]:
    names = np.array([*(instance.category for instance in scene.instances), ""], object)
    return np.asarray(names[scene.owner])  # -1, the background, takes the last


def off_boundary(truth: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Pixels whose 3 x 3 neighbors all are of their own category."""
    padded = np.pad(truth, 1, mode="edge")
    height, width = truth.shape
    same = np.ones(truth.shape, bool)
    for dy in range(3):
        for dx in range(3):
            same &= padded[dy : dy + height, dx : dx + width] == truth
    return same


@pytest.mark.parametrize("number", range(24))
def test_painted_annotations_agree_with_what_was_drawn(number: int) -> None:
    rng = np.random.default_rng((11, number))
    scene = draw_scene(rng, KINDS[number % len(KINDS)], number)
    truth = drawn_categories(scene)
    painted = paint(annotate(scene, rng), *truth.shape)
    inner = off_boundary(truth)
    assert np.mean(painted[inner] == truth[inner]) >= 0.999
    assert np.mean(painted == truth) >= 0.99  # outlines run at a fraction of a pixel
    for instance in scene.instances:
        here = truth == instance.category
        there = painted == instance.category
        assert np.sum(here & there) >= 0.9 * np.sum(here | there)


def test_both_splits_have_all_coco_categories_and_valid_references(dataset: DemoDataset) -> None:
    for split, count in ((dataset.train, TRAIN), (dataset.val, VAL)):
        content = read(split.annotations)
        assert {"info", "licenses", "images", "annotations", "categories"} <= content.keys()
        assert [(c["id"], c["name"], c["supercategory"]) for c in content["categories"]] == list(
            COCO_CATEGORIES
        )
        image_ids = {image["id"] for image in content["images"]}
        assert len(image_ids) == count
        annotation_ids = {annotation["id"] for annotation in content["annotations"]}
        assert len(annotation_ids) == len(content["annotations"])
        assert {annotation["image_id"] for annotation in content["annotations"]} <= image_ids
        for image in content["images"]:
            with Image.open(split.images / image["file_name"]) as photo:
                assert photo.size == (image["width"], image["height"])
                assert (photo.format, photo.mode) == ("JPEG", "RGB")


def test_annotations_hold_what_coco_promises(dataset: DemoDataset) -> None:
    content = read(dataset.train.annotations)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for annotation in content["annotations"]:
        height, width = sizes[annotation["image_id"]]
        mask = decode(annotation["segmentation"], height, width)
        assert annotation["area"] == mask.sum() > 0
        left, top, across, down = annotation["bbox"]
        assert left >= 0
        assert top >= 0
        assert left + across <= width + 0.01
        assert top + down <= height + 0.01
        rows, cols = np.nonzero(mask)
        assert left - 1 <= cols.min()
        assert cols.max() <= left + across
        assert top - 1 <= rows.min()
        assert rows.max() <= top + down
        if isinstance(annotation["segmentation"], list):
            for polygon in annotation["segmentation"]:
                points = np.reshape(polygon, (-1, 2))
                assert len(points) >= 3
                assert points.min() >= 0
                assert (points <= (width, height)).all()
        else:
            assert annotation["segmentation"]["size"] == [height, width]
        if annotation["iscrowd"]:
            assert sum(annotation["segmentation"]["counts"]) == height * width


def test_every_kind_of_annotation_occurs(dataset: DemoDataset) -> None:
    content = read(dataset.train.annotations)
    forms: Counter[str] = Counter()
    for annotation in content["annotations"]:
        segmentation = annotation["segmentation"]
        if annotation["iscrowd"]:
            forms["crowd"] += 1
        elif isinstance(segmentation, list):
            forms["parts" if len(segmentation) > 1 else "polygon"] += 1
        else:
            forms[type(segmentation["counts"]).__name__] += 1
    assert forms.keys() == {"crowd", "parts", "polygon", "str", "list"}
    annotated = {annotation["image_id"] for annotation in content["annotations"]}
    assert len(annotated) < TRAIN  # an image shows a place alone
    assert len({(image["width"], image["height"]) for image in content["images"]}) > TRAIN // 2


def test_all_kinds_occur_in_both_splits(dataset: DemoDataset) -> None:
    for split in (dataset.train, dataset.val):
        content = read(split.annotations)
        names = {category["id"]: category["name"] for category in content["categories"]}
        met = Counter(names[annotation["category_id"]] for annotation in content["annotations"])
        assert met.keys() == {kind.name for kind in KINDS}


def test_same_arguments_same_bytes_and_more_images_keep_the_first(
    dataset: DemoDataset, tmp_path: Path
) -> None:
    again = draw_dataset(tmp_path, train_images=9, val_images=VAL, seed=3)
    assert again.val.annotations.read_bytes() == dataset.val.annotations.read_bytes()
    for split, first in ((again.train, dataset.train), (again.val, dataset.val)):
        for photo in split.images.iterdir():
            assert photo.read_bytes() == (first.images / photo.name).read_bytes()
    train = read(dataset.train.annotations)["annotations"]
    fewer = read(again.train.annotations)["annotations"]
    assert train[: len(fewer)] == fewer


def test_another_seed_and_the_other_split_show_other_images(
    dataset: DemoDataset, tmp_path: Path
) -> None:
    other = draw_dataset(tmp_path, train_images=2, val_images=2, seed=4)
    folders = (dataset.train.images, dataset.val.images, other.train.images, other.val.images)
    photos = [photo.read_bytes() for folder in folders for photo in folder.iterdir()]
    assert len(set(photos)) == len(photos)


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="each split needs an image"):
        draw_dataset(tmp_path, train_images=4, val_images=0, seed=0)


def test_outlines_follow_the_coverage_and_know_of_holes() -> None:
    coverage = np.zeros((24, 28), np.float32)
    coverage[4:18, 6:15] = coverage[20:23, 20:26] = 1
    outlines = trace(coverage)
    assert (len(outlines.parts), outlines.has_hole) == (2, False)
    polygons = [points.ravel().tolist() for points in outlines.parts]
    np.testing.assert_array_equal(decode(polygons, 24, 28), coverage > 0)
    coverage[8:12, 9:12] = 0
    assert trace(coverage).has_hole
    assert trace(np.zeros_like(coverage)).parts == []


@pytest.mark.parametrize("first", [False, True])
def test_run_lengths_are_those_of_coco(first: bool) -> None:
    region = np.random.default_rng(5).random((7, 5)) < 0.5
    region[0, 0] = first
    counts = run_lengths(region)
    assert sum(counts) == region.size
    np.testing.assert_array_equal(decode({"size": [7, 5], "counts": counts}, 7, 5), region)
