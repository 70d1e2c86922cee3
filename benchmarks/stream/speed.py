"""Rows of ``make bench PART=stream``: reading, the full path, first batches, resume, memory.

webdataset and the plain way run in this Python. mosaicml and litdata run in the one that
COCOSEG_PEERS names, a virtual environment of its own; the packages that all use must be the same:

    pip install torch==2.13.0 numpy==2.4.6 pillow==13.0.0
    pip install albumentations==2.0.8 opencv-python-headless==5.0.0.93
    pip install mosaicml-streaming==0.13.0 litdata==0.2.76

Their rows are left out where it is not set or a package is missing.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import albumentations
from cocoseg.shards.order import SampleOrder
from cocoseg.train.augment import TrainingTransform
from cocoseg.train.config import AugmentConfig
from measure import MB, Row, in_turn, note, one_core
from prepare.data import Pictures

from .reader import FAR, SIZE

ROUNDS = 3
_BENCHMARKS = Path(__file__).parent.parent
_SAMPLES, _SHARD = 1000, 64  # samples, at least; samples a shard
_BATCHES = 90  # of the full path, behind some to warm up
_PEERS = {"mosaicml": "mosaicml-streaming", "litdata": "litdata"}
_PLANS = (118_287, 10_000_000)  # samples: COCO train2017, and a large data set


def rows(pictures: Pictures, scratch: Path) -> Iterator[Row]:
    """Measure everything about reading shards."""
    root = scratch / "stream"
    count = _shards(pictures, root)
    peers = list(_installed())
    note(f"{count} samples, peers: {', '.join(peers) or 'none (COCOSEG_PEERS names no Python)'}")
    for name in peers:
        _job(name, "make", root)
    _same_arrays(("ours", "plain", "webdataset", *peers), root, count)
    yield from reading(peers, root)
    yield from full_path(peers, root)
    yield from first_batch(peers, root)
    yield from resume(root)


def _shards(pictures: Pictures, root: Path) -> int:
    """Prepare shards from every picture equally often, and keep the transforms for all."""
    each = len(pictures.images)
    data = pictures.replicate(root / "data", -(-_SAMPLES // each) * each)
    data.shards(root / "shards", _SHARD)
    transform = TrainingTransform(AugmentConfig(), SIZE, 255)
    albumentations.save(transform._compose, root / "augment.json")
    return data.count


def _installed() -> Iterator[str]:
    """Yield the peers that the other Python has."""
    python = os.environ.get("COCOSEG_PEERS")
    for name, package in _PEERS.items() if python else ():
        probe = f"import importlib.metadata as m; print(m.version({package!r}))"
        if subprocess.run([str(python), "-c", probe], capture_output=True).returncode == 0:
            yield name


def _job(name: str, job: str, root: Path, *options: object) -> dict[str, Any]:
    """Let one loader do one job in a process of its own."""
    python = os.environ["COCOSEG_PEERS"] if name in _PEERS else sys.executable
    private = root / "private"  # peers keep caches in these, and clear them
    private.mkdir(exist_ok=True)
    command = [python, "-m", "stream.reader", name, job, root, *options]
    done = subprocess.run(
        [str(part) for part in command],
        cwd=_BENCHMARKS,
        env=os.environ | {"HOME": str(private), "TMPDIR": str(private)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{name} {job}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def _same_arrays(names: Sequence[str], root: Path, count: int) -> None:
    found = {name: _job(name, "digest", root) for name in names}
    assert all(one == found["ours"] for one in found.values()), found
    assert found["ours"]["count"] == count, found


def reading(peers: Sequence[str], root: Path) -> Iterator[Row]:
    """Compare reading and decoding alone: CPU, as threads that prefetch would hide work."""
    note("reading")

    def cpu(name: str) -> float:
        return 1000 * float(_job(name, "read", root)["cpu"])

    names = ("plain", "webdataset", *peers, "ours")
    with one_core():
        found = in_turn({name: partial(cpu, name) for name in names}, ROUNDS)
    shown = {"plain": "rasterizing as it goes, map-style"}
    bars = {"plain": 2.0, "webdataset": 1.4}
    if peers:
        bars[min(peers, key=found.__getitem__)] = 0.95
    for name in names[:-1]:
        what = f"read and decode, one core, a sample: {shown.get(name, name)}"
        yield Row.speed(what, found[name], found["ours"], bars.get(name), "ms")


def full_path(peers: Sequence[str], root: Path) -> Iterator[Row]:
    """Compare the full path with one worker, and the worker's memory."""
    note("full path")
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    names = ("webdataset", *peers, "ours")
    for _ in range(ROUNDS):
        for name in names:
            found[name].append(_job(name, "train", root, _BATCHES))

    def median(name: str, field: str, scale: float) -> float:
        return scale * statistics.median(one[field] for one in found[name])

    what = f"read, decode, augment at {SIZE}², normalize, one worker, clock, a sample"
    own = median("ours", "clock", 1000)
    for name in names[:-1]:
        bar = 1.8 if name == "webdataset" else None
        yield Row.speed(f"{what}: {name}", median(name, "clock", 1000), own, bar, "ms")
    for field in ("worker", "main"):
        own = median("ours", field, 1000)
        for name in names[:-1]:
            other = median(name, field, 1000)
            yield Row.speed(f"the same, CPU of the {field}: {name}", other, own, None, "ms")
    for field, what in (("rss", "RSS"), ("pss", "PSS")):
        own = median("ours", field, 1 / MB)
        for name in names[:-1]:
            other = median(name, field, 1 / MB)
            yield Row.speed(f"worker after 304 samples, {what}: {name}", other, own, None, "MB")


def first_batch(peers: Sequence[str], root: Path) -> Iterator[Row]:
    """Take the time from constructing data set and loader to holding a batch, imports left out."""
    note("first batch")
    ways: dict[tuple[str, str, int], Callable[[], float]] = {}
    for workers in (0, 1):
        for name in ("ours", "webdataset", *peers):
            ways[name, "first", workers] = partial(_first, name, "first", root, workers)
    ways["ours", "first-cold", 1] = partial(_first, "ours", "first-cold", root, 1)
    found: dict[Any, list[float]] = {way: [] for way in ways}
    for _ in range(ROUNDS):
        for way, clock in ways.items():
            found[way].append(clock())
    times = {way: statistics.median(clocks) for way, clocks in found.items()}

    for workers, bar in ((0, 0.2), (1, 1.0)):
        what = f"first batch of 8, {('no workers', 'one worker')[workers]}"
        others = ", ".join(
            f"{name} {times[name, 'first', workers]:.2f} s" for name in ("webdataset", *peers)
        )
        own = times["ours", "first", workers]
        yield _limit(what + (", fork server warm" if workers else ""), own, bar, others)
        if workers:
            yield Row(what + ", fork server cold", "", f"{times['ours', 'first-cold', 1]:.2f} s")


def _first(name: str, job: str, root: Path, workers: int) -> float:
    return float(_job(name, job, root, workers)["clock"])


def _limit(what: str, own: float, bar: float, others: str) -> Row:
    return Row(what, others, f"{own:.2f} s", "", f"≤ {bar:g} s", own <= bar)


def resume(root: Path) -> Iterator[Row]:
    """Compare a first batch far into training with the first of all, and plans of any size."""
    note("resume")
    runs = [_job("ours", "resume", root) for _ in range(ROUNDS)]
    near, far = (1000 * statistics.median(run[name] for run in runs) for name in ("near", "far"))
    what = f"first batch without workers, step 0 / step {FAR}"
    ratio = near / far
    met = 0.8 <= ratio <= 1.25
    yield Row(what, f"{near:.1f} ms", f"{far:.1f} ms", f"{ratio:.2f}", "0.8 … 1.25", met)
    for samples in _PLANS:
        found = [_plan(samples) for _ in range(ROUNDS)]
        clock, held = (statistics.median(one[i] for one in found) for i in (0, 1))
        what = f"plan of {samples} samples, first position of an epoch / memory held"
        yield Row(what, "", f"{1000 * clock:.1f} ms / {held / MB:.2f} MB")


def _plan(samples: int) -> tuple[float, int]:
    """Return the clock of the first position of epoch 1 [s], and what a used plan holds [bytes]."""
    sizes = [1000] * (samples // 1000) + ([samples % 1000] if samples % 1000 else [])
    plan = SampleOrder(sizes, 0)
    plan.locate(0)
    start = time.perf_counter()
    plan.locate(samples)
    clock = time.perf_counter() - start
    tracemalloc.start()
    plan = SampleOrder(sizes, 0)
    for epoch in range(2):
        for stream in range(plan.streams):  # a block of each
            plan.locate(epoch * samples + stream)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return clock, held
