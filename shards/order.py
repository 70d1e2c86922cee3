"""The order of samples: pure functions of (shard sizes, seed, epoch), no I/O.

An epoch permutes the shards, cuts their samples into K streams of equal length (± 1), permutes each
stream within blocks of a few shards, and takes the streams in turn. Reads stay nearly sequential,
neighbors in a shard end up far apart, and any position is found in O(block), whatever N is: an
epoch starts at the cost of one permutation of the shards and one of a block in each stream.

Training runs on one endless sequence of epochs. Optimizer step t takes the positions [t·B, (t+1)·B)
of it, B being the global batch: slot s goes to rank s mod W, micro-batch s div W div its size. So
the global batches depend neither on the number of ranks nor of loader workers, every sample is used
exactly once an epoch, and the state of the loader is one integer, t.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

ORDER = 3
"""Version of the order and of what is drawn for each sample: a run that was begun in another one
cannot be resumed exactly."""
_KEPT_BLOCKS_A_STREAM = 2  # the current block and, where an epoch ends, the next one's


@dataclass(slots=True)
class SampleOrder:
    """The endless order of N samples; sample numbers count through the shards, 0…N-1."""

    shard_sizes: Sequence[int]
    """Samples in each shard; a shard may be empty."""
    seed: int
    streams: int = 8
    """K: how many places of the data set are read in turn."""
    block_shards: int = 4
    """Shards whose samples are permuted together; K times as many are alive at once."""
    _starts: NDArray[np.int64] = field(init=False, repr=False)
    _block_length: int = field(init=False, repr=False)
    _layouts: "OrderedDict[int, _Layout]" = field(init=False, repr=False)
    _blocks: "OrderedDict[tuple[int, int, int], NDArray[np.int64]]" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.streams < 1 or self.block_shards < 1 or min(self.shard_sizes, default=0) < 0:
            raise ValueError("streams and block_shards are at least 1, shard sizes at least 0")
        self._starts = np.concatenate(([0], np.cumsum(self.shard_sizes, dtype=np.int64)))
        self._layouts, self._blocks = OrderedDict(), OrderedDict()
        if self.samples < 1:
            raise ValueError("there are no samples")
        self._block_length = self.block_shards * max(self.shard_sizes)

    @property
    def samples(self) -> int:
        """N: samples per epoch."""
        return int(self._starts[-1])

    def locate(self, position: int) -> tuple[int, int]:
        """Return (epoch, sample) at a position of the endless sequence."""
        epoch, offset = divmod(position, self.samples)
        row, stream = divmod(offset, self.streams)  # the first streams hold the one more, if any
        block, place = divmod(row + self._lead(stream), self._block_length)
        return epoch, int(self._block(epoch, stream, block)[place if block else row])

    @property
    def samples_alive(self) -> int:
        """Most samples in the shards that are read at a time: what a cache should hold."""
        spanned = self.block_shards + 2  # blocks and streams may begin and end inside a shard
        return min(self.samples, self.streams * spanned * max(self.shard_sizes))

    def _lead(self, stream: int) -> int:
        """Return how many samples the first block of a stream is shorter than the others.

        The streams begin their blocks one after the other, so that new shards are needed steadily
        and not those of all streams at once.
        """
        return stream * self._block_length // self.streams

    def _block(self, epoch: int, stream: int, block: int) -> NDArray[np.int64]:
        """Return the samples of one block in their order, shape (≤ block length,)."""
        name = (epoch, stream, block)
        if name not in self._blocks:
            layout = self._layout(epoch)
            begin, end = _cut(self.samples, self.streams, stream)
            first = begin + block * self._block_length - self._lead(stream)
            places = np.arange(
                max(first, begin), min(first + self._block_length, end), dtype=np.int64
            )
            order = _permutation(len(places), self.seed, epoch, 1 + stream, block)
            self._blocks[name] = layout.samples(places[order])
            if len(self._blocks) > _KEPT_BLOCKS_A_STREAM * self.streams:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(name)
        return self._blocks[name]

    def _layout(self, epoch: int) -> "_Layout":
        if epoch not in self._layouts:
            order = _permutation(len(self.shard_sizes), self.seed, epoch, 0, 0)
            sizes = np.asarray(self.shard_sizes, np.int64)[order]
            ends = np.cumsum(sizes)
            self._layouts[epoch] = _Layout(ends, self._starts[:-1][order] - (ends - sizes))
            if len(self._layouts) > 2:
                self._layouts.popitem(last=False)
        return self._layouts[epoch]


@dataclass(frozen=True, slots=True)
class _Layout:
    """One epoch's samples with the shards permuted, as one long row of places."""

    ends: NDArray[np.int64]
    """Place behind the last sample of each permuted shard."""
    shifts: NDArray[np.int64]
    """What turns a place in it into a sample number."""

    def samples(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        shards = np.searchsorted(self.ends, places, side="right")
        return places + self.shifts[shards]


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """How the global batch of a step is dealt to ranks and micro-batches."""

    batch_size: int
    """Samples a rank and micro-batch."""
    world_size: int
    accumulation_steps: int
    """Micro-batches per optimizer step."""

    def __post_init__(self) -> None:
        if min(self.batch_size, self.world_size, self.accumulation_steps) < 1:
            raise ValueError("a batch has a sample at least, a run one process and one micro-batch")

    @property
    def global_batch(self) -> int:
        """B: samples per optimizer step."""
        return self.batch_size * self.world_size * self.accumulation_steps

    def positions(self, step: int, rank: int) -> list[list[int]]:
        """Return the positions of one rank in one step, a list for each micro-batch."""
        first = step * self.global_batch
        slots = [
            range(micro * self.batch_size, (micro + 1) * self.batch_size)
            for micro in range(self.accumulation_steps)
        ]
        return [[first + local * self.world_size + rank for local in micro] for micro in slots]

    def micro_batches(self, rank: int, steps: Iterable[int]) -> Iterator[list[int]]:
        """Yield the positions of one rank's micro-batches, step after step."""
        for step in steps:
            yield from self.positions(step, rank)


def steps_for(epochs: float, samples: int, global_batch: int) -> int:
    """Return the optimizer steps of `epochs`: ceil(epochs · N / B)."""
    return max(1, -int(-epochs * samples // global_batch))


def evaluation_batches(samples: int, batch_size: int, world_size: int, rank: int) -> list[range]:
    """Deal the canonical batches of an evaluation: every sample once, whole batches to ranks.

    Batches are cut in the order of the shards and do not depend on `world_size`: the composition
    of a batch changes the last bits of the logits.
    """
    starts = range(rank * batch_size, samples, world_size * batch_size)
    return [range(start, min(start + batch_size, samples)) for start in starts]


def _cut(samples: int, streams: int, stream: int) -> tuple[int, int]:
    length, longer = divmod(samples, streams)
    begin = stream * length + min(stream, longer)
    return begin, begin + length + (stream < longer)


def _permutation(size: int, *key: int) -> NDArray[np.int64]:
    # Raw bits of a bit generator never change between NumPy versions (NEP 19); shuffles may.
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(bits, kind="stable").astype(np.int64)
