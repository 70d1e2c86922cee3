"""Losses against formulas in plain NumPy, and their additivity over any cut of the batch."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from cocoseg.train.losses import DICE_SMOOTH, FOCAL_GAMMA, LOSSES, LossSums, step_counts
from hypothesis import given
from hypothesis import strategies as st

IGNORE = 255


def batch(seed: int, images: int = 5, classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, C, 7, 9) float64, targets with unevenly ignored pixels, one image's all."""
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 3, (images, classes, 7, 9)), requires_grad=True)
    target = rng.integers(0, classes, (images, 7, 9))
    for i in range(images):
        target[i][rng.random((7, 9)) < i / images] = IGNORE
    target[-1] = IGNORE
    return logits, torch.tensor(target)


def oracle(name: str, logits: np.ndarray, target: np.ndarray) -> float:
    """The mean loss of a whole batch by the formulas of the docstrings, pixel by pixel."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = shifted / shifted.sum(axis=1, keepdims=True)
    ce, focal, dices = [], [], []
    for image in range(len(logits)):
        seen = sorted(set(target[image].ravel().tolist()) - {IGNORE})
        valid = target[image] != IGNORE
        for y, x in zip(*np.nonzero(valid), strict=True):
            true = p[image, target[image, y, x], y, x]
            ce.append(-np.log(true))
            focal.append(-((1 - true) ** FOCAL_GAMMA) * np.log(true))
        if seen:
            ratios = []
            for c in seen:
                g = target[image] == c
                predicted = p[image, c][valid].sum()
                overlap = p[image, c][g].sum()
                ratios.append((2 * overlap + DICE_SMOOTH) / (predicted + g.sum() + DICE_SMOOTH))
            dices.append(1 - np.mean(ratios))
    values = {"ce": np.mean(ce), "focal": np.mean(focal), "dice": np.mean(dices)}
    return float(values[name] if name != "ce_dice" else values["ce"] + values["dice"])


def mean_loss(name: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    pixels, images = step_counts(target, IGNORE)
    return LOSSES[name](logits, target, IGNORE).mean(pixels, images)


@pytest.mark.parametrize("name", sorted(LOSSES))
@pytest.mark.parametrize("seed", range(3))
def test_a_loss_is_its_formula(name: str, seed: int) -> None:
    logits, target = batch(seed)
    value = mean_loss(name, logits, target).item()
    assert value == pytest.approx(oracle(name, logits.detach().numpy(), target.numpy()), rel=1e-12)


@pytest.mark.parametrize("name", sorted(LOSSES))
@given(seed=st.integers(0, 10**6), cuts=st.sets(st.integers(1, 4)))
def test_any_cut_into_micro_batches_gives_the_same_value_and_gradient(
    name: str, seed: int, cuts: set[int]
) -> None:
    logits, target = batch(seed)
    whole = mean_loss(name, logits, target)
    (gradient,) = torch.autograd.grad(whole, logits)

    pixels, images = step_counts(target, IGNORE)
    edges = [0, *sorted(cuts), len(target)]
    parts = [
        LOSSES[name](logits[a:b], target[a:b], IGNORE).mean(pixels, images)
        for a, b in pairwise(edges)
    ]
    total = torch.stack(parts).sum()
    (summed,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(total, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(summed, gradient, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_step_of_ignored_pixels_is_a_zero_that_is_connected(name: str) -> None:
    logits, target = batch(0)
    target = torch.full_like(target, IGNORE)
    value = mean_loss(name, logits, target)
    (gradient,) = torch.autograd.grad(value, logits)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradients_are_right(name: str) -> None:
    logits, target = batch(1, images=2, classes=3)
    assert torch.autograd.gradcheck(lambda x: mean_loss(name, x, target), (logits,))


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_ignored_pixels_change_nothing(name: str) -> None:
    logits, target = batch(2)
    other = logits.detach().clone()
    other.permute(0, 2, 3, 1)[target == IGNORE] = torch.randn(6, dtype=other.dtype) * 50
    assert mean_loss(name, logits, target).item() == pytest.approx(
        mean_loss(name, other, target).item(), rel=1e-12
    )


def test_counts_are_of_valid_pixels_and_of_images_that_have_one() -> None:
    _, target = batch(0)
    pixels, images = step_counts(target, IGNORE).tolist()
    assert pixels == int((target != IGNORE).sum())
    assert images == 4


def test_sums_without_a_valid_pixel_stay_finite() -> None:
    sums = LossSums(torch.zeros(()), torch.zeros(()))
    assert sums.mean(torch.zeros(()), torch.zeros(())).item() == 0
