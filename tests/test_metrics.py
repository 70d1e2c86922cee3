"""Scores against their definitions, counted pixel by pixel."""

import math

import numpy as np
import pytest
import torch
from cocoseg.metrics import Scores
from cocoseg.model.counts import confusion_counts
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

IGNORE = 255


def confusion_matrix(truth, prediction, num_classes, ignore_index, no_prediction=None):
    """Ours, of arrays; without the column of pixels that have no prediction unless asked for."""
    assert ignore_index >= num_classes
    tensors = (torch.from_numpy(np.asarray(ids).astype(np.int64)) for ids in (truth, prediction))
    counts = confusion_counts(*tensors, num_classes).numpy()
    return counts if no_prediction is not None else counts[:, :-1]


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


def test_shapes_that_differ_are_api_misuse():
    with pytest.raises(ValueError, match="differ in shape"):
        confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), 3, IGNORE)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_what_is_no_train_id_is_left_out_or_no_prediction(dtype):
    truth, found = np.array([[0, 3, 200, 2, 255]], dtype), np.array([[3, 0, 1, 255, 0]], dtype)
    counts = confusion_counts(torch.from_numpy(truth), torch.from_numpy(found), 3)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1]]


def mmseg_scores(pairs, num_classes, ignore_index):
    """mmsegmentation's `IoUMetric` (`mmseg/evaluation/metrics/iou_metric.py`), in NumPy.

    `intersect_and_union` of each image by histograms, sums over images, `total_area_to_metrics`.
    """
    intersect, union, predicted, labels = np.zeros((4, num_classes))
    bins = np.arange(num_classes + 1)
    for label, pred in pairs:
        kept = label != ignore_index
        pred, label = pred[kept].astype(int), label[kept].astype(int)
        # torch.histc(min=0, max=num_classes - 1) leaves out what is beyond
        hits, _ = np.histogram(pred[pred == label], bins)
        area_pred, _ = np.histogram(pred[pred < num_classes], bins)
        area_label, _ = np.histogram(label, bins)
        intersect, union = intersect + hits, union + area_pred + area_label - hits
        predicted, labels = predicted + area_pred, labels + area_label
    with np.errstate(all="ignore"):
        return {
            "aAcc": intersect.sum() / labels.sum(),
            "IoU": intersect / union,
            "Acc": intersect / labels,
            "Dice": 2 * intersect / (predicted + labels),
        }


@st.composite
def images(draw):
    """Some images of up to 300 classes, of which few occur; some pixels without a prediction."""
    num_classes = draw(st.sampled_from([1, 2, 5, 81, 255, 256, 300]))
    ignore_index = 255 if num_classes <= 255 else 65535
    dtype = np.uint8 if ignore_index == 255 else np.uint16
    few = draw(st.lists(st.integers(0, num_classes - 1), min_size=1, max_size=5))
    elements = st.sampled_from([*few, ignore_index])
    shapes = st.tuples(st.integers(0, 5), st.integers(1, 5))
    pairs = [
        tuple(draw(hnp.arrays(dtype, shape, elements=elements)) for _ in range(2))
        for shape in draw(st.lists(shapes, min_size=1, max_size=3))
    ]
    return pairs, num_classes, ignore_index


def matrix_of(pairs, num_classes, ignore_index):
    return sum(
        confusion_matrix(truth, found, num_classes, ignore_index, no_prediction=ignore_index)
        for truth, found in pairs
    )


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
@given(images())
def test_scores_are_those_of_mmsegmentation(case):
    pairs, num_classes, ignore_index = case
    ours = Scores.from_confusion(matrix_of(*case))
    theirs = mmseg_scores(pairs, num_classes, ignore_index)
    for mine, name in ((ours.iou, "IoU"), (ours.accuracy, "Acc"), (ours.dice, "Dice")):
        np.testing.assert_allclose(mine, theirs[name], rtol=1e-12)
    for mine, name in ((ours.miou, "IoU"), (ours.mean_accuracy, "Acc"), (ours.mean_dice, "Dice")):
        np.testing.assert_allclose(mine, np.nanmean(theirs[name]), rtol=1e-12)
    np.testing.assert_allclose(ours.pixel_accuracy, theirs["aAcc"], rtol=1e-12)


@given(images())
def test_frequency_weighted_iou_weighs_the_iou_of_each_pixel_s_class(case):
    pairs, _, ignore_index = case
    ours = Scores.from_confusion(matrix_of(*case))
    pixels = np.concatenate([truth[truth != ignore_index] for truth, _ in pairs])
    expected = ours.iou[pixels].mean() if pixels.size else math.nan
    np.testing.assert_allclose(ours.frequency_weighted_iou, expected, rtol=1e-9)


@pytest.mark.parametrize("num_classes", [2, 7, 300])
def test_scores_are_those_of_torchmetrics(num_classes):
    torch = pytest.importorskip("torch")
    classification = pytest.importorskip("torchmetrics.classification")
    ignored = 65535
    rng = np.random.default_rng(num_classes)
    truth = rng.integers(0, num_classes, (3, 40, 50))
    found = np.where(
        rng.random(truth.shape) < 0.6, truth, rng.integers(0, num_classes, (3, 40, 50))
    )
    truth[rng.random(truth.shape) < 0.1] = ignored
    ours = Scores.from_confusion(confusion_matrix(truth, found, num_classes, ignored))

    def theirs(name, average):
        options = {"num_classes": num_classes, "average": average, "ignore_index": ignored}
        metric = getattr(classification, name)(**options)
        return metric(torch.tensor(found), torch.tensor(truth)).numpy()

    np.testing.assert_allclose(ours.iou, theirs("MulticlassJaccardIndex", None), rtol=1e-5)
    np.testing.assert_allclose(ours.miou, theirs("MulticlassJaccardIndex", "macro"), rtol=1e-5)
    np.testing.assert_allclose(ours.accuracy, theirs("MulticlassAccuracy", None), rtol=1e-5)
    np.testing.assert_allclose(
        ours.pixel_accuracy, theirs("MulticlassAccuracy", "micro"), rtol=1e-5
    )
    np.testing.assert_allclose(ours.dice, theirs("MulticlassF1Score", None), rtol=1e-5)
    weighted = theirs("MulticlassJaccardIndex", "weighted")
    np.testing.assert_allclose(ours.frequency_weighted_iou, weighted, rtol=1e-5)


@given(images(), st.randoms(use_true_random=False))
def test_scores_follow_their_classes_when_these_are_renumbered(case, dice):
    pairs, num_classes, ignore_index = case
    order = list(range(num_classes))
    dice.shuffle(order)
    numbers = np.full(ignore_index + 1, ignore_index, np.uint16)
    numbers[:num_classes] = order
    before = Scores.from_confusion(matrix_of(*case))
    renumbered = [(numbers[truth], numbers[found]) for truth, found in pairs]
    after = Scores.from_confusion(matrix_of(renumbered, num_classes, ignore_index))
    np.testing.assert_array_equal(after.iou[order], before.iou)
    np.testing.assert_array_equal(after.dice[order], before.dice)
    np.testing.assert_allclose(after.miou, before.miou, rtol=1e-12)
    assert same(after.pixel_accuracy, before.pixel_accuracy)


def test_pixels_without_a_prediction_are_misses_of_their_class_and_nobody_s_false_positives():
    truth, found = np.array([1, 1, 2, IGNORE]), np.array([1, IGNORE, 2, IGNORE])
    matrix = confusion_matrix(truth, found, 3, IGNORE, no_prediction=IGNORE)
    assert matrix.tolist() == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 1, 0]]
    scores = Scores.from_confusion(matrix)
    assert scores.iou[1:].tolist() == [0.5, 1]
    assert scores.pixel_accuracy == pytest.approx(2 / 3)
