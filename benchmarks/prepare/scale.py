"""`cocoseg prepare` on as many images as COCO has: when the first shard stands, and what is held.

Memory is watched with pictures an eighth as wide, as a hundred thousand full ones take 16 GB; their
annotations are as many and nearly as long.
"""

import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path

from measure import MB, Finished, Row, note, run

from . import ours
from .data import DataSet, Pictures

_ROUNDS = 3
_COCO = 118_287  # images of COCO train2017
_FEW, _MANY = 10_000, 100_000
_FLAT = 1.1  # a worker's memory with many images, relative to few


def rows(pictures: Pictures, scratch: Path) -> Iterator[Row]:
    """Measure everything that needs a hundred thousand images."""
    note(f"{_COCO} images")
    coco = pictures.replicate(scratch / "coco", _COCO)
    yield first_shard(coco, scratch / "first")
    shutil.rmtree(coco.root)
    tiny = pictures.tiny(scratch / "tiny-pictures")
    found = {}
    for count in (_FEW, _MANY):
        note(f"{count} tiny images")
        data = tiny.replicate(scratch / f"tiny-{count}", count)
        found[count] = watched(data, scratch / "watched")
        peak, size = found[count].peaks["main"] / MB, data.json_bytes / MB
        what = f"main process, peak, {count} images, JSON of {size:.0f} MB"
        yield Row.limit(what, peak, 2 * size + 150, "MB")
        shutil.rmtree(data.root)
    few, many = (found[count].peaks["worker"] / MB for count in (_FEW, _MANY))
    what = f"worker, peak, {_MANY} images (other: {_FEW})"
    yield Row.limit(what, many, _FLAT * few, "MB", f"{few:.1f} MB")


def first_shard(data: DataSet, output: Path) -> Row:
    """Start the command and stop it when its first shard stands, some times."""

    def stands() -> bool:
        return output.is_dir() and any(output.glob("shard-*.tar"))

    walls = []
    for _ in range(_ROUNDS):
        walls.append(run(ours.command(data, output), stop_when=stands).wall)
        shutil.rmtree(output)
    what = f"start to first shard, {data.count} images, JSON of {data.json_bytes / MB:.0f} MB"
    return Row.limit(what, statistics.median(walls), 5, "s")


def watched(data: DataSet, output: Path) -> Finished:
    """Build everything with one worker and watch all processes."""
    finished = run(ours.command(data, output, "--workers", "1"), roles=ours.role)
    shutil.rmtree(output)
    return finished
