"""The loss at full resolution against the plain formula: time, and peak memory."""

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from measure import Row

_LOSS = """
import statistics, sys, time
import torch
from measure import high_water
from torch.nn import functional as F
from cocoseg.processes import keep_freed_memory
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train.config import TrainConfig
from cocoseg.train.losses.step import StepLoss

IMAGES, CLASSES, SIDE = 4, 81, 640
torch.manual_seed(0)
low = torch.randn(IMAGES, CLASSES, SIDE // 4, SIDE // 4)
masks = torch.randint(0, CLASSES, (IMAGES, 8, 8))
masks = masks.repeat_interleave(SIDE // 8, 1).repeat_interleave(SIDE // 8, 2)
masks[torch.rand(masks.shape) < 0.05] = 255

def plain(logits):
    up = F.interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=False)
    valid = masks != 255
    truth = torch.where(valid, masks, 0)
    # In float32 from the start: F.one_hot's int64 would cost it 2 GB more, and twice the time.
    g = torch.zeros_like(up).scatter_(1, truth[:, None], valid[:, None].float())
    p = up.softmax(dim=1) * valid[:, None]
    sizes = g.sum(dim=(2, 3))
    ratio = (2 * (p * g).sum(dim=(2, 3)) + 1) / (p.sum(dim=(2, 3)) + sizes + 1)
    present = sizes > 0
    dice = ((1 - ratio) * present).sum(dim=1) / present.sum(dim=1)
    return F.cross_entropy(up, masks, ignore_index=255) + dice.mean()

loss = StepLoss.of(TrainConfig(loss_type="ce_dice"), coco_taxonomy(), None)
pixels = float((masks != 255).sum())

def ours(logits):
    return loss(logits, masks, pixels, IMAGES)

if sys.argv[2] == "kept":
    keep_freed_memory()
value = {"plain": plain, "ours": ours}[sys.argv[1]]
before = high_water()
times = []
for _ in range(4):
    logits = low.clone().requires_grad_()
    start = time.perf_counter()
    value(logits).backward()
    times.append(time.perf_counter() - start)
print(statistics.median(times[1:]), (high_water() - before) / 1e6)
"""
_ROUNDS = 3
_TIME_BAR = 0.91  # at most 1.1 times the plain formula's


def rows() -> Iterator[Row]:
    """Measure ce_dice forward and backward at batch 4, 81 classes, 640², A B A B."""
    what = "ce_dice forward and backward, 4 × 81 × 640²"
    found = [(_measured("plain", "kept"), _measured("ours", "kept")) for _ in range(_ROUNDS)]
    plain, ours = ([run[side] for run in found] for side in (0, 1))
    yield Row.speed(f"{what}: time", _middle(plain, 0), _middle(ours, 0), _TIME_BAR, "s")
    yield Row.speed(f"{what}: peak memory", _middle(plain, 1), _middle(ours, 1), 4, "MB")
    returned = [_measured("ours", "returned") for _ in range(_ROUNDS)]
    yield Row.speed(
        f"{what}, freed memory returned / kept: time",
        _middle(returned, 0),
        _middle(ours, 0),
        None,
        "s",
    )


def _middle(runs: list[tuple[float, float]], which: int) -> float:
    return statistics.median(run[which] for run in runs)


def _measured(side: str, memory: str) -> tuple[float, float]:
    """Return seconds and the growth of peak memory [MB], in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", _LOSS, side, memory],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    seconds, peak = done.stdout.split()
    return float(seconds), float(peak)
