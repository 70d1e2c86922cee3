"""Synchronizations with the GPU, kernels and copies, counted on the device itself.

`torch.cuda.set_sync_debug_mode` warns of every operator for which the host waits (not of events
and explicit synchronization). torch.profiler lists kernels and copies; tests/fake_cuda counts the
same without a GPU.
"""

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from bench import (
    GOLDEN,
    NOT_ON_CPU,
    TAXONOMY,
    Bench,
    Learner,
    PlainLearner,
    at_most,
    draw_image,
    exactly,
    ours_of,
    plain_network,
    without_bar,
)
from cocoseg.infer.config import InferConfig
from cocoseg.infer.views import views_of
from cocoseg.model.config import ModelConfig
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.score import NetworkPredicts, totals_of
from cocoseg.model.tiles import Tiling
from cocoseg.shards.order import evaluation_batches
from cocoseg.shards.reader import ShardSet
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.ema import MovingAverage
from cocoseg.train.run import train_model
from launches import Launched, counted
from measure import Row, note
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

_SYNCHRONIZES = "called a synchronizing CUDA operation"
_WARM = 3  # calls before the one that is watched: handles, plans, caches


@contextlib.contextmanager
def synchronizations(bench: Bench) -> Iterator[list[str]]:
    """Collect the places where the host waits for the GPU."""
    found: list[str] = []
    if not bench.on_gpu:
        yield found
        return
    bench.finish()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
            found += [
                f"{Path(one.filename).name}:{one.lineno}"
                for one in caught
                if _SYNCHRONIZES in str(one.message)
            ]


def _of(bench: Bench, what: str, found: list[str], expected: int) -> Row:
    if not bench.on_gpu:
        return without_bar(what, NOT_ON_CPU)
    for place in found[:8]:
        note(f"{what}: {place}")
    return exactly(what, len(found), expected)


_VARIANTS: dict[str, dict[str, Any]] = {
    "bfloat16": {"amp_dtype": "bfloat16"},
    "bfloat16, clipped, moving average": {
        "amp_dtype": "bfloat16",
        "clip_grad_norm": 1.0,
        "ema_decay": 0.9,
    },
    "bfloat16, channels last": {"amp_dtype": "bfloat16", "channels_last": True},
    "bfloat16, activation checkpointing": {
        "amp_dtype": "bfloat16",
        "activation_checkpointing": True,
    },
    "bfloat16, everything kept": {"amp_dtype": "bfloat16", "recompute_mlp": False},
    "float16": {"amp_dtype": "float16"},
    "float32, SGD": {"use_amp": False, "optimizer": "sgd"},
    "class weights, smoothing": {
        "amp_dtype": "bfloat16",
        "loss_type": "ce",
        "class_weights": (1.0,) * TAXONOMY.num_classes,
        "label_smoothing": 0.1,
    },
    "hardest pixels": {"amp_dtype": "bfloat16", "loss_type": "ce", "ohem": 0.25},
    "focal": {"amp_dtype": "bfloat16", "loss_type": "focal"},
}


def training_step(bench: Bench) -> Iterator[Row]:
    """Watch single steps: the host waits once, for the loss and the gradient's norm."""
    theirs = plain_network("segformer-tiny")
    variants = list(_VARIANTS.items())[:2] if bench.tiny else _VARIANTS.items()
    for name, settings in variants:
        learner = Learner(ours_of(theirs), 2, 32 if bench.tiny else 64, bench.device, **settings)
        decay = learner.config.ema_decay
        average = MovingAverage(learner.network, decay) if decay else None

        def step(learner: Learner = learner, average: MovingAverage | None = average) -> None:
            learner()
            if average is not None:
                average.update(learner.network, learner.steps - 1)

        for _ in range(1 if bench.tiny else _WARM):
            step()
        with synchronizations(bench) as found:
            step()
        yield _of(bench, f"synchronizations in a training step, {name}", found, 1)


def training_loop(bench: Bench) -> Iterator[Row]:
    """Watch two runs: each step more makes the host wait once more."""
    # The first one makes what is kept, which waits, too: it is not compared.
    lengths = (1,) if bench.tiny else (3, 4, 10)
    found = []
    for steps in lengths:
        with synchronizations(bench) as of_run:
            small_run(bench, bench.scratch / f"loop-{steps}", steps)
        found.append(of_run)
    what = "synchronizations per step of 'train' (difference of two runs)"
    if not bench.on_gpu:
        yield without_bar(what, NOT_ON_CPU)
        return
    *_, short, long = found
    yield exactly(what, (len(long) - len(short)) / (lengths[-1] - lengths[-2]), 1.0)


def small_run(bench: Bench, folder: Path, steps: int, **settings: Any) -> Any:
    """Train a tiny network on the golden shards, as the command does; save it at the end alone."""
    config = TrainConfig(
        **{
            "shards": (str(GOLDEN / "train"),),
            "save_dir": str(folder),
            "max_steps": steps,
            "batch_size": 2,
            "accumulation_steps": 1,
            "workers": 0,
            "log_every": 10**6,
            "checkpoint_every": 10**9,
            "pictures": 0,
            "device": bench.device.type,
            **settings,
        }
    )
    model = ModelConfig(name="segformer-tiny", input_size=32 if bench.tiny else 64)
    return train_model(config, model, AugmentConfig())


def inference(bench: Bench) -> Iterator[Row]:
    """Watch a batch, tiles and the scoring loop: the host waits only for finished masks."""
    side, height, width = (32, 48, 64) if bench.tiny else (128, 240, 320)
    network = ours_of(plain_network("segformer-tiny")).to(bench.device).eval()
    preprocess = Preprocess(side)
    six = views_of(InferConfig())
    images = [draw_image(height, width, seed) for seed in range(2)]
    tiling = Tiling(height // 2, 0.25)
    for what, predictor in (
        ("a batch, one view", Predictor(network, preprocess)),
        ("a batch, 6 views, confidence", Predictor(network, preprocess, six)),
        ("tiles, 6 views", Predictor(network, preprocess, six, tiling=tiling, tile_above=height)),
    ):
        for watched in (False, True):
            inputs = predictor.inputs(images)
            with synchronizations(bench) if watched else contextlib.nullcontext([]) as found:
                confidence = "confidence" in what
                coming = [
                    one.to_host() for one in predictor.predictions(inputs, confidence=confidence)
                ]
                for one in coming:
                    one.wait()
        yield _of(bench, f"synchronizations in inference, {what}", found, 0)
    shards = ShardSet([str(GOLDEN / "val")])
    one_view = Predictor(network, preprocess)
    for what, predicts in (
        ("the scoring loop", NetworkPredicts(Predictor(network, preprocess, six), confidence=True)),
        ("validation, with its loss", NetworkPredicts(one_view, confidence=False, loss=True)),
    ):
        for watched in (False, True):
            with synchronizations(bench) if watched else contextlib.nullcontext([]) as found:
                totals_of(predicts, shards, evaluation_batches(len(shards), 2, 1, 0))
        yield _of(bench, f"synchronizations in {what}", found, 0)


def launched(bench: Bench, function: Callable[[], object]) -> Launched | None:
    """Count what a call launches; None where the profiler sees nothing."""
    if not bench.on_gpu:
        function()
        return None
    bench.finish()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        function()
        bench.finish()
    trace = bench.scratch / "trace.json"
    profiled.export_chrome_trace(str(trace))
    events = json.loads(trace.read_text(errors="replace"))["traceEvents"]
    trace.unlink()
    found = counted(events)
    return found if found.kernels else None


def step_kernels(bench: Bench) -> Iterator[Row]:
    """Count a step of B5, 4 × 640², bfloat16, ce_dice, and transformers' own."""
    name, batch, side = ("segformer-tiny", 2, 32) if bench.tiny else ("segformer-b5", 4, 640)
    theirs = plain_network(name)
    learner = Learner(ours_of(theirs), batch, side, bench.device, amp_dtype="bfloat16")
    plain = PlainLearner(theirs, batch, side, bench.device)
    found = []
    for step in (plain, learner):
        for _ in range(1 if bench.tiny else 2):
            step()
        found.append(launched(bench, step))
    case = f"{name}, {batch} × {side}², bfloat16, a step"
    theirs_launched, ours_launched = found
    if theirs_launched is None or ours_launched is None:
        yield without_bar(f"{case}: kernels and copies", _unseen(bench))
        return
    other = str(theirs_launched.kernels)
    yield Row(
        f"{case}: kernels",
        other,
        str(ours_launched.kernels),
        f"{theirs_launched.kernels / ours_launched.kernels:.2f}",
        f"≤ {other}",
        ours_launched.kernels <= theirs_launched.kernels,
    )
    yield exactly(f"{case}: copies to the host", ours_launched.to_host, 1)
    yield exactly(f"{case}: blocking copies to the device", ours_launched.blocking, 0)


class _Free(nn.Module):
    """A network that launches nothing: its logits are there already."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, device=device))
        self._logits: dict[torch.Size, Tensor] = {}

    def forward(self, pixel_values: Tensor) -> SimpleNamespace:
        shape = pixel_values.shape
        if shape not in self._logits:
            size = (shape[0], TAXONOMY.num_classes, shape[2] // 4, shape[3] // 4)
            self._logits[shape] = torch.randn(size, device=pixel_values.device)
        return SimpleNamespace(logits=self._logits[shape])


def inference_kernels(bench: Bench) -> Iterator[Row]:
    """Count what inference launches outside the network: six views, and tiles."""
    six = views_of(InferConfig())
    side = 32 if bench.tiny else 512
    height, width = (48, 64) if bench.tiny else (480, 640)
    large = (96, 128) if bench.tiny else (4500, 6000)
    network, preprocess = _Free(bench.device), Preprocess(side)
    whole = Predictor(network, preprocess, six)
    images = [draw_image(height, width, seed) for seed in range(8)]
    cut = Predictor(
        network, preprocess, six, tiling=Tiling(2 * side, 0.25), tile_above=2 * side + 1
    )
    inputs = whole.inputs(images)
    to_cut = [draw_image(*large, seed=0)]

    def batch() -> None:
        for one in [one.to_host() for one in whole.predictions(inputs)]:
            one.wait()

    def tiles() -> None:
        (one,) = cut.predictions(cut.inputs(to_cut))
        one.to_host().wait()

    what = f"outside the network, 6 views, {width} × {height}, per image"
    batch()
    found = launched(bench, batch)
    if found is None:
        yield without_bar(f"{what}: kernels and copies", _unseen(bench))
    else:
        yield at_most(f"{what}: kernels", found.kernels / len(images), 250)
        copies = (found.to_host + found.blocking) / len(images) - 1
        yield at_most(f"{what}: copies to the host beside the mask, and blocking ones", copies, 2)
    what = f"outside the network, 6 views of tiles, {large[1]} × {large[0]}"
    tiles()
    found = launched(bench, tiles)
    if found is None:
        yield without_bar(f"{what}: kernels and copies", _unseen(bench))
    else:
        yield at_most(f"{what}: kernels", found.kernels, 6000)
        yield at_most(f"{what}: blocking copies", found.blocking, 50)
        yield without_bar(f"{what}: time", f"{bench.seconds(tiles):.2f} s")


def _unseen(bench: Bench) -> str:
    return "skipped: the profiler sees no kernels" if bench.on_gpu else NOT_ON_CPU
