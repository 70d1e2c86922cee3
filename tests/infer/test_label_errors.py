"""Label quality and suspicious regions: their definitions, and planted mistakes."""

import csv
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cocoseg.infer.evaluate.label_errors import (
    LISTED,
    SuspiciousRegion,
    label_quality,
    most_suspicious,
    suspicious_regions,
)
from cocoseg.model.score import Scored
from cocoseg.shards.reader import Sample, ShardSet
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

CLASSES, IGNORE = 4, 255


def noise(seed: int, height: int = 60, width: int = 80) -> NDArray[np.uint8]:
    """Train ids in blobs, with some ignored pixels."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.standard_normal((CLASSES, height, width)), (0, 4, 4))
    mask = smooth.argmax(0).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.02] = IGNORE
    return mask


def scored(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    confidence: Any,
    truth_probability: Any,
) -> Scored:
    sample = Sample("000001", np.zeros((*truth.shape, 3), np.uint8), truth)
    confusion = np.zeros((CLASSES, CLASSES + 1), np.int64)
    as_map: Callable[[Any], Any] = lambda v: np.broadcast_to(np.float32(v), truth.shape)  # noqa: E731
    return Scored(
        *(3, sample, prediction, confusion, np.zeros((15, 3), np.int64)),
        *(as_map(confidence), as_map(truth_probability)),
    )


@pytest.mark.parametrize("seed", range(5))
def test_quality_is_the_soft_minimum_of_the_paper(seed: int) -> None:
    truth = noise(seed)
    p = np.random.default_rng(seed).random(truth.shape, np.float32)
    found = label_quality(truth, p, CLASSES + 1)
    for train_id in range(CLASSES):
        values = p[truth == train_id].astype(float).tolist()
        weights = [math.exp((1 - value) / 0.1) for value in values]
        wanted = sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
        assert found[train_id] == pytest.approx(wanted, rel=1e-9)
    assert np.isnan(found[CLASSES])  # of no pixel
    assert min(found[:CLASSES]) <= found[-1] <= max(found[:CLASSES])


def test_nothing_but_ignored_pixels_has_no_quality() -> None:
    truth = np.full((4, 5), IGNORE, np.uint8)
    assert np.isnan(label_quality(truth, np.zeros((4, 5), np.float32), CLASSES)).all()


@pytest.mark.parametrize("seed", range(8))
def test_regions_are_connected_components_of_each_pair_of_classes(seed: int) -> None:
    truth, prediction = noise(seed), noise(100 + seed)
    rng = np.random.default_rng(seed)
    own = rng.random(truth.shape, np.float32) * np.float32(0.4)
    sure = (own + rng.random(truth.shape, np.float32) * np.float32(0.5)).astype(np.float32)
    found = list(suspicious_regions(scored(truth, prediction, sure, own), "a.jpg"))
    wanted = []
    for a in range(CLASSES):
        for b in range(CLASSES):
            if a == b:
                continue
            labels, count = ndimage.label((truth == a) & (prediction == b), np.ones((3, 3)))
            for label in range(1, count + 1):
                region = labels == label
                margin = (sure - own)[region].mean(dtype=float)
                if region.sum() < 16 or margin < 0.1:
                    continue
                rows, cols = np.nonzero(region)
                padded = np.pad(region, 1)
                circle = math.pi * ndimage.distance_transform_edt(padded).max() ** 2
                suspicion = margin * circle / (circle + 0.002 * truth.size)
                box = (cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1)
                wanted.append((a, b, box, int(region.sum()), suspicion))
    assert len(found) == len(wanted) > 5
    by_place = sorted(found, key=lambda one: (one.annotated, one.predicted, one.box))
    for one, (a, b, box, pixels, suspicion) in zip(by_place, sorted(wanted), strict=True):
        assert (one.annotated, one.predicted, one.box, one.pixels) == (a, b, box, pixels)
        assert one.suspicion == pytest.approx(suspicion, rel=1e-4)
        assert (one.position, one.key, one.file_name) == (3, "000001", "a.jpg")


def test_planted_mistakes_are_named() -> None:
    prediction = np.zeros((100, 120), np.uint8)
    prediction[10:40, 10:40], prediction[10:40, 60:100] = 1, 2
    prediction[60:90, 10:50] = 3
    truth = prediction.copy()
    truth[10:40, 10:40] = 0  # deleted
    truth[10:40, 60:100] = 1  # of another class
    truth[60:90, 10:50], truth[60:90, 11:50] = 0, 3  # an outline one pixel inside
    truth[60:90, 70:110] = 3  # nothing is there
    found = {one.kind: one for one in suspicious_regions(scored(truth, prediction, 0.9, 0.05), "")}
    assert found.keys() == {"missing object", "wrong class", "outline", "extra object"}
    assert found["missing object"].box == (10, 10, 30, 30)
    assert (found["wrong class"].annotated, found["wrong class"].predicted) == (1, 2)
    assert found["extra object"].box == (70, 60, 40, 30)
    assert (
        found["outline"].suspicion
        < 0.15
        < min(one.suspicion for kind, one in found.items() if kind != "outline")
    )


def test_what_the_network_is_not_sure_of_is_not_suspected() -> None:
    prediction = np.zeros((50, 50), np.uint8)
    prediction[10:40, 10:40] = 1
    truth = np.zeros_like(prediction)
    assert list(suspicious_regions(scored(truth, prediction, 0.5, 0.45), "")) == []
    assert len(list(suspicious_regions(scored(truth, prediction, 0.6, 0.4), ""))) == 1


def test_the_first_of_parts_are_the_first_of_all() -> None:
    rng = np.random.default_rng(0)
    regions = [
        SuspiciousRegion(
            i, f"{i}", "", "outline", 0, 1, round(float(rng.random()), 2), 20, (i, 0, 4, 4)
        )
        for i in range(3 * LISTED)
    ]
    parts = [most_suspicious(regions[k::3]) for k in range(3)]
    together = most_suspicious([region for part in parts for region in part])
    assert together == sorted(regions, key=lambda one: (-one.suspicion, one.position))[:LISTED]


def test_eval_writes_masks_and_confusions_of_each_image(
    run_cocoseg: Any, golden: Any, tmp_path: Any, checkpoint: Any
) -> None:
    out, masks = tmp_path / "scores", tmp_path / "masks"
    arguments = ("--checkpoint", checkpoint, "--no-tta")
    ran = run_cocoseg(
        *("eval", *arguments, "--shards", golden.shards("val"), "--output", out),
        "--save-predictions",
    )
    assert ran.code == 0, ran.err
    run_cocoseg("infer", *arguments, "--input", golden.shards("val"), "--output", masks)
    names = sorted(path.name for path in masks.glob("*.png"))
    assert names == sorted(path.name for path in (out / "predictions").iterdir())
    counted: dict[tuple[str, str, str], int] = {}
    for row in csv.DictReader((out / "image_confusions.csv").open()):
        counted[row["key"], row["truth"], row["predicted"]] = int(row["pixels"])
    shards = ShardSet([str(golden.shards("val"))])
    wanted: Counter[tuple[str, str, str]] = Counter()
    for position in range(len(shards)):
        sample = shards.read(position)
        file = out / "predictions" / f"{sample.key}.png"
        assert file.read_bytes() == (masks / file.name).read_bytes()
        pairs = zip(sample.mask.flat, np.asarray(Image.open(file)).flat, strict=True)
        wanted.update(
            (sample.key, shards.taxonomy.names[a], shards.taxonomy.names[b])
            for a, b in pairs
            if a != IGNORE
        )
    assert counted == dict(wanted)
    ran = run_cocoseg(
        *("eval", "--predictions", masks, "--shards", golden.shards("val")),
        *("--output", tmp_path / "again", "--save-predictions"),
    )
    assert ran.code == 2
    assert "--save-predictions: the masks are there already" in ran.err


def test_eval_writes_them(run_cocoseg: Any, golden: Any, tmp_path: Any, checkpoint: Any) -> None:
    out = tmp_path / "scores"
    arguments = ("eval", "--checkpoint", checkpoint, "--shards", golden.shards("val"))
    assert run_cocoseg(*arguments, "--output", out, "--no-tta").code == 0
    images = list(csv.DictReader((out / "images.csv").open()))
    classes = list(csv.DictReader((out / "image_classes.csv").open()))
    assert all(0 <= float(row["label_quality"]) <= 1 for row in images)
    bins = json.loads((out / "metrics.json").read_text())["calibration"]["bins"]
    pixels = [int(row["pixels"]) for row in images]
    mean = np.average([float(row["confidence"]) for row in images], weights=pixels)
    sums = sum(entry["pixels"] * (entry["confidence"] or 0) for entry in bins)
    assert mean == pytest.approx(sums / sum(pixels), rel=1e-12)
    assert all(bool(row["label_quality"]) == (row["pixels"] != "0") for row in classes)
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert rows
    assert "Labels to check first" in (out / "report.html").read_text()
    found = [float(row["suspicion"]) for row in rows]
    assert found == sorted(found, reverse=True)
    assert {row["key"] for row in rows} <= {row["key"] for row in images}
    assert run_cocoseg(*arguments, "--output", out, "--no-tta", "--quick").code == 0
    assert len((out / "labels.csv").read_text().splitlines()) == 1
    assert all(row["label_quality"] == "" for row in csv.DictReader((out / "images.csv").open()))
