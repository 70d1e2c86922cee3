"""What the index of shards counts, over all samples."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..shards.manifest import Index
from ..shards.reader import ShardSet


@dataclass(frozen=True, slots=True)
class Census:
    """Pixels and masks of N samples."""

    pixels: NDArray[np.int64]
    """By train id, shape (C,)."""
    ignored: int
    """Pixels of the ignore index."""
    untaught: tuple[int, ...]
    """Samples whose mask is ignored whole."""
    background: int
    """Samples of background alone."""

    @classmethod
    def of(cls, shards: ShardSet) -> "Census":
        """Count; no sample is read."""
        classes = shards.taxonomy.num_classes
        pixels = np.zeros(classes, np.int64)
        ignored, first, background = 0, 0, 0
        untaught: list[int] = []
        for index in shards.indices:
            by_sample, train_ids, counts = _entries(index)
            valid = train_ids < classes
            np.add.at(pixels, train_ids[valid], counts[valid])
            ignored += int(counts[~valid].sum())
            taught = np.bincount(by_sample[valid], minlength=len(index))
            things = np.bincount(by_sample[valid & (train_ids > 0)], minlength=len(index))
            untaught += (first + np.flatnonzero(taught == 0)).tolist()
            background += int(((things == 0) & (taught > 0)).sum())
            first += len(index)
        return cls(pixels, ignored, tuple(untaught), background)


def _entries(
    index: Index,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (sample, train id, pixels) of every class in every sample."""
    number = index.samples["classes"].astype(np.int64)
    starts = index.samples["classes_start"].astype(np.int64)
    places = np.arange(number.sum()) + np.repeat(starts - (np.cumsum(number) - number), number)
    owners = np.repeat(np.arange(len(index)), number)
    records = index.classes[places]
    return owners, records["train_id"].astype(np.int64), records["pixels"].astype(np.int64)
