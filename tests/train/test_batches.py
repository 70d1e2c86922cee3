"""What ranks and loader processes are fed: the same samples, whoever reads them."""

import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cocoseg.errors import CocosegError
from cocoseg.shards.order import BatchLayout, SampleOrder
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.repeats import Repeats
from cocoseg.train.batches import (
    MicroBatch,
    TrainingSamples,
    copied_ahead,
    micro_batches,
    on_device,
)
from cocoseg.train.config import AugmentConfig

SIZE = 32


@pytest.fixture
def samples(golden) -> TrainingSamples:
    shards = ShardSet([str(golden.shards("train"))])
    plan = SampleOrder(shards.shard_sizes, seed=3, streams=2, block_shards=1)
    return TrainingSamples(shards, plan, AugmentConfig(), SIZE)


def steps_of(
    samples: TrainingSamples, layout: BatchLayout, rank: int, first: int, last: int, workers: int
) -> list[list[MicroBatch]]:
    return list(micro_batches(samples, layout, rank, first, last, workers, pin_memory=False))


def global_batches(samples: TrainingSamples, world: int, steps: int) -> list[list[tuple]]:
    """Each step's samples in slot order, put together from all ranks."""
    layout = BatchLayout(batch_size=6 // world, world_size=world, accumulation_steps=1)
    by_rank = [steps_of(samples, layout, rank, 0, steps, 0) for rank in range(world)]
    found = []
    for step in range(steps):
        slots = [
            (by_rank[rank][step][0].keys[i], by_rank[rank][step][0].images[i].numpy().tobytes())
            for i in range(6 // world)
            for rank in range(world)
        ]
        found.append(slots)
    return found


def test_the_global_batches_are_the_same_for_every_world_size(samples: TrainingSamples) -> None:
    alone = global_batches(samples, 1, steps=4)
    assert global_batches(samples, 2, steps=4) == alone
    assert global_batches(samples, 3, steps=4) == alone


def test_every_sample_comes_once_an_epoch(samples: TrainingSamples) -> None:
    layout = BatchLayout(batch_size=2, world_size=1, accumulation_steps=2)
    steps = steps_of(samples, layout, 0, 0, 4, 0)  # 16 of 8 samples: two epochs
    keys = [key for step in steps for batch in step for key in batch.keys]
    assert len(samples.shards) == 8
    assert set(Counter(keys).values()) == {2}
    assert set(Counter(keys[:8]).values()) == {1}


@pytest.mark.parametrize("workers", [1, 3])
def test_loader_processes_change_no_byte(samples: TrainingSamples, workers: int) -> None:
    layout = BatchLayout(batch_size=2, world_size=2, accumulation_steps=2)
    here = steps_of(samples, layout, 1, 0, 3, 0)
    there = steps_of(samples, layout, 1, 0, 3, workers)
    assert len(here) == len(there) == 3
    for ours, theirs in zip(here, there, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert a.keys == b.keys
            assert torch.equal(a.images, b.images)
            assert torch.equal(a.masks, b.masks)


def test_a_loader_that_starts_late_continues_the_same_sequence(samples: TrainingSamples) -> None:
    layout = BatchLayout(batch_size=3, world_size=1, accumulation_steps=1)
    whole = steps_of(samples, layout, 0, 0, 6, 0)
    rest = steps_of(samples, layout, 0, 4, 6, 0)
    assert [step[0].keys for step in rest] == [step[0].keys for step in whole[4:]]
    assert torch.equal(rest[0][0].images, whole[4][0].images)


def test_augmentation_is_new_in_each_epoch(samples: TrainingSamples) -> None:
    batches = [samples.__getitems__(range(first, first + 8)) for first in (0, 8)]
    first, second = (dict(zip(batch.keys, batch.images, strict=True)) for batch in batches)
    assert first.keys() == second.keys()
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_a_sample_shown_twice_in_an_epoch_looks_different(
    samples: TrainingSamples,
) -> None:
    counts = [1, 3, 1, 1, 2, 1, 1, 1]
    repeats = Repeats.counted(np.array(counts), samples.shards.shard_sizes)
    plan = SampleOrder(repeats.shard_sizes, seed=3)
    shown = TrainingSamples(samples.shards, plan, samples.augment, SIZE, repeats=repeats)
    batch = shown.__getitems__(range(11))
    keys = Counter(batch.keys)
    assert [keys[samples.shards.row(number).key] for number in range(8)] == counts
    assert len({image.numpy().tobytes() for image in batch.images}) == 11


def test_with_nothing_repeated_no_byte_changes(samples: TrainingSamples) -> None:
    once = Repeats.of(samples.shards, 0.0, samples.order.seed)
    shown = TrainingSamples(samples.shards, samples.order, samples.augment, SIZE, repeats=once)
    batch, plain = shown.__getitems__(range(8)), samples.__getitems__(range(8))
    assert batch.keys == plain.keys
    assert torch.equal(batch.images, plain.images)


def test_crops_are_square_uint8_and_masks_hold_only_values_they_had(
    samples: TrainingSamples,
) -> None:
    batch = samples.__getitems__(range(16))
    assert (batch.images.shape, batch.images.dtype) == ((16, SIZE, SIZE, 3), torch.uint8)
    assert (batch.masks.shape, batch.masks.dtype) == ((16, SIZE, SIZE), torch.uint8)
    assert batch.weights == (1,) * 16
    for position, (key, mask) in enumerate(zip(batch.keys, batch.masks, strict=True)):
        number = samples.order.locate(position)[1]
        assert samples.shards.row(number).key == key
        assert set(np.unique(mask)) <= set(np.unique(samples.shards.read(number).mask))


def test_slots_behind_the_end_show_their_picture_and_teach_nothing(
    samples: TrainingSamples,
) -> None:
    ended = TrainingSamples(samples.shards, samples.order, samples.augment, SIZE, end=6)
    whole, cut = samples.__getitems__(range(8)), ended.__getitems__(range(8))
    assert cut.weights == (1,) * 6 + (0,) * 2
    assert cut.keys == whole.keys
    assert torch.equal(cut.images, whole.images)
    assert torch.equal(cut.masks[:6], whole.masks[:6])
    assert (cut.masks[6:] == 255).all()


def valid_pixels_and_images(mask: np.ndarray) -> tuple[float, float]:
    assert mask.shape == (SIZE, SIZE)
    valid = float((mask != 255).sum())
    return valid / 2, float(valid > 0)


def test_a_micro_batch_tells_what_its_losses_are_divided_by(samples: TrainingSamples) -> None:
    counting = TrainingSamples(
        samples.shards, samples.order, samples.augment, SIZE, 6, valid_pixels_and_images
    )
    layout = BatchLayout(batch_size=4, world_size=1, accumulation_steps=1)
    for (batch,) in steps_of(counting, layout, 0, 0, 3, 0):
        valid = (batch.masks.numpy() != 255).reshape(4, -1).sum(axis=1)
        assert batch.denominators == (valid.sum() / 2, (valid > 0).sum())
    assert batch.denominators == (0, 0)  # fillers alone
    assert samples.__getitems__([0]).denominators == (0, 0)  # nobody asked


def test_the_divisors_are_worked_out_in_the_loaders_processes(samples: TrainingSamples) -> None:
    asked = TrainingSamples(samples.shards, samples.order, samples.augment, SIZE, None, np.shape)
    layout = BatchLayout(batch_size=4, world_size=1, accumulation_steps=1)
    ((batch,),) = steps_of(asked, layout, 0, 0, 1, 1)
    assert batch.denominators == (4 * SIZE, 4 * SIZE)


def test_a_bad_sample_is_a_slot_of_weight_0_that_shows_another_picture(
    samples: TrainingSamples, golden: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(golden.shards("train"), tmp_path / "copied")
    shards = ShardSet([str(folder)])
    number = samples.order.locate(3)[1]
    row = shards.row(number)
    path = folder / f"shard-{(number // 3):06d}.tar"  # 3 + 3 + 2 samples
    content = bytearray(path.read_bytes())
    content[row.offsets[0] + 5] ^= 1
    path.write_bytes(content)
    damaged = TrainingSamples(
        shards, samples.order, samples.augment, SIZE, denominators=valid_pixels_and_images
    )
    batch, whole = damaged.__getitems__(range(8)), samples.__getitems__(range(8))
    assert batch.keys == whole.keys
    assert batch.weights == tuple(int(i != 3) for i in range(8))
    assert [(bad.key, Path(bad.shard).name) for bad in batch.bad] == [(row.key, path.name)]
    assert (batch.masks[3] == 255).all()
    assert batch.images[3].float().std() > 1  # no blank: the batch norms see it
    others = [i for i in range(8) if i != 3]
    assert batch.denominators == ((whole.masks[others] != 255).sum() / 2, 7)
    assert torch.equal(batch.images[others], whole.images[others])
    assert torch.equal(batch.masks[others], whole.masks[others])


def test_where_every_sample_is_bad_slots_are_blank(
    samples: TrainingSamples, tmp_path: Path
) -> None:
    folder = shutil.copytree(samples.shards.folders[0], tmp_path / "copied")
    shards = ShardSet([str(folder)])
    for path in folder.glob("*.tar"):
        path.unlink()
    batch = TrainingSamples(shards, samples.order, samples.augment, SIZE).__getitems__([0, 1])
    assert batch.weights == (0, 0)
    assert [bad.problem for bad in batch.bad] == ["the shard is missing"] * 2
    assert (batch.masks == 255).all()


def test_masks_of_sixteen_bits_survive_collating(coco_set: Any, tmp_path: Path) -> None:
    coco_set.content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 400)]
    coco_set.photo(1)
    coco_set.annotate(1, [[0, 0, 16, 0, 16, 12, 0, 12]], category_id=399)
    coco_set.prepare(tmp_path / "many")
    shards = ShardSet([str(tmp_path / "many")])
    plan = SampleOrder(shards.shard_sizes, seed=0)
    samples = TrainingSamples(shards, plan, AugmentConfig(), 4, end=1)
    batch = samples.__getitems__([0, 1])
    assert batch.masks.dtype == torch.int32
    assert batch.masks[0].unique().tolist() == [399]
    assert batch.masks[1].unique().tolist() == [65535]


def test_samples_reach_spawned_processes(samples: TrainingSamples, tmp_path: Path) -> None:
    torch.save(samples, tmp_path / "samples.pt")
    again = torch.load(tmp_path / "samples.pt", weights_only=False)
    assert torch.equal(again.__getitems__([5]).images, samples.__getitems__([5]).images)


# ---- copies beside the present step


class Copies:
    """A copier that notes who calls it and when."""

    device = torch.device("cpu")

    def __init__(self, fails_at=None):
        self.notes, self.threads, self.fails_at = [], set(), fails_at

    def copy(self, step):
        self.threads.add(threading.current_thread().name)
        self.notes.append(("copy", step))
        if step == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [*step, "copied"], step

    def await_(self, step, copied):
        assert step == [*copied, "copied"]
        self.notes.append(("await", copied))


def numbered(count, closed=None, fails_at=None):
    try:
        for i in range(count):
            if i == fails_at:
                raise CocosegError(f"step {i} cannot be read")
            yield [i]
    finally:
        if closed is not None:
            closed.append(True)


def copying_threads():
    return [one for one in threading.enumerate() if one.name.startswith("cocoseg-copy")]


@pytest.mark.parametrize("count", [0, 1, 4])
def test_steps_come_in_their_order_and_the_next_is_copied_meanwhile(count):
    copier, closed = Copies(), []
    found = list(copied_ahead(numbered(count, closed), copier))
    assert found == [[i, "copied"] for i in range(count)]
    assert [step for kind, step in copier.notes if kind == "await"] == [[i] for i in range(count)]
    assert closed == [True]
    assert not copying_threads()


def test_the_next_step_is_read_while_the_present_one_is_used():
    read = threading.Event()

    def steps():
        yield [0]
        read.set()
        yield [1]

    ahead = copied_ahead(steps(), Copies())
    assert next(ahead) == [0, "copied"]
    assert read.wait(600)  # though nobody asked for it yet
    assert next(ahead) == [1, "copied"]
    ahead.close()


@pytest.mark.parametrize("fails_at", [0, 2])
def test_what_the_loader_raises_surfaces_at_its_step(fails_at):
    ahead = copied_ahead(numbered(4, fails_at=fails_at), Copies())
    for i in range(fails_at):
        assert next(ahead) == [i, "copied"]
    with pytest.raises(CocosegError, match=f"step {fails_at} cannot"):
        next(ahead)
    assert not copying_threads()


def test_a_copy_without_memory_surfaces_at_its_step():
    ahead = copied_ahead(numbered(4), Copies(fails_at=[1]))
    assert next(ahead) == [0, "copied"]
    with pytest.raises(torch.OutOfMemoryError):
        next(ahead)


def test_closing_early_closes_the_loader_and_leaves_no_thread():
    closed = []
    ahead = copied_ahead(numbered(100, closed), Copies())
    next(ahead)
    ahead.close()
    assert closed == [True]
    assert not copying_threads()


def test_on_a_cpu_steps_stay_as_they_are():
    steps = numbered(2)
    assert on_device(steps, torch.device("cpu")) is steps
