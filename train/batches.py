"""From the plan to micro-batches: what each rank reads, in which order, and how it is collated."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..model.device import loader_options
from ..shards.plan import BatchLayout, Plan
from ..shards.reader import ShardSet
from .augment import TrainingTransform
from .config import AugmentConfig


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B samples of one rank."""

    images: Tensor
    """uint8 RGB, shape (B, S, S, 3)."""
    masks: Tensor
    """Train ids, uint8 or int32, shape (B, S, S)."""
    keys: tuple[str, ...]

    def pin_memory(self) -> "MicroBatch":
        """Move to page-locked memory; called by the loader where a GPU waits."""
        return MicroBatch(self.images.pin_memory(), self.masks.pin_memory(), self.keys)


class TrainingSamples(Dataset[tuple[np.ndarray, np.ndarray, str]]):
    """Augmented samples by their position in the endless sequence of the plan."""

    def __init__(
        self, shards: ShardSet, plan: Plan, augment: AugmentConfig, input_size: int
    ) -> None:
        self.shards = shards
        self.plan = plan
        self.augment = augment
        self.input_size = input_size
        self._transform: TrainingTransform | None = None

    def __getitem__(self, position: int) -> tuple[np.ndarray, np.ndarray, str]:
        if self._transform is None:  # built in the process that uses it
            self._transform = TrainingTransform(self.augment, self.input_size)
        epoch, number = self.plan.locate(position)
        sample = self.shards.read(number)
        seed = np.random.SeedSequence((self.plan.seed, epoch, number)).generate_state(1)[0]
        image, mask = self._transform(sample.image, sample.mask, int(seed))
        return image, mask, sample.key


def micro_batches(
    samples: TrainingSamples,
    layout: BatchLayout,
    rank: int,
    first_step: int,
    last_step: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[list[MicroBatch]]:
    """Yield the micro-batches of each optimizer step, first_step ≤ step < last_step.

    The state of the loader is `first_step` alone.
    """
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=_Positions(layout, rank, first_step, last_step),
        collate_fn=collate,
        pin_memory=pin_memory,
        **loader_options(workers),
    )
    step: list[MicroBatch] = []
    for batch in loader:
        step.append(batch)
        if len(step) == layout.accumulation_steps:
            yield step
            step = []


def collate(samples: list[tuple[np.ndarray, np.ndarray, str]]) -> MicroBatch:
    """Stack samples; 16-bit masks become int32, as torch computes little with uint16."""
    images, masks, keys = zip(*samples, strict=True)
    stacked = np.stack(masks)
    if stacked.dtype == np.uint16:
        stacked = stacked.astype(np.int32)
    return MicroBatch(torch.from_numpy(np.stack(images)), torch.from_numpy(stacked), keys)


class _Positions:
    """The loader's batch sampler: plain arithmetic on the step."""

    def __init__(self, layout: BatchLayout, rank: int, first_step: int, last_step: int) -> None:
        self.layout, self.rank = layout, rank
        self.steps = range(first_step, last_step)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            yield from self.layout.positions(step, self.rank)

    def __len__(self) -> int:
        return len(self.steps) * self.layout.accumulation_steps
