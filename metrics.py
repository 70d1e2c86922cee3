"""Scores of a segmentation, all from one integer confusion matrix.

Definitions: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective"
(2015), §3.2 for IoU; Long et al., "Fully Convolutional Networks" (2015), §5 for pixel accuracy,
mean accuracy and frequency-weighted IoU; Dice, "Measures of the Amount of Ecologic Association
Between Species" (1945).
A class is in a mean if its union (for accuracy: its truth) is not empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of one confusion matrix; fractions 0…1, NaN where nothing was to be scored."""

    miou: float
    """Mean IoU over the classes whose union is not empty, background among them."""
    miou_foreground: float
    """The same without background (train id 0)."""
    pixel_accuracy: float
    mean_accuracy: float
    """Mean recall over the classes present in the truth."""
    mean_dice: float
    """Mean Dice over the classes whose union is not empty."""
    frequency_weighted_iou: float
    """Mean IoU, each class weighted by its truth pixels."""
    iou: NDArray[np.float64]
    """Per class, shape (C,); NaN for an empty union."""
    accuracy: NDArray[np.float64]
    """Recall per class, shape (C,); NaN for a class absent from the truth."""
    dice: NDArray[np.float64]
    """2 · hits ÷ (truth + predicted) per class, shape (C,); NaN for an empty union."""
    pixels: NDArray[np.int64]
    """Truth pixels per class, shape (C,)."""
    predicted: NDArray[np.int64]
    """Predicted pixels per class, shape (C,)."""

    @classmethod
    def from_confusion(cls, matrix: NDArray[np.int64]) -> "Scores":
        """Derive all scores from the counts of `model.counts.confusion_counts`.

        Pixels without a prediction are misses of their class, and nobody's false positives.

        Parameters
        ----------
        matrix
            Shape (C, C), or (C, C + 1) with a last column of pixels without a prediction.
        """
        truth, predicted = matrix.sum(axis=1), matrix[:, : len(matrix)].sum(axis=0)
        hits = np.diag(matrix)
        union = truth + predicted - hits
        iou = fractions(hits, union)
        accuracy = fractions(hits, truth)
        dice = fractions(2 * hits, truth + predicted)
        there = truth > 0
        weighted = float((truth[there] * iou[there]).sum())
        return cls(
            miou=mean(iou),
            miou_foreground=mean(iou[1:]),
            pixel_accuracy=float(fractions(hits.sum(), truth.sum())),
            mean_accuracy=mean(accuracy),
            mean_dice=mean(dice),
            frequency_weighted_iou=weighted / int(truth.sum()) if there.any() else float("nan"),
            iou=iou,
            accuracy=accuracy,
            dice=dice,
            pixels=truth,
            predicted=predicted,
        )

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the JSON form; NaN becomes None."""
        return {
            "mIoU": plain(self.miou),
            "mIoU_foreground": plain(self.miou_foreground),
            "pixel_accuracy": plain(self.pixel_accuracy),
            "mean_accuracy": plain(self.mean_accuracy),
            "mean_Dice": plain(self.mean_dice),
            "frequency_weighted_IoU": plain(self.frequency_weighted_iou),
            "classes": [
                {
                    "train_id": train_id,
                    "name": name,
                    "IoU": plain(self.iou[train_id]),
                    "accuracy": plain(self.accuracy[train_id]),
                    "Dice": plain(self.dice[train_id]),
                    "pixels": int(self.pixels[train_id]),
                    "predicted_pixels": int(self.predicted[train_id]),
                }
                for train_id, name in enumerate(names)
            ],
        }


def fractions(
    part: NDArray[np.int64] | np.int64, whole: NDArray[np.int64] | np.int64
) -> NDArray[np.float64]:
    """Return part ÷ whole, NaN where the whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, np.true_divide(part, whole), np.nan)


def mean(values: NDArray[np.float64]) -> float:
    """Return the mean of those that are not NaN; NaN if there is none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def plain(value: float | np.float64) -> float | None:
    """Return what JSON knows: None for NaN."""
    return None if np.isnan(value) else float(value)
