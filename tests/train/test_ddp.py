"""Real process groups: no cell hangs, and what all ranks use is what the plan says."""

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from cocoseg.shards.order import SampleOrder
from cocoseg.shards.reader import ShardSet
from warm import Warm

B = 8
EPOCHS = 2.5
SAMPLES = (1, B - 1, B, B + 1, 23)
WORKERS = (0, 1, 2, 5)
SCRIPT = Path(__file__).with_name("ddp_cells.py")
CELLS = list(itertools.product(SAMPLES, WORKERS))
SOME = sorted(random.Random(4).sample(CELLS, 6))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, coco_set_class: Any) -> Path:
    """Folders of 1, 7 … samples, in shards of 3."""
    folder = tmp_path_factory.mktemp("ddp")
    for count in SAMPLES:
        coco_set = coco_set_class(folder / f"set-{count}")
        for image_id in range(1, count + 1):
            coco_set.photo(image_id)
        coco_set.prepare(folder / str(count), samples_per_shard=3)
    return folder


def run(warm: Warm, shards: Path, world_size: int, cells: list[tuple[int, int]]) -> list[Any]:
    ran = warm.start(world_size, SCRIPT, shards, B, EPOCHS, json.dumps(cells))
    out, err = ran.communicate()
    assert ran.returncode == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("[")]


def check(shards: Path, world_size: int, count: int, used: list[Any]) -> None:
    """Compare what the ranks used, slot by slot, with the plan alone."""
    samples = ShardSet([str(shards / str(count))])
    plan = SampleOrder(samples.shard_sizes, 3, 3, 2)
    end = -int(-EPOCHS * count // 1)
    assert len(used) == -(-end // B)
    position = 0
    for by_rank, total in used:
        assert {len(own) for own in by_rank} == {B // world_size}
        assert total == min(B, end - position)
        for slot in range(B):
            key, weight = by_rank[slot % world_size][slot // world_size]
            assert key == samples.row(plan.locate(position)[1]).key
            assert weight == (position < end)
            position += 1


def check_cells(
    warm: Warm, shards: Path, world_size: int, cells: list[tuple[int, int]], record_property: Any
) -> None:
    found = run(warm, shards, world_size, cells)
    assert [(count, workers) for count, workers, _ in found] == cells
    for count, _, used in found:
        check(shards, world_size, count, used)
    record_property("figure", f"DDP, {world_size} ranks: {len(found)} cells as the plan says")


def test_some_cells_of_two_ranks(warm: Warm, shards: Path, record_property: Any) -> None:
    check_cells(warm, shards, 2, SOME, record_property)


@pytest.mark.long
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_cell(warm: Warm, shards: Path, world_size: int, record_property: Any) -> None:
    check_cells(warm, shards, world_size, CELLS, record_property)
