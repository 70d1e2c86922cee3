"""Speed and memory of `cocoseg prepare` on some thousand images.

CPU time is that of one core, where others' work disturbs least; only two workers are timed by the
clock.
"""

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from cocoseg.prepare.plan import image_task, plan_build
from cocoseg.prepare.rasterize import PaintRules, rasterize
from measure import MB, Row, cpu_of, in_turn, note, one_core, run

from . import ours, peers, plain
from .data import DataSet, Pictures

ROUNDS = 3
_HERE = Path(__file__).parent
_API, _COMMAND, _WORKERS, _MEMORY = 1900, 4000, 20_000, 2000  # images, at least
_JSON_BYTES = 250e6


def rows(pictures: Pictures, scratch: Path) -> Iterator[Row]:
    """Measure everything that needs no more than some thousand images."""
    each = len(pictures.images)  # every picture equally often
    small = pictures.replicate(scratch / "small", -(-_API // each) * each)
    with one_core():
        yield mask_and_png(small)
        yield from whole(small, scratch)
        yield from floor(small, scratch)
    large = pictures.replicate(scratch / "large", -(-_COMMAND // each) * each)
    yield from processes(large, scratch)
    crowd = pictures.replicate(scratch / "crowd", -(-_WORKERS // each) * each)
    yield from two_workers(crowd, scratch)
    shutil.rmtree(crowd.root)
    yield from loading(pictures, scratch)
    yield from memory(pictures.replicate(scratch / "memory", _MEMORY), scratch)


def mask_and_png(data: DataSet) -> Row:
    """Compare painting and encoding alone; all masks must be equal."""
    note("mask + PNG")
    coco = plain.load(data.annotations)
    ids = plain.train_ids(coco)
    entries = {image["id"]: image for image in coco.loadImgs(coco.getImgIds())}
    plan = plan_build(ours.config(data, data.root / "unused"))
    planned = plan.splits[0].images
    rules = PaintRules("area", "paint", plan.class_map.taxonomy.ignore_index)

    for image in planned[:: len(planned) // 200]:
        task = image_task(plan, image)
        assert task.instances is not None
        mask = rasterize(task.instances, task.width, task.height, rules).mask
        assert np.array_equal(mask, plain.paint(coco, entries[task.image_id], ids)), task.image_id
    found = in_turn({way: partial(_masks, way, data) for way in ("plain", "ours")}, ROUNDS)
    other, own = (1000 * found[name] / data.count for name in ("plain", "ours"))
    return Row.speed("mask + PNG, CPU an image", other, own, 8, "ms")


def _masks(way: str, data: DataSet) -> float:
    command = [sys.executable, "-m", "prepare.masks", way, str(data.root), str(data.count)]
    done = subprocess.run(command, cwd=_HERE.parent, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["cpu"])


def whole(data: DataSet, scratch: Path) -> Iterator[Row]:
    """Compare all of prepare, in this process, with the plain way and the peers."""
    fresh = _Fresh(scratch / "whole")
    names = list(peers.installed())
    note(f"whole, peers: {', '.join(names) or 'none (COCOSEG_PEERS names no Python)'}")
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: cpu_of(plain.prepare, data.annotations, data.images, fresh()),
        "ours": lambda: cpu_of(ours.build, data, fresh()),
    }
    for name in names:
        ways[name] = partial(_peer, name, data, fresh)
    ways["ours"]()  # warm: imports, page cache
    found = {way: 1000 * cpu / data.count for way, cpu in in_turn(ways, ROUNDS).items()}
    fresh.clear()
    what = "prepare through the API, CPU an image: "
    yield Row.speed(what + "plain", found["plain"], found["ours"], 6, "ms")
    fastest = min(names, key=found.__getitem__, default=None)
    for name in names:
        bar = 5 if name == fastest else None
        shown = f"{name}, the fastest peer" if name == fastest else name
        yield Row.speed(what + shown, found[name], found["ours"], bar, "ms")


def _peer(name: str, data: DataSet, fresh: "_Fresh") -> float:
    return peers.cpu(name, data.root, fresh())


def floor(data: DataSet, scratch: Path) -> Iterator[Row]:
    """Compare with packing the photographs alone, and with hashing and packing them."""
    note("floor")
    fresh = _Fresh(scratch / "floor")

    def pack(*programs: str) -> float:
        target = fresh()
        packing = run(["tar", "-cf", target, "-C", data.images, "."])
        return packing.cpu + sum(run([program, target]).cpu for program in programs)

    found = in_turn(
        {
            "tar": pack,
            "tar, hashed": lambda: pack("sha256sum", "b2sum"),
            "ours": lambda: cpu_of(ours.build, data, fresh()),
        },
        ROUNDS,
    )
    fresh.clear()
    own = 1000 * found["ours"] / data.count
    for name, what in (("tar", "`tar -cf`"), ("tar, hashed", "`tar -cf`, sha256sum, b2sum")):
        yield Row.speed(
            f"floor, CPU an image: {what}, photographs alone",
            1000 * found[name] / data.count,
            own,
            None,
            "ms",
        )


def processes(data: DataSet, scratch: Path) -> Iterator[Row]:
    """Compare whole processes, their start included."""
    fresh = _Fresh(scratch / "processes")
    script: list[str | Path] = [sys.executable, _HERE / "plain.py", data.annotations, data.images]
    note(f"whole processes, {data.count} images")
    with one_core():
        found = in_turn(
            {
                "plain": lambda: run([*script, fresh()]).cpu,
                "ours": lambda: run(ours.command(data, fresh(), "--workers", "1")).cpu,
            },
            ROUNDS,
        )
    fresh.clear()
    what = f"`cocoseg prepare --workers 1`, {data.count} images, whole process"
    yield Row.speed(f"{what}, CPU", found["plain"], found["ours"], 5, "s")


def two_workers(data: DataSet, scratch: Path) -> Iterator[Row]:
    """Compare one worker with two, on so many images that start and report weigh little."""
    note(f"two workers, {data.count} images")
    fresh = _Fresh(scratch / "workers")
    walls: dict[int, list[float]] = {1: [], 2: []}
    for workers in (1, 2) * ROUNDS:
        finished = run(ours.command(data, fresh(), "--workers", str(workers)))
        walls[workers].append(finished.wall)
    fresh.clear()
    one, two = (statistics.median(walls[workers]) for workers in (1, 2))
    yield Row.speed(f"one worker / two, {data.count} images, clock", one, two, 1.8, "s")


def loading(pictures: Pictures, scratch: Path) -> Iterator[Row]:
    """Compare loading a large JSON with pycocotools'; imports are left out, memory is the whole."""
    probe = pictures.replicate(scratch / "probe", len(pictures.images), files=False)
    count = int(_JSON_BYTES / probe.json_bytes * probe.count) + probe.count
    large = pictures.replicate(scratch / "json", count, files=False)
    note(f"JSON of {large.json_bytes / MB:.0f} MB")
    peaks: dict[str, list[float]] = {"plain": [], "ours": []}

    def load(way: str) -> float:
        command = [sys.executable, str(_HERE / "load.py"), way, str(large.annotations)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        peaks[way].append(found["peak"] / MB)
        return float(found["cpu"])

    with one_core():
        cpu = in_turn({way: partial(load, way) for way in peaks}, ROUNDS)
    size = f"JSON of {large.json_bytes / MB:.0f} MB"
    shutil.rmtree(large.root)
    yield Row.speed(f"loading a {size}, `COCO()`, CPU", cpu["plain"], cpu["ours"], 10, "s")
    other, own = (statistics.median(peaks[way]) for way in ("plain", "ours"))
    share = own / other
    yield Row(
        f"loading a {size}, process's peak memory",
        f"{other:.0f} MB",
        f"{own:.0f} MB",
        f"{share:.2f}",
        "≤ 0.35",
        share <= 0.35,
    )


def memory(data: DataSet, scratch: Path) -> Iterator[Row]:
    """Watch the memory of every process, and that none imports torch or webdataset."""
    note("memory")
    fresh = _Fresh(scratch / "watched")
    environment, imports = ours.spied(scratch / "spy")
    finished = run(
        ours.command(data, fresh(), "--workers", "1"),
        roles=ours.role,
        environment=environment,
    )
    fresh.clear()
    what = f"peak memory, {data.count} images, JSON of {data.json_bytes / MB:.0f} MB, one worker: "
    parts = ", ".join(f"{name} {peak / MB:.0f}" for name, peak in finished.peaks.items())
    yield Row.limit(what + "all processes (PSS)", finished.together / MB, 250, "MB")
    yield Row.limit(
        what + f"the largest process ({parts})", max(finished.peaks.values()) / MB, 250, "MB"
    )
    heavy = imports().split()[1::2] + ["libtorch"] * finished.libtorch
    shown = ", ".join(sorted(set(heavy))) or "neither"
    yield Row("torch or webdataset in any process", "", shown, "", "neither", not heavy)


class _Fresh:
    """Gives a new path each time, and removes what the last one held, outside any clock."""

    def __init__(self, base: Path) -> None:
        self.base, self.number = base, 0

    def __call__(self) -> Path:
        self.clear()
        self.number += 1
        return self.base / str(self.number)

    def clear(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)
        self.base.mkdir(parents=True)
