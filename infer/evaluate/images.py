"""The score of each image, and the worst of them with their pictures."""

# H W pixels

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...colors import overlay_errors
from ...metrics import Scores
from ...model.counts import UNIT
from ...model.score import Scored
from ...report.blocks import Jpeg
from ...report.thumbnails import overlay_thumbnail, thumbnail
from ...shards.reader import Sample
from .label_errors import label_quality

WORST = 24
"""How many images the report shows."""


class ClassScore(NamedTuple):
    """The score of one class in one image."""

    train_id: int
    iou: float
    pixels: int
    predicted: int
    label_quality: float
    """See `label_quality`; NaN where the class is not annotated, or without probabilities."""


@dataclass(frozen=True, slots=True)
class ImageScore:
    """The score of one image alone."""

    position: int
    """Of the sample in the shards."""
    key: str
    file_name: str
    """Of the image as its sample records it; the key where it records none."""
    height: int
    width: int
    pixels: int
    """That were scored: all but the ignored ones."""
    miou: float
    """Mean IoU over the classes that are there or were predicted; NaN if all is ignored."""
    pixel_accuracy: float
    worst_class: int
    """Train id of the lowest IoU, the first of equal ones; -1 if all is ignored."""
    worst_iou: float
    confidence: float
    """Mean probability of the predicted classes over the scored pixels; NaN without any."""
    label_quality: float
    """Of all pixels; NaN if all is ignored, or without probabilities."""
    classes: tuple["ClassScore", ...]
    """Of the classes that are there or were predicted, by train id."""
    confusion: tuple[tuple[int, int, int], ...] = ()
    """Ground truth, prediction (C: none) and pixels of each pair that occurs."""

    @classmethod
    def of(cls, scored: Scored, file_name: str) -> "ImageScore":
        """Score one image."""
        scores = Scores.from_confusion(scored.confusion)
        sample, num_classes = scored.sample, len(scored.confusion)
        quality = np.full(num_classes + 1, np.nan)
        if scored.truth_probability is not None:
            quality = label_quality(sample.mask, scored.truth_probability, num_classes)
        sure, _, units = scored.calibration.sum(axis=0).tolist()
        known = not math.isnan(scores.miou)
        worst = int(np.nanargmin(scores.iou)) if known else -1
        return cls(
            position=scored.position,
            key=sample.key,
            file_name=file_name,
            height=sample.mask.shape[0],
            width=sample.mask.shape[1],
            pixels=int(scored.confusion.sum()),
            miou=scores.miou,
            pixel_accuracy=scores.pixel_accuracy,
            worst_class=worst,
            worst_iou=float(scores.iou[worst]) if known else math.nan,
            confidence=units / (UNIT * sure) if sure else math.nan,
            label_quality=float(quality[-1]),
            classes=tuple(
                ClassScore(
                    int(train_id),
                    float(scores.iou[train_id]),
                    int(scores.pixels[train_id]),
                    int(scores.predicted[train_id]),
                    float(quality[train_id]),
                )
                for train_id in np.flatnonzero(~np.isnan(scores.iou))
            ),
            confusion=tuple(
                (int(truth), int(predicted), int(scored.confusion[truth, predicted]))
                for truth, predicted in np.argwhere(scored.confusion)
            ),
        )


@dataclass(frozen=True, slots=True)
class ShownImage:
    """An image with its pictures."""

    score: ImageScore
    image: Jpeg
    truth: Jpeg
    prediction: Jpeg
    errors: Jpeg
    true_classes: tuple[int, ...]
    """Train ids in the ground truth, the largest first, background last."""
    predicted_classes: tuple[int, ...]
    """Train ids in the prediction where the ground truth is not ignored, in the same order."""

    @classmethod
    def of(
        cls,
        score: ImageScore,
        sample: Sample,
        prediction: NDArray[np.integer],
        confusion: NDArray[np.int64],
        ignore_index: int,
    ) -> "ShownImage":
        """Draw an image, its truth and its prediction, small."""
        return cls(
            score,
            thumbnail(sample.image),
            overlay_thumbnail(sample.image, sample.mask, ignore_index),
            overlay_thumbnail(sample.image, prediction, ignore_index),
            thumbnail(overlay_errors(sample.image, sample.mask, prediction, ignore_index)),
            _by_size(confusion.sum(axis=1)),
            _by_size(confusion[:, :-1].sum(axis=0)),
        )


def _by_size(pixels: NDArray[np.int64]) -> tuple[int, ...]:
    there = [int(train_id) for train_id in np.flatnonzero(pixels)]
    return tuple(sorted(there, key=lambda train_id: (train_id == 0, -pixels[train_id])))


class Worst:
    """The `WORST` images of the lowest mIoU met so far; of equal ones, the first in the shards.

    The worst of all are among the worst of each part: so parts can be dealt to processes.
    """

    def __init__(self, shown: Iterable[ShownImage] = ()) -> None:
        self.shown: Sequence[ShownImage] = sorted(shown, key=lambda one: _rank(one.score))[:WORST]
        """The worst first."""

    def admits(self, score: ImageScore) -> bool:
        """Whether an image is among the worst so far: drawing it may be worth the time."""
        if math.isnan(score.miou):
            return False
        return len(self.shown) < WORST or _rank(score) < _rank(self.shown[-1].score)

    def add(self, shown: ShownImage) -> None:
        """Keep an image if it is among the worst."""
        if self.admits(shown.score):
            self.shown = Worst([*self.shown, shown]).shown


def _rank(score: ImageScore) -> tuple[float, int]:
    return score.miou, score.position
