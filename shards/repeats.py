"""Rare classes more often: how many times an epoch shows each sample.

The plan orders *showings*, as many of a sample as it has repeats, and knows nothing of it: shard
sizes count showings, and showing numbers count through the samples as sample numbers do through the
shards. So the order stays a pure function, and the length of an epoch is exact.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from .manifest import Index
from .reader import ShardSet

_BLOCK = 256  # samples whose repeats are added up to find one
_CHUNK = 2**16  # samples of an index that are looked at together
_HASH = 1  # a fifth word: seeds of permutations have four


@dataclass(frozen=True, slots=True, eq=False)
class Repeats:
    """How often an epoch shows each of N samples, every one once at least.

    Takes one byte a sample (two where one is shown more than 255 times) and eight for each 256, in
    memory and on its way to a loader's process: 0.12 MB for COCO's 118,287 samples, 10.3 MB for 10
    million; nothing where every sample is shown once.
    """

    shard_sizes: Sequence[int]
    """Showings in each shard."""
    _counts: NDArray[np.integer] | None = field(repr=False)
    """By sample, shape (N,); None: all are 1."""
    _starts: NDArray[np.int64] = field(repr=False)
    """First showing of each block of samples."""

    @classmethod
    def of(cls, shards: ShardSet, threshold: float, seed: int) -> "Repeats":
        """Repeat-factor sampling: show images with rare classes more often.

        A class in a share f of the images has the factor max(1, √(threshold / f)), an image that of
        its rarest class. It is shown ⌊factor⌋ times, and once more with the probability of the
        rest: by a hash of (seed, sample number), in every epoch alike. Background and ignored
        pixels are not classes here, and an image without any other is shown once.

        Source: Gupta, Dollár, Girshick, "LVIS: A Dataset for Large Vocabulary Instance
        Segmentation" (2019), appendix B.2; there the rest is drawn again in every epoch.

        Parameters
        ----------
        threshold
            t, 0…1: classes in fewer images than this share of them are repeated. 0 repeats none.
        seed
            Of the run, as `SampleOrder` has it.

        Raises
        ------
        ConfigError
            If there are no masks whose classes the index could tell.
        """
        if not 0 <= threshold <= 1:
            raise ValueError("the threshold is a share of the images, 0…1")
        if threshold == 0:
            return cls.counted(None, shards.shard_sizes)
        if not all(manifest.masks for manifest in shards.manifests):
            raise ConfigError("train.rare_class_sampling: shards without masks tell no classes")
        factors = repeat_factors(shards.indices, shards.taxonomy.num_classes, threshold)
        bits = np.random.Philox(np.random.SeedSequence((seed, 0, 0, 0, _HASH)))
        counts = np.empty(len(factors), np.uint32)
        for chunk in _chunks(len(factors)):
            whole = np.floor(factors[chunk])
            drawn = (bits.random_raw(len(whole)) >> np.uint64(11)) * 2.0**-53  # of [0, 1)
            counts[chunk] = whole + (drawn < factors[chunk] - whole)
        return cls.counted(counts, shards.shard_sizes)

    @classmethod
    def counted(cls, counts: NDArray[np.integer] | None, sample_sizes: Sequence[int]) -> "Repeats":
        """Show each sample as often as it is said.

        Parameters
        ----------
        counts
            Repeats, at least 1, shape (N,). None: all are 1.
        sample_sizes
            Samples in each shard; N in all.
        """
        if counts is None or (counts == 1).all():
            return cls(tuple(sample_sizes), None, np.zeros(1, np.int64))
        if len(counts) != sum(sample_sizes) or counts.min() < 1:
            raise ValueError("every sample of the shards is shown once at least")
        counts = counts.astype(np.min_scalar_type(counts.max()))
        starts = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        ends = np.concatenate(([0], np.cumsum(sample_sizes, dtype=np.int64)))
        return cls(tuple(np.diff(starts[ends]).tolist()), counts, starts[:-1:_BLOCK].copy())

    def __len__(self) -> int:
        """Return the showings an epoch."""
        return sum(self.shard_sizes)

    def sample(self, showing: int) -> int:
        """Return the sample of a showing, 0 ≤ showing < len(self), in O(log N)."""
        if self._counts is None:
            return showing
        block = int(np.searchsorted(self._starts, showing, side="right")) - 1
        first = block * _BLOCK
        ends = np.cumsum(self._counts[first : first + _BLOCK], dtype=np.int64)
        return first + int(np.searchsorted(ends, showing - self._starts[block], side="right"))


def repeat_factors(
    indices: Sequence[Index], num_classes: int, threshold: float
) -> NDArray[np.float64]:
    """Return how often each image should be shown, at least 1.0, shape (N,); see `Repeats.of`.

    Parameters
    ----------
    indices
        Of all folders; N samples.
    num_classes
        Train ids from here on are ignored.
    """
    images = sum(map(len, indices))
    with_class = np.zeros(num_classes, np.int64)
    for index in indices:
        for _, train_ids in _classes(index):
            with_class += np.bincount(train_ids, minlength=num_classes)[:num_classes]
    by_class = np.ones(2**16)  # by any train id, the ignore index too
    present = np.flatnonzero(with_class[1:]) + 1
    by_class[present] = np.maximum(1, np.sqrt(threshold * images / with_class[present]))
    factors = np.ones(images)
    first = 0
    for index in indices:
        for owners, train_ids in _classes(index):
            np.maximum.at(factors, first + owners, by_class[train_ids])
        first += len(index)
    return factors


def _classes(index: Index) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint16]]]:
    """Yield (sample, train id) of every class in every sample, two arrays for each chunk."""
    for chunk in _chunks(len(index)):
        starts = index.samples["classes_start"][chunk].astype(np.int64)
        counts = index.samples["classes"][chunk].astype(np.int64)
        before = np.cumsum(counts) - counts
        places = np.arange(counts.sum()) + np.repeat(starts - before, counts)
        owners = np.repeat(np.arange(chunk.start, chunk.stop), counts)
        yield owners, index.classes["train_id"][places]


def _chunks(samples: int) -> Iterator[slice]:
    for first in range(0, samples, _CHUNK):
        yield slice(first, min(first + _CHUNK, samples))
