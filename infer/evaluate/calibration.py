"""Whether probabilities can be trusted: of pixels that are 80 % sure, 80 % are right.

Definition: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), §2: pixels are put
into bins by the probability of their predicted class; the expected calibration error (ECE) is the
mean distance of accuracy and mean probability in a bin, weighted by its pixels. 15 bins of equal
width, as there.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...metrics import fractions, plain
from ...model.counts import BINS, UNIT


@dataclass(frozen=True, slots=True)
class Calibration:
    """Accuracy against probability; NaN where a bin is empty."""

    ece: float
    """Expected calibration error, 0…1."""
    pixels: NDArray[np.int64]
    """By bin, shape (BINS,)."""
    accuracy: NDArray[np.float64]
    """Share of pixels that are right, by bin."""
    confidence: NDArray[np.float64]
    """Mean probability of the predicted class, by bin."""

    @classmethod
    def from_counts(cls, counts: NDArray[np.int64]) -> "Calibration":
        """Derive it from the sum of `calibration_counts` over images, shape (BINS, 3)."""
        rows = counts.tolist()  # Python's integers: products that would not fit into 64 bits
        total = sum(pixels for pixels, _, _ in rows)
        gaps = sum(abs(right * UNIT - units) for _, right, units in rows)
        pixels, right, units = counts.T
        return cls(
            ece=gaps / (UNIT * total) if total else float("nan"),
            pixels=pixels,
            accuracy=fractions(right, pixels),
            confidence=fractions(units, pixels) / UNIT,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; NaN becomes None."""
        return {
            "ECE": plain(self.ece),
            "bins": [
                {
                    "above": i / BINS,
                    "up_to": (i + 1) / BINS,
                    "pixels": int(self.pixels[i]),
                    "accuracy": plain(self.accuracy[i]),
                    "confidence": plain(self.confidence[i]),
                }
                for i in range(BINS)
            ],
        }
