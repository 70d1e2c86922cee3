"""Rows of the photograph from logits: as PyTorch's own, at full resolution, in little memory."""

import numpy as np
import pytest
import torch
from cocoseg.model import fuse
from cocoseg.model.fuse import Piece, class_strips, probability_strips, read_strips
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F


def logits(classes: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    return 5 * torch.randn(classes, height, width, generator=torch.Generator().manual_seed(seed))


def theirs(low: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Upsampled by PyTorch in float64, shape (C, H, W)."""
    return F.interpolate(low[None].double(), (height, width), mode="bilinear")[0]


def whole(strips) -> torch.Tensor:
    return torch.cat(list(strips)).permute(2, 0, 1)


sides = st.integers(1, 70)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 5), sides, sides, sides, sides)
def test_rows_are_those_of_pytorch(classes: int, h: int, w: int, height: int, width: int) -> None:
    low = logits(classes, h, w)
    got = whole(class_strips(low, height, width))
    assert got.dtype == torch.float32
    assert (got - theirs(low, height, width)).abs().max() <= 1e-5


@pytest.mark.parametrize(("height", "width"), [(2000, 3), (3, 3000), (1, 20_000), (20_000, 1)])
def test_far_from_the_origin_rows_are_as_exact(height: int, width: int) -> None:
    """Where PyTorch's float32 is 100 times less exact."""
    low = logits(3, min(160, height), min(160, width))
    expected = theirs(low, height, width)
    got = whole(class_strips(low, height, width))
    assert (got - expected).abs().max() <= 5e-6


@pytest.mark.parametrize("numbers", [1, 1000, 2**30])
@pytest.mark.parametrize("views", [1, 3])
def test_how_many_rows_a_strip_has_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, numbers: int, views: int
) -> None:
    low = [logits(4, 9 + i, 7 + i, i) for i in range(views)]
    piece = Piece(low, 0, 0, 37, 23)
    expected = sum(theirs(one, 37, 23).softmax(0) for one in low) / views
    monkeypatch.setattr(fuse, "_STRIP_CPU", numbers)
    strips = list(probability_strips([piece], range(37), 23))
    assert len(strips) == {1: 37, 1000: 4, 2**30: 1}[numbers]
    assert (whole(strips) - expected).abs().max() <= 1e-6


def test_rows_from_the_middle_are_those_rows() -> None:
    piece = Piece((logits(4, 9, 7),), 0, 0, 40, 23)
    every = whole(probability_strips([piece], range(40), 23))
    some = whole(probability_strips([piece], range(13, 29), 23))
    assert torch.equal(some, every[:, 13:29])


def test_pieces_count_as_their_weights_say() -> None:
    """Two pieces side by side that share the columns 4 to 6, and one above the other."""
    share = torch.tensor([1, 1, 1, 1, 0.75, 0.25])
    low = logits(3, 4, 4, 1), logits(3, 4, 4, 2)
    left = Piece(low[:1], 0, 0, 5, 6, torch.ones(5), share)
    weights = torch.tensor([0.25, 0.75, 1, 1, 1, 1])
    right = Piece(low[1:], 0, 4, 5, 6, torch.ones(5), weights)
    got = whole(probability_strips([left, right], range(5), 10))
    a, b = (theirs(one, 5, 6).softmax(0) for one in low)
    assert (got[:, :, :4] - a[:, :, :4]).abs().max() <= 1e-6
    assert (got[:, :, 6:] - b[:, :, 2:]).abs().max() <= 1e-6
    middle = a[:, :, 4:] * share[4:] + b[:, :, :2] * weights[:2]
    assert (got[:, :, 4:6] - middle).abs().max() <= 1e-6
    assert (got.sum(0) - 1).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_taken(dtype: torch.dtype) -> None:
    low = logits(3, 5, 6).to(dtype)
    got = whole(class_strips(low, 11, 13))
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (got - theirs(low, 11, 13)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("classes", "dtype"), [(2, np.uint8), (256, np.uint8), (257, np.int32), (300, np.int32)]
)
def test_a_mask_holds_the_best_class(classes: int, dtype: type) -> None:
    scores = torch.zeros(2, 3, classes)
    scores[0, 1, classes - 1] = 1
    scores[0, 0, 0] = scores[0, 2, 0] = scores[1, :, 0] = 0.5
    mask = read_strips([scores[:1], scores[1:]], (2, 3), of_logits=True).mask.numpy()
    assert mask.dtype == dtype
    assert mask.tolist() == [[0, classes - 1, 0], [0, 0, 0]]
