"""What is counted over images: integers alone, so that parts add up to the same in any order."""

# C classes, H W pixels

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...model.counts import BINS
from ...model.score import Scored
from ...taxonomy import Taxonomy
from .boundary import boundary_counts


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one image, or of many."""

    confusion: NDArray[np.int64]
    """Pixels by (truth, prediction), shape (C, C + 1): the last column is 'no prediction'."""
    boundary: NDArray[np.int64]
    """See `boundary_counts`, shape (C, 3)."""
    calibration: NDArray[np.int64]
    """See `calibration_counts`, shape (BINS, 3); all 0 where there are no probabilities."""

    @classmethod
    def empty(cls, num_classes: int) -> "Tally":
        """Return the counts of no image."""
        return cls(
            np.zeros((num_classes, num_classes + 1), np.int64),
            np.zeros((num_classes, 3), np.int64),
            np.zeros((BINS, 3), np.int64),
        )

    @classmethod
    def of(cls, scored: Scored, taxonomy: Taxonomy, *, boundary: bool) -> "Tally":
        """Return the counts of one image."""
        if not boundary:
            none = np.zeros((taxonomy.num_classes, 3), np.int64)
            return cls(scored.confusion, none, scored.calibration)
        counts = boundary_counts(
            scored.sample.mask, scored.mask, taxonomy.num_classes, taxonomy.ignore_index
        )
        return cls(scored.confusion, counts, scored.calibration)

    def add(self, other: "Tally") -> None:
        """Count what `other` has, too."""
        self.confusion[...] += other.confusion
        self.boundary[...] += other.boundary
        self.calibration[...] += other.calibration

    def to_vector(self) -> NDArray[np.int64]:
        """Return all counts in one row, as they travel between processes."""
        parts = (self.confusion, self.boundary, self.calibration)
        return np.concatenate([part.ravel() for part in parts])

    @classmethod
    def from_vector(cls, vector: NDArray[np.int64], num_classes: int) -> "Tally":
        """Read what `to_vector` wrote."""
        shapes = (num_classes, num_classes + 1), (num_classes, 3), (BINS, 3)
        ends = np.cumsum([rows * columns for rows, columns in shapes])
        parts = np.split(vector, ends[:-1])
        return cls(*(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)))
