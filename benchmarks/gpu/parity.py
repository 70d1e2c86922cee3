"""The GPU against the CPU: losses, gradients, masks, counts, upsampling."""

# B batch, C classes, H W pixels of the image, h w of the network's input or output

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from bench import (
    CPU,
    NO_DROPOUT,
    TAXONOMY,
    Bench,
    Learner,
    at_most,
    draw_image,
    draw_mask,
    equal,
    ours_of,
    plain_network,
)
from cocoseg.infer.config import InferConfig
from cocoseg.infer.views import views_of
from cocoseg.model.counts import calibration_counts, confusion_counts
from cocoseg.model.precision import tf32
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.tiles import Tiling
from cocoseg.model.upsample import by_products
from measure import Row
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

_WEIGHTS = tuple(1 + (train_id % 7) / 7 for train_id in range(TAXONOMY.num_classes))
_LOSSES: tuple[dict[str, Any], ...] = (
    {"loss_type": "ce_dice"},
    {"loss_type": "ce"},
    {"loss_type": "dice"},
    {"loss_type": "focal"},
    {"loss_type": "focal", "class_weights": _WEIGHTS},
    {"loss_type": "ce", "class_weights": _WEIGHTS, "label_smoothing": 0.1},
    {"loss_type": "ce_dice", "ohem": 0.25},
)
_ROUNDING = 10.0
"""Times the CPU's own rounding error that a GPU's may be: it adds in another order."""
_LEAST = 1e-6
_HALF = {
    # Loss, gradient of the worst group of parameters, both relative.
    "bfloat16": (1e-2, 8e-2),
    "float16": (2e-3, 2e-2),
}


def training_step(bench: Bench) -> Iterator[Row]:
    """Compare the loss and the gradients of a step with those of float64 on the CPU."""
    networks = ("segformer-tiny",) if bench.tiny else ("segformer-tiny", "segformer-b0")
    batch, side = (2, 32) if bench.tiny else (2, 128)
    losses = _LOSSES[::3] if bench.tiny else _LOSSES
    for name in networks:
        theirs = plain_network(name, **NO_DROPOUT)
        for settings in losses if name == "segformer-tiny" else _LOSSES[:1]:
            exact = _gradients(_in_float64, theirs, batch, side, CPU, settings, "float32")
            host = _gradients(_as_it_is, theirs, batch, side, CPU, settings, "float32")
            options = [key for key in settings if key != "loss_type"]
            what = " with ".join([f"{name}, {settings['loss_type']}", *options])
            with tf32(False):
                found = _gradients(
                    _as_it_is, theirs, batch, side, bench.device, settings, "float32"
                )
            loss, group, error = _errors(exact, found)
            own_loss, _, own = _errors(exact, host)
            yield at_most(
                f"{what}, float32: gradient's relative error (largest: {group}; loss {loss:.1g})",
                error,
                max(_LEAST, _ROUNDING * own),
                other=f"{own:.2g} (CPU)",
                and_also=loss <= max(_LEAST, _ROUNDING * own_loss),
            )
            for precision in _HALF if settings == _LOSSES[0] else ():
                if precision == "float16" and not bench.on_gpu:
                    continue  # convolutions of a CPU have none on every machine
                found = _gradients(
                    _as_it_is, theirs, batch, side, bench.device, settings, precision
                )
                loss, group, error = _errors(exact, found)
                of_loss, of_gradient = _HALF[precision]
                yield at_most(
                    f"{what}, {precision}: gradient's relative error (largest: {group}; loss "
                    f"{loss:.1g}, bar {of_loss:g})",
                    error,
                    of_gradient,
                    and_also=loss <= of_loss,
                )


class _Double(nn.Module):
    """Takes the float32 images of training."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.inner = network

    def forward(self, pixel_values: Tensor) -> Any:
        return self.inner(pixel_values=pixel_values.double())


def _in_float64(learner: Learner) -> None:
    learner.step.wrapped = _Double(learner.network)


def _as_it_is(learner: Learner) -> None:
    del learner


def _gradients(
    prepare: Any,
    theirs: nn.Module,
    batch: int,
    side: int,
    device: torch.device,
    settings: dict[str, Any],
    precision: str,
) -> tuple[float, dict[str, Tensor]]:
    """Take a step; return its loss and the gradient of each group of parameters, in float64."""
    network = ours_of(theirs)
    half = {} if precision == "float32" else {"amp_dtype": precision}
    learner = Learner(
        network.double() if prepare is _in_float64 else network,
        batch,
        side,
        device,
        use_amp=bool(half),
        **half,
        **settings,
    )
    prepare(learner)
    found: dict[str, Tensor] = {}

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        of_groups = {}
        for group in optimizer.param_groups:
            kind = "weights" if group["weight_decay"] else "norms and biases"
            gradients = [p.grad.detach().flatten().cpu().double() for p in group["params"]]
            of_groups[f"{group['part']}, {kind}"] = torch.cat(gradients)
        # After an overflow GradScaler calls a fused optimizer all the same.
        if all(gradient.isfinite().all() for gradient in of_groups.values()):
            found.update(of_groups)

    learner.step.optimizer.register_step_pre_hook(note)
    for _ in range(20):  # float16's loss scale is halved until the gradient fits
        loss = learner()
        if found:
            return loss, found
    raise RuntimeError(f"{precision}: every gradient overflowed")


def _errors(
    exact: tuple[float, dict[str, Tensor]], found: tuple[float, dict[str, Tensor]]
) -> tuple[float, str, float]:
    """Return the relative error of the loss, and the worst group of parameters and its."""
    of_groups = {
        name: float((found[1][name] - gradient).norm() / gradient.norm())
        for name, gradient in exact[1].items()
    }
    worst = max(of_groups, key=lambda name: of_groups[name])
    return abs(found[0] - exact[0]) / abs(exact[0]), worst, of_groups[worst]


_SHARES = {
    # Share of the pixels that differ; and where they do, by how much the log probability of the
    # class is below that of the CPU's, at most.
    "float32": (1e-4, 4e-3),  # ties: the probabilities are compared in float16, of 1e-3 twice
    "float16": (5e-3, 0.1),
    "bfloat16": (4e-2, 0.6),
}


def masks(bench: Bench) -> Iterator[Row]:
    """Compare masks of one view, of six, and of tiles with those of the CPU in float32."""
    side, height, width = (32, 48, 64) if bench.tiny else (256, 480, 640)
    theirs = plain_network("segformer-tiny" if bench.tiny else "segformer-b0").eval()
    network = _confident(ours_of(theirs), side)
    images = [draw_image(height, width, seed) for seed in range(1 if bench.tiny else 3)]
    preprocess = Preprocess(side)
    six = views_of(InferConfig())
    tiling = {"tiling": Tiling(height // 2, 0.25), "tile_above": height}
    cases: tuple[tuple[str, Any, dict[str, Any]], ...] = (
        ("one view", views_of(InferConfig(use_tta=False)), {}),
        ("6 views", six, {}),
        ("6 views of tiles", six, tiling),
    )
    expected = {}
    for what, views, options in cases:
        host = Predictor(network, preprocess, views, **options)
        expected[what] = _predicted(host, images, probabilities=True)
    on_device = network.to(bench.device)
    for precision, (share_bar, margin_bar) in _SHARES.items():
        if precision == "float16" and not bench.on_gpu:
            continue
        dtype = getattr(torch, precision)
        for what, views, options in cases:
            with tf32(False):
                device = Predictor(on_device, preprocess, views, precision=dtype, **options)
                found = _predicted(device, images)
            share, margin = _difference(expected[what], found)
            yield at_most(
                f"masks of {what}, {precision}: share of the pixels that differ (their log "
                f"probability is lower by up to {margin:.1g}, bar {margin_bar:g})",
                share,
                share_bar,
                and_also=margin <= margin_bar,
            )


def _confident(network: nn.Module, side: int) -> nn.Module:
    """Scale the classifier, so that some classes are far more probable than others."""
    model: Any = network
    x = Preprocess(side).normalizer()(torch.from_numpy(draw_image(side, side, 0))[None])
    with torch.inference_mode():
        deviation = float(model(pixel_values=x).logits.std())
    classifier = model.decode_head.classifier
    with torch.no_grad():
        classifier.weight.mul_(4 / deviation)
        classifier.bias.mul_(4 / deviation)
    return network


def _predicted(
    predictor: Predictor, images: list[NDArray[np.uint8]], *, probabilities: bool = False
) -> list[Any]:
    inputs = predictor.inputs(images)
    predictions = predictor.predictions(inputs, probabilities=probabilities)
    return [one.to_host().wait() for one in predictions]


def _difference(expected: list[Any], found: list[Any]) -> tuple[float, float]:
    """Return the share of pixels that differ, and by how much the worst of them is off."""
    pixels = differing = 0
    margin = 0.0
    for reference, other in zip(expected, found, strict=True):
        rows, columns = np.nonzero(reference.mask != other.mask)
        pixels, differing = pixels + reference.mask.size, differing + len(rows)
        if len(rows):
            p = reference.probabilities[rows, columns].astype(np.float64)
            here = np.arange(len(rows))
            best = p[here, reference.mask[rows, columns]]
            chosen = np.maximum(p[here, other.mask[rows, columns]], 1e-8)
            margin = max(margin, float(np.log(best / chosen).max()))
    return differing / pixels, margin


def counts(bench: Bench) -> Iterator[Row]:
    """Count the same masks and confidences on both."""
    size = (48, 64) if bench.tiny else (480, 640)
    for classes in (TAXONOMY.num_classes, 300):
        truth = draw_mask(*size, seed=0, classes=classes)
        truth[:2] = 65535 if classes > 256 else 255
        generator = torch.Generator().manual_seed(1)
        random = torch.randint(0, classes + 2, size, generator=generator)
        prediction = torch.where(torch.rand(size, generator=generator) < 0.5, truth, random)
        confidence = torch.rand(size, generator=generator)
        confidence[0] = torch.linspace(0, 1, size[1])
        kind = torch.uint8 if classes <= 256 else torch.int32
        host = (truth.to(kind), prediction.clamp(max=65535).to(kind))
        device = tuple(one.to(bench.device) for one in host)
        same = torch.equal(
            confusion_counts(*device, classes).cpu(), confusion_counts(*host, classes)
        )
        yield equal(f"confusion counts, {classes} classes", same)
        same = torch.equal(
            calibration_counts(*device, confidence.to(bench.device), classes).cpu(),
            calibration_counts(*host, confidence, classes),
        )
        yield equal(f"calibration counts, {classes} classes", same)


def upsampling(bench: Bench) -> Iterator[Row]:
    """Compare the two products with F.interpolate in float64, forward and backward."""
    low, channels = (8, 5) if bench.tiny else (20, 81)
    # Rounded once: half a unit in the last place, 2^-9 of bfloat16, is 0.2 % at most.
    bars = {torch.float32: 1e-6, torch.bfloat16: 2.5e-3, torch.float16: 3e-4}
    for dtype, bar in bars.items():
        yield _upsampling_row(bench, dtype, low, channels, bar)


def upsampling_with_tf32(bench: Bench) -> Iterator[Row]:
    """Compare it where `model.tf32` allows TF32, which upsampling does not use; and afterwards."""
    with tf32(True):
        row = _upsampling_row(bench, torch.float32, 20, 5, 1e-6)
        yield dataclasses.replace(row, what=f"model.tf32: {row.what}")
    with tf32(False):
        row = _upsampling_row(bench, torch.float32, 20, 5, 1e-6)
        yield dataclasses.replace(row, what=f"after it: {row.what}")


def _upsampling_row(bench: Bench, dtype: torch.dtype, low: int, channels: int, bar: float) -> Row:
    forward = backward = 0.0
    for factor in (2, 4, 8):
        errors = _upsampling_errors(bench.device, dtype, channels, low, factor * low)
        forward, backward = max(forward, errors[0]), max(backward, errors[1])
    name = str(dtype).removeprefix("torch.")
    return at_most(
        f"upsampling × 2, 4, 8, {name}: gradient's relative error (rms; forward {forward:.1g})",
        backward,
        bar,
        and_also=forward <= bar,
    )


def _upsampling_errors(
    device: torch.device, dtype: torch.dtype, channels: int, low: int, high: int
) -> tuple[float, float]:
    generator = torch.Generator().manual_seed(high)
    x = torch.randn(2, channels, low, low, generator=generator).to(dtype)
    d = torch.randn(2, channels, high, high, generator=generator).to(dtype)
    exact = x.double().requires_grad_()
    large = F.interpolate(exact, (high, high), mode="bilinear", align_corners=False)
    large.backward(d.double())
    mine = x.to(device).requires_grad_()
    out = by_products(mine, high, high)
    out.backward(d.to(device))
    assert mine.grad is not None
    assert exact.grad is not None
    return _rms(out.detach(), large.detach()), _rms(mine.grad, exact.grad)


def _rms(found: Tensor, exact: Tensor) -> float:
    return float((found.cpu().double() - exact).norm() / exact.norm())
