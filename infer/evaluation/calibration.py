"""Whether probabilities can be trusted: of pixels that are 80 % sure, 80 % are right.

Definition: Guo et al., "On Calibration of Modern Neural Networks" (ICML 2017), §2: pixels are put
into bins by the probability of their predicted class; the expected calibration error (ECE) is the
mean distance of accuracy and mean probability in a bin, weighted by its pixels. 15 bins of equal
width, as there.
"""

# H W pixels

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...metrics import fractions, plain

BINS = 15
UNIT = 2**24
"""Probabilities are added up as multiples of 1 ÷ `UNIT`: integers, so that the sum is the same in
any order. From 0.5 up a float32 is such a multiple; below, 3e-8 is lost at most. 5e11 pixels fit
into 64 bits."""


def calibration_counts(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    confidence: NDArray[np.floating],
    ignore_index: int,
) -> NDArray[np.int64]:
    """Count the pixels of one image by how sure the prediction is.

    Parameters
    ----------
    truth
        Train ids, shape (H, W); `ignore_index` pixels are left out.
    prediction
        Train ids, shape (H, W).
    confidence
        Probability of the predicted class, 0…1, shape (H, W).

    Returns
    -------
    ndarray
        int64, shape (BINS, 3): pixels, pixels that are right, sum of the probabilities in `UNIT`.
        Bin i holds probabilities above i ÷ BINS, up to (i + 1) ÷ BINS.
    """
    valid = truth != ignore_index
    right = truth[valid] == prediction[valid]
    units = np.rint(np.clip(confidence[valid].astype(np.float64), 0, 1) * UNIT)
    bins = np.maximum((units.astype(np.int64) * BINS - 1) // UNIT, 0)
    counts = (
        np.bincount(bins, minlength=BINS),
        np.bincount(bins[right], minlength=BINS),
        # Exact: whole numbers whose sum, of one image, stays far below 2^53.
        np.bincount(bins, weights=units, minlength=BINS),
    )
    return np.stack([column.astype(np.int64) for column in counts], axis=1)


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
