"""Losses against a textbook's formulas in float64: values and gradients, however they are cut."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cocoseg.errors import ConfigError
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train.config import TrainConfig
from cocoseg.train.losses import LOSSES
from cocoseg.train.losses.pixels import score_pixels
from cocoseg.train.losses.step import Denominators, StepLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

IGNORE, CLASSES = 255, 81
WEIGHTS = tuple((i * 7 % 11) / 4 for i in range(CLASSES))  # some are 0

CASES: list[dict[str, Any]] = [
    {"loss_type": "ce"},
    {"loss_type": "ce", "class_weights": WEIGHTS},
    {"loss_type": "ce", "label_smoothing": 0.2},
    {"loss_type": "ce", "label_smoothing": 0.1, "class_weights": WEIGHTS},
    {"loss_type": "ce", "ohem": 0.3},
    {"loss_type": "ce", "ohem": 0.5, "class_weights": WEIGHTS, "label_smoothing": 0.1},
    {"loss_type": "dice"},
    {"loss_type": "ce_dice"},
    {"loss_type": "ce_dice", "class_weights": WEIGHTS, "label_smoothing": 0.1, "ohem": 0.7},
    {"loss_type": "focal"},
    {"loss_type": "focal", "class_weights": WEIGHTS},
]


def name_of(case: dict[str, Any]) -> str:
    return "-".join([case["loss_type"], *(key for key in case if key != "loss_type")])


each_case = pytest.mark.parametrize("case", CASES, ids=name_of)


# ---- the textbook


def cross_entropy(log_p_C: Tensor, y: int, w_C: Tensor, smoothing: float) -> Tensor:
    spread = -(w_C * log_p_C).sum() / CLASSES
    return (1 - smoothing) * w_C[y] * -log_p_C[y] + smoothing * spread


def focal(log_p_C: Tensor, y: int, w_C: Tensor, smoothing: float) -> Tensor:
    return w_C[y] * (1 - log_p_C[y].exp()) ** 2 * -log_p_C[y]


FORMULAS: dict[str, Callable[[Tensor, int, Tensor, float], Tensor]] = {
    "ce": cross_entropy,
    "ce_dice": cross_entropy,
    "focal": focal,
}
"""Value of a valid pixel of class y; without one, a loss has a value of the image alone."""


def textbook(logits: Tensor, masks: Tensor, case: dict[str, Any]) -> Tensor:
    """The loss of a whole batch at once; logits of any size, masks int64."""
    up = F.interpolate(logits, masks.shape[1:], mode="bilinear", align_corners=False)
    weights = case.get("class_weights")
    w = torch.ones(CLASSES) if weights is None else torch.tensor(weights)
    w = w.to(logits.dtype)
    log_p = up.log_softmax(dim=1)
    kind, smoothing, ohem = case["loss_type"], case.get("label_smoothing", 0.0), case.get("ohem", 1)
    numerator, denominator, dices = logits.new_zeros(()), 0.0, []
    for image, mask in zip(log_p, masks, strict=True):
        values, sizes = [], []
        for i, j in (mask != IGNORE).nonzero().tolist():
            y, here = int(mask[i, j]), image[:, i, j]
            value = FORMULAS[kind](here, y, w, smoothing) if kind in FORMULAS else 0 * here[y]
            values.append((-here[y].item(), value, float(w[y])))
        if ohem < 1:
            values.sort(key=lambda entry: -entry[0])
            values = values[: math.ceil(ohem * len(values))]
            sizes = [1.0] * len(values)
        else:
            sizes = [size for _, _, size in values]
        numerator = numerator + sum((value for _, value, _ in values), logits.new_zeros(()))
        denominator += sum(sizes)
        valid = mask != IGNORE
        terms = []
        for c in mask[valid].unique():
            p, g = image[c][valid].exp(), (mask[valid] == c).to(logits.dtype)
            terms.append(1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1))
        if terms:
            dices.append(torch.stack(terms).mean())
    loss = numerator / denominator if denominator and kind in FORMULAS else 0 * logits.sum()
    if kind in ("dice", "ce_dice") and dices:
        loss = loss + torch.stack(dices).mean()
    return loss


# ---- ours, as a step cuts it


def step_loss(case: dict[str, Any]) -> StepLoss:
    return StepLoss.of(TrainConfig(**case), coco_taxonomy(), case.get("class_weights"))


def divisors(loss: StepLoss, masks: Tensor) -> tuple[float, float]:
    found = [loss.denominators.of(mask.numpy()) for mask in masks]
    return sum(pixels for pixels, _ in found), sum(images for _, images in found)


def ours(logits: Tensor, masks: Tensor, case: dict[str, Any], parts: list[slice]) -> Tensor:
    loss = step_loss(case)
    pixels, images = divisors(loss, masks)
    return torch.stack([loss(logits[p], masks[p], pixels, images) for p in parts]).sum()


def scene(
    images: int,
    low: tuple[int, int],
    high: tuple[int, int],
    ignored: float = 0.3,
    classes: int = CLASSES,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, CLASSES, *low, generator=generator, dtype=torch.float64)
    masks = torch.randint(0, classes, (images, *high), generator=generator)
    shares = ignored * torch.arange(images) / max(1, images - 1)  # unevenly
    masks[torch.rand(masks.shape, generator=generator) < shares[:, None, None]] = IGNORE
    return logits, masks


def assert_same(logits: Tensor, masks: Tensor, case: dict[str, Any], parts: list[slice]) -> None:
    wanted, found = (logits.clone().requires_grad_() for _ in range(2))
    expected = textbook(wanted, masks, case)
    value = ours(found, masks, case, parts)
    expected.backward()
    value.backward()
    assert value.item() == pytest.approx(expected.item(), rel=1e-10, abs=1e-12)
    assert wanted.grad is not None
    assert found.grad is not None
    largest = float(wanted.grad.abs().max())
    assert float((found.grad - wanted.grad).abs().max()) <= 1e-10 * largest + 1e-15


@each_case
def test_value_and_gradient_are_the_textbooks(case: dict[str, Any]) -> None:
    logits, masks = scene(3, (4, 5), (9, 13), classes=6)
    assert_same(logits, masks, case, [slice(0, 3)])


@each_case
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("accumulation", [1, 2, 3])
def test_every_cut_of_a_global_batch_adds_up(
    case: dict[str, Any], ranks: int, accumulation: int
) -> None:
    """Twelve images, two of them wholly ignored."""
    logits, masks = scene(12, (2, 2), (4, 4), ignored=0.9, classes=5, seed=ranks)
    masks[[3, 11]] = IGNORE
    size = max(1, 12 // (ranks * accumulation))
    parts = [slice(first, first + size) for first in range(0, 12, size)]
    assert_same(logits, masks, case, parts)


@settings(max_examples=40, deadline=None)
@given(
    case=st.sampled_from(CASES),
    low=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    high=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    ignored=st.sampled_from([0.0, 0.5, 1.0]),
    classes=st.sampled_from([1, 2, CLASSES]),
    seed=st.integers(0, 2**31),
)
def test_any_size_and_any_truth(
    case: dict[str, Any],
    low: tuple[int, int],
    high: tuple[int, int],
    ignored: float,
    classes: int,
    seed: int,
) -> None:
    """Upsampling, downsampling, neither; one class alone; few or no valid pixels."""
    logits, masks = scene(2, low, high, ignored, classes, seed)
    assert_same(logits, masks, case, [slice(0, 1), slice(1, 2)])


@pytest.mark.parametrize("case", CASES[:4], ids=name_of)
def test_torch_agrees_where_it_has_the_loss(case: dict[str, Any]) -> None:
    logits, masks = scene(2, (8, 8), (8, 8))
    weights = case.get("class_weights")
    expected = F.cross_entropy(
        logits,
        masks,
        None if weights is None else torch.tensor(weights, dtype=torch.float64),
        ignore_index=IGNORE,
        label_smoothing=case.get("label_smoothing", 0.0),
    )
    assert float(ours(logits, masks, case, [slice(0, 2)])) == pytest.approx(float(expected))


@each_case
def test_a_step_that_is_all_ignored_is_a_zero_of_the_graph(case: dict[str, Any]) -> None:
    logits = torch.randn(2, CLASSES, 4, 4, requires_grad=True)
    masks = torch.full((2, 8, 8), IGNORE)
    value = ours(logits, masks, case, [slice(0, 2)])
    value.backward()
    assert value.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@each_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(case: dict[str, Any], dtype: torch.dtype) -> None:
    """And nothing overflows: the sum over the pixels is beyond float16's 65,504."""
    logits, masks = scene(2, (32, 32), (128, 128), classes=4)
    half = (8 * logits).to(dtype).requires_grad_()
    single = half.detach().float().requires_grad_()
    values = [ours(one, masks, case, [slice(0, 2)]) for one in (half, single)]
    for value in values:
        (1024 * value).backward()
    assert values[0].dtype == torch.float32
    assert torch.equal(*values)
    assert half.grad is not None
    assert single.grad is not None
    assert half.grad.dtype == dtype
    assert torch.equal(half.grad, single.grad.to(dtype))
    assert half.grad.isfinite().all()


def test_without_a_gradient_none_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, masks = scene(2, (4, 4), (8, 8))
    with_gradient = ours(logits.clone().requires_grad_(), masks, CASES[7], [slice(0, 2)])
    monkeypatch.setattr(torch.autograd, "grad", None)
    without = ours(logits, masks, CASES[7], [slice(0, 2)])
    with torch.no_grad():
        switched_off = ours(logits.clone().requires_grad_(), masks, CASES[7], [slice(0, 2)])
    assert without.item() == switched_off.item() == with_gradient.item()
    assert not without.requires_grad


def test_a_gradient_of_the_gradient_is_refused() -> None:
    """Also of what comes before the loss: it would come out, and be wrong."""
    logits, masks = scene(1, (2, 2), (4, 4))
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    value = ours(logits * weight**2, masks, CASES[0], [slice(0, 1)])
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, weight, create_graph=True)


@each_case
def test_the_gradient_is_that_of_the_value(case: dict[str, Any]) -> None:
    logits, masks = scene(2, (1, 2), (3, 5), classes=6)

    def value(one: Tensor) -> Tensor:
        return 3 * ours(one, masks, case, [slice(0, 2)])

    assert torch.autograd.gradcheck(value, (logits.requires_grad_(),), fast_mode=True)


@each_case
def test_nothing_waits_for_the_device(case: dict[str, Any]) -> None:
    """A fake tensor has no values: to ask for one is an error."""
    loss = step_loss(case)
    with FakeTensorMode():
        logits = torch.empty(2, CLASSES, 3, 4, requires_grad=True)
        value = loss(logits, torch.empty(2, 6, 8, dtype=torch.int64), 70.0, 2.0)
        value.backward()
        assert logits.grad is not None
        assert logits.grad.shape == logits.shape


@each_case
def test_the_layout_of_the_logits_changes_nothing(case: dict[str, Any]) -> None:
    logits, masks = scene(2, (4, 5), (9, 13))
    values, gradients = [], []
    for layout in (torch.contiguous_format, torch.channels_last):
        laid = logits.clone(memory_format=layout).requires_grad_()
        values.append(ours(laid, masks, case, [slice(0, 2)]))
        values[-1].backward()
        gradients.append(laid.grad)
    torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-15)


@each_case
def test_the_same_logits_give_the_same_bits(case: dict[str, Any]) -> None:
    logits, masks = scene(2, (16, 16), (64, 64), classes=6)
    found = []
    for _ in range(3):
        single = logits.float().requires_grad_()
        value = ours(single, masks, case, [slice(0, 2)])
        value.backward()
        found.append((value.detach(), single.grad))
    for value, gradient in found[1:]:
        assert torch.equal(value, found[0][0])
        assert torch.equal(gradient, found[0][1])


# ---- the pass through the softmax


@pytest.mark.parametrize("strip", [1, 7, 2**20])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_pass_through_the_softmax_has_its_gradient(
    monkeypatch: pytest.MonkeyPatch, strip: int, weighted: bool
) -> None:
    from cocoseg.train.losses import pixels

    monkeypatch.setattr(pixels, "_STRIP", 5 * strip)
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    truth = torch.randint(0, 5, (3, 7), generator=generator)
    valid = torch.rand(3, 7, generator=generator) < 0.7
    weights = torch.rand(5, generator=generator, dtype=torch.float64) if weighted else None
    truth = torch.where(valid, truth, 0)

    def scores(z: Tensor) -> tuple[Tensor, ...]:
        found = score_pixels(z, truth, valid, sums=True, weights_C=weights)
        return tuple(found) if weighted else tuple(found[:2])

    assert torch.autograd.gradcheck(scores, (logits,))
    p = logits.softmax(dim=0)
    found = score_pixels(logits, truth, valid, sums=True, weights_C=weights)
    expected = p.gather(0, truth[None])[0].log() * valid
    assert torch.allclose(found.log_p, expected)
    assert torch.allclose(found.class_sums, (p * valid).sum(dim=(1, 2)))
    if weights is not None:
        all_classes = (weights[:, None, None] * p.log()).sum(dim=0) * valid
        assert torch.allclose(found.log_p_all, all_classes)


def test_large_logits_neither_overflow_nor_vanish() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0]).view(3, 1, 1).expand(3, 2, 2).clone().requires_grad_()
    truth = torch.tensor([[0, 1], [2, 0]])
    scores = score_pixels(logits, truth, torch.ones(2, 2, dtype=torch.bool), sums=True)
    assert scores.log_p.tolist() == [[0, -2e4], [-1e4, 0]]
    assert scores.class_sums.tolist() == [4, 0, 0]
    (scores.log_p.sum() + scores.class_sums.sum()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# ---- what the step divides by


def test_divisors_are_known_from_the_masks() -> None:
    mask = np.array([[0, 3, 3], [IGNORE, 80, IGNORE]], np.uint8)
    empty = np.full((2, 2), IGNORE, np.uint8)
    weights = tuple(float(i) for i in range(CLASSES))
    for denominators, expected in (
        (Denominators(IGNORE), 4),
        (Denominators(IGNORE, weights), 0 + 3 + 3 + 80),
        (Denominators(IGNORE, None, 0.3), 2),
        (Denominators(IGNORE, weights, 0.3), 2),
    ):
        assert denominators.of(mask) == (expected, 1)
        assert denominators.of(empty) == (0, 0)
    wide = np.array([[300, 65535]], np.uint16)
    assert Denominators(65535).of(wide) == (1, 1)
    assert Denominators(65535, (0.0,) * 300 + (2.5,)).of(wide) == (2.5, 1)


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3, 0.7, 1 / 3, 0.999])
def test_exactly_the_said_number_of_pixels_is_kept_with_ties_too(share: float) -> None:
    logits = torch.zeros(1, CLASSES, 5, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.randint(0, CLASSES, (1, 5, 5), generator=torch.Generator().manual_seed(1))
    masks[0, 0] = IGNORE
    case = {"loss_type": "ce", "ohem": share}
    value = ours(logits, masks, case, [slice(0, 1)])
    value.backward()
    kept = math.ceil(share * 20)
    assert value.item() == pytest.approx(math.log(CLASSES))
    assert logits.grad is not None
    touched = logits.grad[0].abs().sum(dim=0) > 0
    assert int(touched.sum()) == kept
    assert not touched[0].any()


def test_an_ignored_pixel_is_never_kept_instead_of_an_easy_one() -> None:
    """Where log p is 0 in both, as beyond all doubt it is; smoothing tells them apart."""
    masks = torch.randint(0, CLASSES, (1, 6, 6), generator=torch.Generator().manual_seed(3))
    logits = 1000 * F.one_hot(masks, CLASSES).permute(0, 3, 1, 2).double()
    masks[0, ::2] = IGNORE
    case = {"loss_type": "ce", "ohem": 0.9, "label_smoothing": 0.1}
    value = ours(logits, masks, case, [slice(0, 1)])
    assert value.item() == pytest.approx(0.1 / CLASSES * 1000 * (CLASSES - 1))


# ---- settings


@pytest.mark.parametrize(
    ("loss_type", "setting"),
    [
        ("dice", {"label_smoothing": 0.1}),
        ("dice", {"ohem": 0.5}),
        ("dice", {"class_weights": WEIGHTS}),
        ("focal", {"label_smoothing": 0.1}),
        ("focal", {"ohem": 0.5}),
    ],
)
def test_a_setting_without_effect_is_refused(loss_type: str, setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(ConfigError, match=rf"train\.{name} has no effect on .*{loss_type}; .*ce"):
        step_loss({"loss_type": loss_type, **setting})


def test_every_loss_of_the_registry_is_tested_and_known_to_the_settings() -> None:
    assert {case["loss_type"] for case in CASES} == set(LOSSES)
    for name, entry in LOSSES.items():
        tested = itertools.chain.from_iterable(case for case in CASES if case["loss_type"] == name)
        assert set(tested) - {"loss_type"} == set(entry.uses)
    with pytest.raises(ValueError, match=f"losses are {', '.join(LOSSES)}"):
        TrainConfig(loss_type="lovasz")
