"""Scores of a segmentation, all from one integer confusion matrix.

Definitions: Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective"
(2015), §3.2 for IoU; Long et al., "Fully Convolutional Networks" (2015), §5 for pixel and mean
accuracy. A class is in the mean if its union (for accuracy: its truth) is not empty.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def confusion_matrix(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    num_classes: int,
    ignore_index: int,
) -> NDArray[np.int64]:
    """Count pixels by (truth, prediction).

    Parameters
    ----------
    truth
        Train ids of any shape; `ignore_index` pixels are left out.
    prediction
        Train ids of the same shape, all below `num_classes`.

    Returns
    -------
    ndarray
        int64, shape (num_classes, num_classes); rows are the truth.

    Raises
    ------
    ValueError
        If the shapes differ or a value is no train id.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    valid = truth != ignore_index
    rows, columns = truth[valid].astype(np.int64), prediction[valid].astype(np.int64)
    for name, ids in (("truth", rows), ("prediction", columns)):
        if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
            raise ValueError(f"{name} holds train id {ids.max()}, expected 0…{num_classes - 1}")
    counts = np.bincount(rows * num_classes + columns, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64)


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
    iou: NDArray[np.float64]
    """Per class, shape (C,); NaN for an empty union."""
    accuracy: NDArray[np.float64]
    """Recall per class, shape (C,); NaN for a class absent from the truth."""
    pixels: NDArray[np.int64]
    """Truth pixels per class, shape (C,)."""

    @classmethod
    def from_confusion(cls, matrix: NDArray[np.int64]) -> "Scores":
        """Derive all scores from `confusion_matrix`'s result, shape (C, C)."""
        hits = np.diag(matrix).astype(np.float64)
        truth, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
        union = truth + predicted - np.diag(matrix)
        iou = _ratio(hits, union)
        accuracy = _ratio(hits, truth)
        return cls(
            miou=_mean(iou),
            miou_foreground=_mean(iou[1:]),
            pixel_accuracy=float(_ratio(hits.sum(), np.asarray(matrix.sum()))),
            mean_accuracy=_mean(accuracy),
            iou=iou,
            accuracy=accuracy,
            pixels=truth,
        )

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the JSON form; NaN becomes None."""
        return {
            "mIoU": _plain(self.miou),
            "mIoU_foreground": _plain(self.miou_foreground),
            "pixel_accuracy": _plain(self.pixel_accuracy),
            "mean_accuracy": _plain(self.mean_accuracy),
            "classes": [
                {
                    "train_id": train_id,
                    "name": name,
                    "IoU": _plain(self.iou[train_id]),
                    "accuracy": _plain(self.accuracy[train_id]),
                    "pixels": int(self.pixels[train_id]),
                }
                for train_id, name in enumerate(names)
            ],
        }


def _ratio(part: NDArray[np.float64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _plain(value: float | np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
