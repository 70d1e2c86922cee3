"""B5 at 640², bfloat16: images per second and largest batch against transformers, and the loop."""

import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from bench import (
    Bench,
    Learner,
    PlainLearner,
    fastest_convolutions,
    ours_of,
    plain_network,
    rate,
    without_bar,
)
from cocoseg.figures import bytes_text
from cocoseg.model.config import ModelConfig
from cocoseg.model.memory import UnknownMemory, is_out_of_memory
from cocoseg.processes import available_cores, warm_up
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.network import memory_of
from drawn import drawn_shards
from measure import Row, in_turn

Step = Callable[[], object]

_FASTER, _LARGER = 1.8, 1.5  # bars: of speed at one batch size, and of the largest batch
_WAIT = 3.0  # %
_WORKERS = 8
_BISECTION = 25.0  # seconds after which no further batch size is tried


def _shape(bench: Bench) -> tuple[str, int, int]:
    return ("segformer-tiny", 2, 32) if bench.tiny else ("segformer-b5", 4, 640)


def batch_of_four(bench: Bench) -> Iterator[Row]:
    """Train with several settings and plainly, in turn."""
    name, batch, side = _shape(bench)
    theirs = plain_network(name)
    variants: dict[str, dict[str, Any]] = {
        "": {},
        "train.channels_last": {"channels_last": True},
        "train.recompute_mlp=false": {"recompute_mlp": False},
        "train.activation_checkpointing": {"activation_checkpointing": True},
    }
    if bench.tiny:
        variants.popitem()
    with fastest_convolutions():
        learners = {
            what: Learner(
                ours_of(theirs), batch, side, bench.device, amp_dtype="bfloat16", **settings
            )
            for what, settings in variants.items()
        }
        plain = PlainLearner(theirs, batch, side, bench.device)
        steps: dict[str, Step] = {"plain": plain, **learners}
        taken = {what: _memory_of_step(bench, step) for what, step in steps.items()}
        times = 1 if bench.tiny else 2
        seconds = in_turn(
            {
                what: lambda step=step: bench.seconds(step, times)  # type: ignore[misc]
                for what, step in steps.items()
            },
            1 if bench.tiny else 8,
        )
    case = f"{name}, {batch} × {side}², bfloat16"
    for what in variants:
        yield rate(
            f"{case}: {what or 'defaults'} (other: transformers)",
            batch / seconds["plain"],
            batch / seconds[what],
            None if what or bench.tiny else _FASTER,
        )
    if not bench.on_gpu:
        yield without_bar(f"{case}: memory of a step", "skipped: only a GPU shows it")
        return
    for what in variants:
        yield without_bar(
            f"{case}: memory of a step, {what or 'defaults'}, beside weights and optimizer",
            bytes_text(taken[what]),
            bytes_text(taken["plain"]),
            taken["plain"] / taken[what],
        )
    learner = learners[""]
    try:
        need = memory_of(learner.network, learner.config, side, bench.device)
    except UnknownMemory as error:
        yield without_bar(f"{case}: estimate of that memory", str(error))
        return
    estimated = need.activations + need.loss + need.gradients
    yield without_bar(
        f"{case}: that memory as estimated (other: as measured)",
        bytes_text(estimated),
        bytes_text(taken[""]),
        taken[""] / estimated,
    )


def _memory_of_step(bench: Bench, step: Step) -> int:
    """Return the most that a step takes beside what is there before and after it [bytes]."""
    for _ in range(1 if bench.tiny else 3):
        step()
    if not bench.on_gpu:
        return 0
    bench.finish()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    bench.finish()
    return torch.cuda.max_memory_allocated() - before


def largest_batch(bench: Bench) -> Iterator[Row]:
    """Find the largest batch of each side, and its pace there, one after the other."""
    name, _, side = _shape(bench)
    theirs = plain_network(name)
    sides: dict[str, Callable[[int], Step]] = {
        "plain": lambda batch: PlainLearner(theirs, batch, side, bench.device),
        "ours": lambda batch: Learner(
            ours_of(theirs), batch, side, bench.device, amp_dtype="bfloat16"
        ),
    }
    found = {}
    for what, start in sides.items():
        largest = _largest(bench, start)
        found[what] = largest, _pace(bench, start, largest)
        theirs = theirs.cpu()
        _free()
    (plain, plain_pace), (ours, pace) = found["plain"], found["ours"]
    case = f"{name}, {side}², bfloat16"
    yield Row(
        f"{case}: largest batch (other: transformers)",
        str(plain),
        str(ours),
        f"{ours / plain:.2f}",
        f"≥ {_LARGER}",
        ours / plain >= _LARGER,
    )
    yield rate(f"{case}: each at its largest batch, one after the other", plain_pace, pace)


def _largest(bench: Bench, start: Callable[[int], Step]) -> int:
    """Return the largest batch of which two steps fit, to a sixteenth."""
    began = time.monotonic()
    fits, fails = 0, 0
    batch = 4
    while not fails or fails - fits > max(1, fits // 16):
        if time.monotonic() - began > _BISECTION and fits:
            break
        if _fits(bench, start, batch):
            fits = batch
        else:
            fails = batch
        if fails == 1:
            raise RuntimeError("one image does not fit")
        batch = (fits + fails) // 2 if fails else 2 * fits
    return fits


def _fits(bench: Bench, start: Callable[[int], Step], batch: int) -> bool:
    fits = True
    try:
        step = start(batch)
        for _ in range(2):  # the first makes the optimizer's state
            step()
        bench.finish()
        del step
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    _free()  # here: the error has let go of the tensors it held
    return fits


def _pace(bench: Bench, start: Callable[[int], Step], batch: int) -> float:
    step = start(batch)
    step()
    step()
    taken = [bench.seconds(step) for _ in range(3)]
    del step
    _free()
    return batch / statistics.median(taken)


def _free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def data_wait(bench: Bench) -> Iterator[Row]:
    """Train on drawn shards, as the command does, and read what the run records."""
    name, batch, side = _shape(bench)
    steps, window = (4, 2) if bench.tiny else (60, 20)
    workers = 1 if bench.tiny else min(_WORKERS, max(1, available_cores() - 1))
    warm_up("cocoseg.train.batches")
    from cocoseg.train.run import train_model

    folder = bench.scratch / "waiting"
    config = TrainConfig(
        shards=(str(drawn_shards(bench)),),
        save_dir=str(folder),
        max_steps=steps,
        batch_size=batch,
        accumulation_steps=1,
        workers=workers,
        log_every=window,
        checkpoint_every=10**9,
        device=bench.device.type,
    )
    train_model(config, ModelConfig(name=name, input_size=side), AugmentConfig())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    later = [line for line in lines if line["step"] > window]  # the first holds the warm-up
    share = 100 * statistics.mean(line["data_wait"] for line in later)
    pace = statistics.mean(line["images_per_second"] for line in later)
    what = f"'train', {name}, {batch} × {side}², {workers} workers: share of the time spent waiting"
    enough = workers == _WORKERS
    yield Row(
        f"{what} for data (other: pace)",
        f"{pace:.1f} images/s",
        f"{share:.1f} %",
        "",
        f"≤ {_WAIT:g} %" if enough else "",
        share <= _WAIT if enough else None,
    )
