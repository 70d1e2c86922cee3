"""Scores against their definitions, counted pixel by pixel."""

import math

import numpy as np
import pytest
from cocoseg.metrics import Scores, confusion_matrix
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

IGNORE = 255


def naive_scores(truth, prediction, num_classes):
    """IoU and recall of each class, and pixel accuracy, from sets; None where undefined."""
    counted = [(t, p) for t, p in zip(truth, prediction, strict=True) if t != IGNORE]
    ious, recalls = [], []
    for c in range(num_classes):
        true = {i for i, (t, _) in enumerate(counted) if t == c}
        found = {i for i, (_, p) in enumerate(counted) if p == c}
        ious.append(len(true & found) / len(true | found) if true | found else None)
        recalls.append(len(true & found) / len(true) if true else None)
    hits = sum(t == p for t, p in counted)
    return ious, recalls, hits / len(counted) if counted else None


def mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan


def same(ours, theirs):
    return ours == pytest.approx(math.nan if theirs is None else theirs, nan_ok=True)


@st.composite
def pixels(draw):
    num_classes = draw(st.integers(1, 6))
    size = draw(st.integers(0, 40))
    ids = st.integers(0, num_classes - 1)
    truth = draw(st.lists(st.one_of(ids, st.just(IGNORE)), min_size=size, max_size=size))
    return truth, draw(st.lists(ids, min_size=size, max_size=size)), num_classes


@given(pixels())
def test_every_score_is_its_definition(case):
    truth, prediction, num_classes = case
    matrix = confusion_matrix(
        np.array(truth, np.uint8), np.array(prediction, np.uint8), num_classes, IGNORE
    )
    scores = Scores.from_confusion(matrix)
    ious, recalls, pixel_accuracy = naive_scores(truth, prediction, num_classes)
    assert all(map(same, scores.iou, ious))
    assert all(map(same, scores.accuracy, recalls))
    assert same(scores.pixel_accuracy, pixel_accuracy)
    assert same(scores.miou, mean(ious))
    assert same(scores.miou_foreground, mean(ious[1:]))
    assert same(scores.mean_accuracy, mean(recalls))
    assert scores.pixels.tolist() == [truth.count(c) for c in range(num_classes)]


@given(
    hnp.arrays(np.uint8, (4, 6), elements=st.sampled_from([0, 1, 2, IGNORE])),
    hnp.arrays(np.uint8, (4, 6), elements=st.integers(0, 2)),
)
def test_the_matrix_of_parts_adds_up_to_the_matrix_of_all(truth, prediction):
    whole = confusion_matrix(truth, prediction, 3, IGNORE)
    parts = [confusion_matrix(t, p, 3, IGNORE) for t, p in zip(truth, prediction, strict=True)]
    assert whole.dtype == np.int64
    assert np.array_equal(sum(parts), whole)


def test_rows_are_the_truth():
    matrix = confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3, IGNORE)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_an_ignored_truth_hides_whatever_was_predicted():
    truth, prediction = np.array([IGNORE, 0]), np.array([2, 0])
    assert confusion_matrix(truth, prediction, 3, IGNORE).sum() == 1


def test_16_bit_masks_ignore_65535():
    truth = np.array([300, 65535, 255], np.uint16)
    matrix = confusion_matrix(truth, np.array([300, 1, 255], np.uint16), 301, 65535)
    assert (matrix[300, 300], matrix[255, 255], matrix.sum()) == (1, 1, 2)


def test_a_class_that_is_nowhere_is_in_no_mean():
    matrix = confusion_matrix(np.array([1, 1]), np.array([1, 1]), 81, IGNORE)
    scores = Scores.from_confusion(matrix)
    assert (scores.miou, scores.miou_foreground, scores.mean_accuracy) == (1, 1, 1)
    assert np.isnan(scores.iou[0])


def test_a_class_that_was_only_predicted_counts_as_0_in_miou_but_not_in_mean_accuracy():
    scores = Scores.from_confusion(confusion_matrix(np.array([1, 1]), np.array([1, 2]), 4, IGNORE))
    assert scores.miou == pytest.approx((0.5 + 0) / 2)
    assert scores.mean_accuracy == pytest.approx(0.5)


def test_when_all_is_ignored_every_score_is_undefined_and_null_in_json():
    matrix = confusion_matrix(np.full(9, IGNORE), np.zeros(9, int), 2, IGNORE)
    scores = Scores.from_confusion(matrix)
    assert all(map(math.isnan, (scores.miou, scores.pixel_accuracy, scores.mean_accuracy)))
    described = scores.to_dict(["background", "cat"])
    assert described["mIoU"] is None
    assert described["mIoU_foreground"] is None
    assert described["classes"][1] == {
        "train_id": 1, "name": "cat", "IoU": None, "accuracy": None, "Dice": None, "pixels": 0,
        "predicted_pixels": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), "differ in shape"),
        (np.array([3]), np.array([0]), "truth holds train id 3"),
        (np.array([0]), np.array([3]), "prediction holds train id 3"),
        (np.array([0]), np.array([IGNORE]), "prediction holds train id 255"),
        (np.array([-1]), np.array([0]), "truth holds train id -1"),
    ],
)
def test_values_that_are_no_train_ids_are_api_misuse(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion_matrix(truth, prediction, 3, IGNORE)
