"""Boundary IoU against the definition of its paper, class by class."""

import math

import cv2
import numpy as np
import pytest
from cocoseg.infer.evaluate.boundary import boundary_counts, boundary_iou, boundary_width
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

IGNORE = 255


def authors_boundary(mask):
    """`mask_to_boundary` of the authors' boundary_iou_api: a mask less its erosion, of a frame."""
    height, width = mask.shape
    dilation = max(1, round(0.02 * math.sqrt(height**2 + width**2)))
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=dilation)
    return mask - eroded[1:-1, 1:-1]


def authors_counts(truth, found, num_classes):
    rows = []
    for c in range(num_classes):
        g, p = (authors_boundary((labels == c).astype(np.uint8)) for labels in (truth, found))
        rows.append([int((g & p).sum()), int(g.sum()), int(p.sum())])
    return rows


def blobs(elements, dtype=np.uint8):
    """Label maps of some regions: up to 48 x 60 pixels."""
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 5))
    sides = st.integers(1, 12)
    small = shapes.flatmap(
        lambda shape: hnp.arrays(dtype, shape, elements=st.sampled_from(elements))
    )
    return st.tuples(small, sides).map(
        lambda pair: np.kron(pair[0], np.ones((pair[1],) * 2, dtype))
    )


@given(blobs([0, 1, 2, 3]), st.integers(-3, 3), st.integers(-3, 3))
def test_counts_are_those_of_the_authors_code_for_each_class(truth, down, right):
    found = np.roll(truth, (down, right), (0, 1))
    assert boundary_counts(truth, found, 5, IGNORE).tolist() == authors_counts(truth, found, 5)


@pytest.mark.parametrize("shape", [(480, 640), (375, 500)])
def test_counts_of_large_pictures_are_those_of_the_authors_code(shape):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 4, (6, 8)).astype(np.uint8)
    truth = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_NEAREST)
    found = np.roll(truth, (5, -9), (0, 1))
    assert boundary_counts(truth, found, 4, IGNORE).tolist() == authors_counts(truth, found, 4)


@pytest.mark.parametrize(
    ("size", "width"), [((1, 1), 1), ((480, 640), 16), ((375, 500), 12), ((3000, 4000), 100)]
)
def test_the_width_is_two_percent_of_the_diagonal(size, width):
    assert boundary_width(*size) == width


@given(blobs([0, 1, 2, IGNORE]), st.randoms(use_true_random=False))
def test_a_perfect_prediction_scores_1_whatever_it_says_of_ignored_pixels(truth, dice):
    found = np.where(truth == IGNORE, dice.choice([0, 1, 2, IGNORE]), truth).astype(np.uint8)
    both, of_truth, of_prediction = boundary_counts(truth, found, 3, IGNORE).T
    assert both.tolist() == of_truth.tolist() == of_prediction.tolist()


@given(blobs([0, 1, 2, IGNORE]), blobs([0, 1, 2, IGNORE]))
def test_counts_of_two_images_add_up_and_no_class_has_more_than_its_pixels(one, two):
    counts = [boundary_counts(m, np.roll(m, 1, 0), 3, IGNORE) for m in (one, two)]
    for mask, each in zip((one, two), counts, strict=True):
        assert each.dtype == np.int64
        assert (each[:, 0] <= each[:, 1:].min(axis=1)).all()
        assert (each[:, 1] <= np.bincount(mask[mask < 3], minlength=3)).all()
    iou = boundary_iou(sum(counts))
    assert np.all((iou >= 0) & (iou <= 1) | np.isnan(iou))


@given(blobs([0, 1, 299], np.uint16))
def test_numbers_of_classes_do_not_matter(truth):
    found = np.roll(truth, 2, 1)
    numbers = np.arange(300)
    numbers[[0, 1, 299]] = 65533, 299, 7
    before = boundary_counts(truth, found, 300, 65535)
    after = boundary_counts(
        numbers[truth].astype(np.uint16), numbers[found].astype(np.uint16), 65534, 65535
    )
    assert np.array_equal(after[numbers[[0, 1, 299]]], before[[0, 1, 299]])


def test_pixels_without_a_prediction_are_in_no_predicted_boundary():
    truth = np.ones((20, 20), np.uint8)
    found = np.full((20, 20), IGNORE, np.uint8)
    both, of_truth, of_prediction = boundary_counts(truth, found, 2, IGNORE)[1]
    assert (both, of_truth, of_prediction) == (0, 20 * 20 - 18 * 18, 0)


def test_without_any_pixel_there_is_no_score():
    counts = boundary_counts(*np.full((2, 5, 5), IGNORE, np.uint8), 3, IGNORE)
    assert not counts.any()
    assert np.isnan(boundary_iou(counts)).all()
