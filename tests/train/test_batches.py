"""What ranks and loader processes are fed: the same samples, whoever reads them."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from cocoseg.shards.plan import BatchLayout, Plan
from cocoseg.shards.reader import ShardSet
from cocoseg.train.augment import TrainingTransform
from cocoseg.train.batches import MicroBatch, TrainingSamples, collate, micro_batches
from cocoseg.train.config import AugmentConfig

SIZE = 32


@pytest.fixture
def samples(golden) -> TrainingSamples:
    shards = ShardSet([str(golden.shards("train"))])
    plan = Plan(shards.shard_sizes, seed=3, streams=2, block_shards=1)
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
    first = {samples[i][2]: samples[i][0] for i in range(8)}
    second = {samples[i][2]: samples[i][0] for i in range(8, 16)}
    assert first.keys() == second.keys()
    assert not any(np.array_equal(first[key], second[key]) for key in first)


def test_crops_are_square_uint8_and_masks_hold_only_values_they_had(
    samples: TrainingSamples,
) -> None:
    for position in range(16):
        image, mask, key = samples[position]
        number = samples.plan.locate(position)[1]
        assert (image.shape, image.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((SIZE, SIZE), np.uint8)
        assert samples.shards.row(number).key == key
        assert set(np.unique(mask)) <= set(np.unique(samples.shards.read(number).mask))


def test_image_and_mask_are_transformed_as_one() -> None:
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 9, (6, 8)), np.ones((10, 10), int)).astype(np.uint8)
    image = np.repeat((mask * 25)[..., None], 3, axis=2)
    plain = AugmentConfig(color_jitter=0, blur=0)
    for seed in range(20):
        cropped, labels = TrainingTransform(plain, 48)(image, mask, seed)
        differs = np.abs(cropped[..., 0].astype(int) - labels.astype(int) * 25) > 13
        inner = labels[1:-1, 1:-1]
        edge = np.zeros_like(labels, bool)
        edge[1:-1, 1:-1] = (
            (inner != labels[:-2, 1:-1])
            | (inner != labels[2:, 1:-1])
            | (inner != labels[1:-1, :-2])
            | (inner != labels[1:-1, 2:])
        )
        assert not (differs & ~edge)[2:-2, 2:-2].any()


def test_masks_of_sixteen_bits_survive_collating() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    mask = np.full((4, 4), 40000, np.uint16)
    batch = collate([(image, mask, "a"), (image, mask, "b")])
    assert batch.masks.dtype == torch.int32
    assert batch.masks.unique().tolist() == [40000]


def test_samples_reach_spawned_processes(samples: TrainingSamples, tmp_path: Path) -> None:
    torch.save(samples, tmp_path / "samples.pt")
    again = torch.load(tmp_path / "samples.pt", weights_only=False)
    assert np.array_equal(again[5][0], samples[5][0])
