"""What the index of shards counts, over all samples, and what of it deserves a warning."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..classes_file import IGNORE_NAMES
from ..taxonomy import Taxonomy
from .manifest import Index

_NAMED = 8  # classes or samples in a warning


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
    binary: int
    """Samples of background and ignored pixels, and no others."""
    samples: int

    @classmethod
    def of(cls, indices: Sequence[Index], classes: int) -> "Census":
        """Count; no sample is read.

        Parameters
        ----------
        classes
            C, background included.
        """
        pixels = np.zeros(classes, np.int64)
        ignored, first, background, binary = 0, 0, 0, 0
        untaught: list[int] = []
        for index in indices:
            by_sample, train_ids, counts = _entries(index)
            valid = train_ids < classes
            np.add.at(pixels, train_ids[valid], counts[valid])
            ignored += int(counts[~valid].sum())
            taught = np.bincount(by_sample[valid], minlength=len(index))
            things = np.bincount(by_sample[valid & (train_ids > 0)], minlength=len(index))
            untaught += (first + np.flatnonzero(taught == 0)).tolist()
            void = np.bincount(by_sample[~valid], minlength=len(index))
            background += int(((things == 0) & (taught > 0)).sum())
            binary += int(((things == 0) & (taught > 0) & (void > 0)).sum())
            first += len(index)
        return cls(pixels, ignored, tuple(untaught), background, binary, first)

    def warnings(
        self, taxonomy: Taxonomy, indices: Sequence[Index], *, absent_classes: bool = True
    ) -> Iterator[str]:
        """Yield what makes training learn less than expected, or nothing.

        Parameters
        ----------
        indices
            Those that were counted.
        absent_classes
            Whether classes without a pixel are named.
        """
        things, void = self.samples - self.background - len(self.untaught), taxonomy.ignore_index
        advice = (
            f"{void} means 'ignored', so that the foreground is not learned. Write the train id of "
            f"the class (1 …) instead of {void}"
        )
        absent = [i for i in range(1, taxonomy.num_classes) if not self.pixels[i]]
        if self.binary > things:
            who = "the masks" if not things else f"{self.binary:,} of {self.samples:,} masks"
            yield f"{who} look like binary masks: they hold the values 0 and {void} only. {advice}"
        elif self.samples and len(self.untaught) == self.samples:
            yield "every pixel of every mask is ignored: nothing can be learned"
        elif self.samples and not things:
            yield "no mask has a pixel of any class: only background can be learned"
        for train_id, name in enumerate(taxonomy.names):
            if name.casefold() in IGNORE_NAMES and self.pixels[train_id]:
                yield (
                    f"{name!r} is a class, train id {train_id}: its pixels are learned and scored. "
                    f"To ignore them, write {void} instead of {train_id} in the masks"
                )
        if absent_classes and absent and things:
            names = ", ".join(taxonomy.names[i] for i in absent[:_NAMED])
            yield (
                f"{len(absent):,} of {taxonomy.num_classes - 1:,} classes have no pixel and can be "
                f"neither learned nor scored: {names}{' …' * (len(absent) > _NAMED)}"
            )
        if 0 < len(self.untaught) < self.samples:
            yield (
                f"{len(self.untaught):,} of {self.samples:,} masks are ignored as a whole and "
                f"contribute nothing: {', '.join(_keys(indices, self.untaught[:_NAMED]))}"
                f"{' …' * (len(self.untaught) > _NAMED)}"
            )


def _keys(indices: Sequence[Index], numbers: Sequence[int]) -> Iterator[str]:
    ends = np.cumsum([len(index) for index in indices])
    for number in numbers:
        part = int(np.searchsorted(ends, number, side="right"))
        yield indices[part].row(number - int(ends[part]) + len(indices[part])).key


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
