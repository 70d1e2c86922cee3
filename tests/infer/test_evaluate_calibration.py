"""Calibration against its definition and torchmetrics; sums that no order changes."""

import itertools
import math

import numpy as np
import pytest
import torch
from cocoseg.infer.evaluate.calibration import Calibration
from cocoseg.model import counts as counts_module
from cocoseg.model.counts import BINS, UNIT, confusion_counts
from cocoseg.model.counts import calibration_counts as counts_of_tensors
from hypothesis import given
from hypothesis import strategies as st

IGNORE = 255


def calibration_counts(truth, found, confidence, ignore_index):
    """Ours, of arrays."""
    assert ignore_index == IGNORE
    tensors = (torch.from_numpy(np.asarray(ids).astype(np.int64)) for ids in (truth, found))
    sure = torch.from_numpy(np.asarray(confidence, np.float32))
    return counts_of_tensors(*tensors, sure, num_classes=100).numpy()


def pixels(seed, size=4000):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, size).astype(np.uint8)
    found = rng.integers(0, 4, size).astype(np.uint8)
    truth[rng.random(size) < 0.1] = IGNORE
    return truth, found, (0.25 + 0.75 * rng.random(size)).astype(np.float32)


def defined_ece(truth, found, confidence):
    """Guo et al. (2017), equation 3, pixel by pixel."""
    bins = [[] for _ in range(BINS)]
    for t, f, c in zip(truth, found, map(float, confidence), strict=True):
        if t != IGNORE:
            place = next(m for m in range(1, BINS + 1) if c <= m / BINS)
            bins[place - 1].append((t == f, c))
    total = sum(map(len, bins))
    return sum(abs(sum(hit for hit, _ in b) - math.fsum(c for _, c in b)) for b in bins) / total


@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_its_definition(seed):
    truth, found, confidence = pixels(seed)
    ours = Calibration.from_counts(calibration_counts(truth, found, confidence, IGNORE))
    assert ours.ece == pytest.approx(defined_ece(truth, found, confidence), abs=1e-7)
    assert int(ours.pixels.sum()) == (truth != IGNORE).sum()


@pytest.mark.parametrize("most", [1, 1000, 4000])
def test_pixels_that_are_counted_in_parts_add_up(most, monkeypatch):
    ids = pixels(3)
    expected = calibration_counts(*ids, IGNORE)
    cells = confusion_counts(*map(torch.from_numpy, ids[:2]), num_classes=4)
    monkeypatch.setattr(counts_module, "_PART", most)
    assert np.array_equal(calibration_counts(*ids, IGNORE), expected)
    assert torch.equal(confusion_counts(*map(torch.from_numpy, ids[:2]), num_classes=4), cells)
    assert cells.sum() == (ids[0] != IGNORE).sum()


def test_the_error_is_that_of_torchmetrics():
    classification = pytest.importorskip("torchmetrics.classification")
    rng = np.random.default_rng(5)
    logits = torch.tensor(rng.normal(0, 2, (5000, 6)), dtype=torch.float32)
    probabilities = logits.softmax(dim=1)
    truth = torch.tensor(rng.integers(0, 6, 5000))
    truth[::9] = IGNORE
    metric = classification.MulticlassCalibrationError(6, BINS, "l1", ignore_index=IGNORE)
    best = probabilities.max(dim=1)
    counts = calibration_counts(truth.numpy(), best.indices.numpy(), best.values.numpy(), IGNORE)
    theirs = float(metric(probabilities, truth))
    assert Calibration.from_counts(counts).ece == pytest.approx(theirs, abs=1e-5)


@given(st.integers(0, 1000), st.lists(st.integers(0, 4000), max_size=4))
def test_parts_in_any_order_add_up_to_the_same_integers(seed, cuts):
    whole = pixels(seed)
    edges = [0, *sorted(cuts), 4000]
    parts = [
        calibration_counts(*(array[a:b] for array in whole), IGNORE)
        for a, b in itertools.pairwise(edges)
    ]
    assert np.array_equal(sum(reversed(parts)), calibration_counts(*whole, IGNORE))


@pytest.mark.parametrize(
    ("confidence", "place"),
    [
        (0.0, 0),
        (np.nan, 0),
        (1 / BINS, 0),
        (0.5, 7),
        (1.0, BINS - 1),
        (1.0000001, BINS - 1),
        (1e-9, 0),
    ],
)
def test_edges_belong_to_the_bin_below(confidence, place):
    counts = calibration_counts(*np.zeros((2, 1), int), np.array([confidence]), IGNORE)
    assert counts[:, 0].tolist() == [int(i == place) for i in range(BINS)]
    assert counts[place, 2] == round(min(np.nan_to_num(confidence), 1) * UNIT)


def test_a_sure_and_right_network_has_no_error_and_a_sure_and_wrong_one_has_1():
    for found, expected in ((0, 0), (1, 1)):
        counts = calibration_counts(np.zeros(9, int), np.full(9, found), np.ones(9), IGNORE)
        assert Calibration.from_counts(counts).ece == expected


def test_sums_of_very_many_pixels_are_exact():
    counts = np.zeros((BINS, 3), np.int64)
    counts[-1] = 5 * 10**11, 5 * 10**11, 5 * 10**11 * UNIT
    assert Calibration.from_counts(counts).ece == 0


def test_without_pixels_there_is_no_error():
    told = Calibration.from_counts(np.zeros((BINS, 3), np.int64)).to_dict()
    assert told["ECE"] is None
    assert told["bins"][0] == {
        "above": 0, "up_to": 1 / BINS, "pixels": 0, "accuracy": None, "confidence": None,
    }  # fmt: skip
