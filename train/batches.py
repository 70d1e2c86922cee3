"""From the plan to micro-batches: what each rank reads, in which order, and how it is collated."""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from ..errors import CocosegError
from ..model.pipeline import threads_for
from ..processes import loader_options
from ..shards.order import BatchLayout, SampleOrder
from ..shards.reader import BadSample, Sample, ShardSet
from ..shards.repeats import Repeats
from .augment import TrainingTransform, check_extra
from .config import AugmentConfig

Denominators = Callable[[NDArray[np.integer]], tuple[float, float]]
"""Mask (H, W) → what one image adds to a loss's divisors of pixels and of images."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """B samples of one rank."""

    images: Tensor
    """uint8 RGB, shape (B, S, S, 3)."""
    masks: Tensor
    """Train ids, uint8 or int32, shape (B, S, S); all ignored in slots of weight 0."""
    keys: tuple[str, ...]
    weights: tuple[int, ...]
    """1, or 0 for a slot from which nothing is learnt: behind the end of the run, or bad."""
    denominators: tuple[float, float] = (0.0, 0.0)
    """What the loss's sums over pixels and over images are divided by: the sums of the samples."""
    bad: tuple[BadSample, ...] = ()
    """Samples that could not be had."""
    failure: CocosegError | None = None
    """Why none could be read: the store does not answer, the cache has no room."""

    def pin_memory(self) -> "MicroBatch":
        """Move to page-locked memory; called by the loader where a GPU waits."""
        return replace(self, images=self.images.pin_memory(), masks=self.masks.pin_memory())

    def to(self, device: torch.device) -> "MicroBatch":
        """Copy images and masks to a device, without waiting where they are page-locked."""
        images = self.images.to(device, non_blocking=True)
        return replace(self, images=images, masks=self.masks.to(device, non_blocking=True))


class TrainingSamples(Dataset[MicroBatch]):
    """Augmented samples by their positions in the endless sequence of the plan.

    Parameters
    ----------
    end
        Positions from here on are fillers: they show their picture, for the batch norms, and their
        mask is all ignored. None: the sequence has no end.
    denominators
        What a mask, as it is trained on, adds to the divisors of the loss; must be picklable. None:
        not asked for, and 0.
    repeats
        What the plan orders: showings of samples, each augmented in its own way. None: samples.

    Raises
    ------
    ConfigError
        If `augment` names an augmentation that is none.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: SampleOrder,
        augment: AugmentConfig,
        input_size: int,
        end: int | None = None,
        denominators: Denominators | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        check_extra(augment)  # here, and not in a loader's process
        self.shards = shards
        self.order = order
        self.augment = augment
        self.input_size = input_size
        self.end = end
        self.denominators = denominators
        self.repeats = repeats or Repeats.counted(None, shards.shard_sizes)
        self._transform: TrainingTransform | None = None

    def __getitems__(self, positions: Sequence[int]) -> MicroBatch:
        """Read a micro-batch; what goes wrong is told in it, as all processes must hear of it.

        A bad sample's slot shows another picture of the micro-batch, for the batch norms.
        """
        located = [self.order.locate(position) for position in positions]
        numbers = [self.repeats.sample(showing) for _, showing in located]
        try:
            read = self.shards.read_many(numbers)
        except CocosegError as error:
            return self._failed(len(positions), error)
        good = [sample for sample in read if isinstance(sample, Sample)]
        images, masks, weights = [], [], []
        over_pixels, over_images = 0.0, 0.0
        for slot, (position, place, sample) in enumerate(
            zip(positions, located, read, strict=True)
        ):
            counts = isinstance(sample, Sample) and (self.end is None or position < self.end)
            if isinstance(sample, BadSample):
                shown = good[slot % len(good)] if good else None
            else:
                shown = sample
            image, mask = self._augmented(shown, *place)
            if not counts:
                mask = np.full_like(mask, self.shards.taxonomy.ignore_index)
            if self.denominators is not None:
                of_pixels, of_image = self.denominators(mask)
                over_pixels, over_images = over_pixels + of_pixels, over_images + of_image
            images.append(torch.from_numpy(image))
            masks.append(torch.from_numpy(mask))
            weights.append(int(counts))
        return MicroBatch(
            default_collate(images),  # straight into memory that the loader's processes share
            default_collate(masks),
            tuple(sample.key for sample in read),
            tuple(weights),
            (over_pixels, over_images),
            tuple(sample for sample in read if isinstance(sample, BadSample)),
        )

    def _augmented(
        self, sample: Sample | None, epoch: int, showing: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.integer]]:
        """Return image and mask, (S, S, 3) and (S, S); blank ones for None."""
        if sample is None:
            size = (self.input_size, self.input_size)
            return np.zeros((*size, 3), np.uint8), np.zeros(size, self._mask_type)
        if self._transform is None:  # built in the process that uses it
            self._transform = TrainingTransform(
                self.augment, self.input_size, self.shards.taxonomy.ignore_index
            )
        seed = np.random.SeedSequence((self.order.seed, epoch, showing)).generate_state(1)[0]
        image, mask = self._transform(sample.image, sample.mask, int(seed))
        return image, mask.astype(self._mask_type, copy=False)

    def _failed(self, count: int, error: CocosegError) -> MicroBatch:
        image, mask = (torch.from_numpy(one) for one in self._augmented(None, 0, 0))
        images, masks = default_collate([image] * count), default_collate([mask] * count)
        return MicroBatch(images, masks, ("",) * count, (0,) * count, failure=error)

    @property
    def _mask_type(self) -> type[np.uint8] | type[np.int32]:
        return np.uint8 if self.shards.taxonomy.bits == 8 else np.int32  # torch has few uint16


def micro_batches(
    samples: TrainingSamples,
    layout: BatchLayout,
    rank: int,
    first_step: int,
    last_step: int,
    workers: int,
    pin_memory: bool,
) -> Generator[list[MicroBatch], None, None]:
    """Yield the micro-batches of each optimizer step, first_step ≤ step < last_step.

    The state of the loader is `first_step` alone.
    """
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=layout.micro_batches(rank, range(first_step, last_step)),
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        **loader_options(workers, __name__),
    )
    step: list[MicroBatch] = []
    for batch in loader:
        step.append(batch)
        if len(step) == layout.accumulation_steps:
            yield step
            step = []


def _as_it_is(batch: Any) -> Any:
    return batch


class Copier(Protocol):
    """Copies the micro-batches of a step to a device while another step computes."""

    device: torch.device

    def copy(self, step: list[MicroBatch]) -> tuple[list[MicroBatch], Any]:
        """Start copying, in a thread of its own; return the copies, and what `await_` takes."""
        ...

    def await_(self, step: list[MicroBatch], copied: Any) -> None:
        """Let what is computed next wait for the copies, without waiting itself."""
        ...


class StreamCopier:
    """Copies on a stream of its own, beside the kernels of the present step."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)

    def copy(self, step: list[MicroBatch]) -> tuple[list[MicroBatch], Any]:
        """See `Copier`."""
        with torch.cuda.stream(self._stream):
            return [batch.to(self.device) for batch in step], self._stream.record_event()

    def await_(self, step: list[MicroBatch], copied: Any) -> None:
        """See `Copier`."""
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(copied)
        for batch in step:  # their memory is not used again before the kernels that read it
            batch.images.record_stream(computing)
            batch.masks.record_stream(computing)


def on_device(
    steps: Generator[list[MicroBatch], None, None], device: torch.device
) -> Generator[list[MicroBatch], None, None]:
    """Yield steps whose tensors are on their way to a GPU; on other devices, as they are.

    What the loader raises surfaces at the step that it belongs to. Closing closes `steps`.
    """
    if device.type == "cuda":
        return copied_ahead(steps, StreamCopier(device))
    return steps


def copied_ahead(
    steps: Generator[list[MicroBatch], None, None], copier: Copier
) -> Generator[list[MicroBatch], None, None]:
    """Yield the copies of steps; the next step is read and copied while the present one is used."""

    def following() -> tuple[list[MicroBatch], Any] | None:
        step = next(steps, None)
        return None if step is None else copier.copy(step)

    with contextlib.closing(steps):
        # The loader's processes start here, in the thread that will also end them.
        found = following()
        with threads_for(copier.device, 1, "cocoseg-copy") as thread:
            while found is not None:
                step, copied = found
                coming = thread.submit(following)
                copier.await_(step, copied)
                yield step
                found = coming.result()
