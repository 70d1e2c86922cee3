"""The scores of one checkpoint, or of a folder of masks, on one set of shards."""

# C classes

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...metrics import Scores, mean, plain
from ...results import Result
from ...taxonomy import Taxonomy
from .boundary import DILATION_RATIO, boundary_iou
from .calibration import Calibration
from .images import ImageScore, ShownImage
from .label_errors import SuspiciousRegion
from .scored import ScoredNetwork
from .tally import Tally

CONFUSIONS = 50
"""How many pairs of classes are listed."""
NO_PREDICTION = "(no prediction)"


@dataclass(frozen=True, slots=True)
class Confusion:
    """Pixels of one class that were taken for another."""

    truth: int
    predicted: int
    """Train id; C for no prediction."""
    pixels: int
    share: float
    """Of the true class's pixels."""


@dataclass(frozen=True)
class Evaluation(Result):
    """All scores; the same at any number of processes."""

    checkpoint: ScoredNetwork | None
    predictions: str | None
    """The folder of masks, where no network was asked."""
    views: int
    """Of test-time augmentation; 1 without, 0 where no network was asked."""
    shards: tuple[str, ...]
    taxonomy: Taxonomy
    tally: Tally
    images: tuple[ImageScore, ...]
    """In the order of the shards."""
    worst: tuple[ShownImage, ...]
    """The worst first."""
    regions: tuple[SuspiciousRegion, ...] = ()
    """Where the labels may be wrong, the most suspicious first."""
    quick: bool = False
    """Whether boundary IoU, calibration and label errors were left out."""
    without_tta: Scores | None = None
    """The scores without test-time augmentation, if they were asked for too."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names by train id."""
        return self.taxonomy.names

    @property
    def samples(self) -> int:
        """How many images were scored."""
        return len(self.images)

    @property
    def tta(self) -> bool | None:
        """Whether the probabilities of several views were averaged; None without a network."""
        return self.views > 1 if self.views else None

    @cached_property
    def scores(self) -> Scores:
        """Scores of the confusion matrix."""
        return Scores.from_confusion(self.tally.confusion)

    @cached_property
    def boundary_iou(self) -> NDArray[np.float64]:
        """Boundary IoU by class, shape (C,); NaN where neither has a boundary, or if `quick`."""
        return boundary_iou(self.tally.boundary)

    @cached_property
    def calibration(self) -> Calibration | None:
        """None where there were no probabilities."""
        if self.checkpoint is None or self.quick:
            return None
        return Calibration.from_counts(self.tally.calibration)

    @property
    def without_prediction(self) -> int:
        """Pixels that have a class in the truth, and none in the prediction."""
        return int(self.tally.confusion[:, -1].sum())

    @cached_property
    def seen(self) -> list[int]:
        """Train ids that are in the truth or were predicted."""
        return [int(train_id) for train_id in np.flatnonzero(~np.isnan(self.scores.iou))]

    @cached_property
    def confusions(self) -> list[Confusion]:
        """The most frequent confusions, at most `CONFUSIONS`; equal ones by train ids."""
        wrong = self.tally.confusion.copy()
        np.fill_diagonal(wrong, 0)
        flat = wrong.ravel()
        order = np.argsort(-flat, kind="stable")[:CONFUSIONS]
        places = [int(place) for place in order if flat[place]]
        totals = self.tally.confusion.sum(axis=1)
        return [
            Confusion(truth, predicted, int(flat[place]), float(flat[place] / totals[truth]))
            for place in places
            for truth, predicted in [divmod(place, wrong.shape[1])]
        ]

    def predicted_name(self, train_id: int) -> str:
        """Return a class's name, or what stands for no prediction."""
        return self.names[train_id] if train_id < len(self.names) else NO_PREDICTION

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``metrics.json``; NaN becomes None."""
        scores = self.scores.to_dict(self.names)
        classes = scores.pop("classes")
        for entry, boundary in zip(classes, self.boundary_iou, strict=True):
            entry["boundary_IoU"] = plain(boundary)
        checkpoint = self.checkpoint
        return {
            "checkpoint": None
            if checkpoint is None
            else {
                "path": checkpoint.path,
                "name": checkpoint.name,
                "precision": checkpoint.precision,
                "digest": checkpoint.digest,
            },
            "predictions": self.predictions,
            "tta": self.tta,
            "views": self.views,
            "shards": list(self.shards),
            "samples": self.samples,
            "pixels": int(self.tally.confusion.sum()),
            "pixels_without_prediction": self.without_prediction,
            **scores,
            "boundary_mIoU": plain(mean(self.boundary_iou)),
            "boundary_dilation_ratio": DILATION_RATIO,
            "calibration": self.calibration and self.calibration.to_dict(),
            "confusions": [
                {
                    "truth": self.names[one.truth],
                    "predicted": self.predicted_name(one.predicted),
                    "pixels": one.pixels,
                    "share_of_truth": one.share,
                }
                for one in self.confusions
            ],
            "without_tta": self.without_tta and self.without_tta.to_dict(self.names),
            "worst_images": [
                {
                    "key": shown.score.key,
                    "file_name": shown.score.file_name,
                    "mIoU": shown.score.miou,
                }
                for shown in self.worst
            ],
            "classes": classes,
        }

    def classes_csv(self) -> str:
        """Return ``classes.csv``: a row for each class; empty cells where nothing was scored."""
        scores = self.scores
        columns = ("IoU", "boundary_IoU", "accuracy", "Dice")
        values = zip(scores.iou, self.boundary_iou, scores.accuracy, scores.dice, strict=True)
        return _csv(
            ("train_id", "name", *columns, "pixels", "predicted_pixels"),
            (
                (i, name, *map(_cell, row), int(scores.pixels[i]), int(scores.predicted[i]))
                for i, (name, row) in enumerate(zip(self.names, values, strict=True))
            ),
        )

    def images_csv(self) -> str:
        """Return ``images.csv``: a row for each image, in the order of the shards."""
        return _csv(
            (
                *("key", "file_name", "width", "height", "pixels", "mIoU", "pixel_accuracy"),
                *("worst_class", "worst_IoU", "confidence", "label_quality"),
            ),
            (
                (
                    *(one.key, one.file_name, one.width, one.height, one.pixels),
                    *(_cell(one.miou), _cell(one.pixel_accuracy)),
                    "" if one.worst_class < 0 else self.names[one.worst_class],
                    *map(_cell, (one.worst_iou, one.confidence, one.label_quality)),
                )
                for one in self.images
            ),
        )

    def image_classes_csv(self) -> str:
        """Return ``image_classes.csv``: a row for each class of each image."""
        return _csv(
            (
                *("key", "file_name", "train_id", "name", "IoU", "pixels", "predicted_pixels"),
                "label_quality",
            ),
            (
                (
                    *(image.key, image.file_name, one.train_id, self.names[one.train_id], one.iou),
                    *(one.pixels, one.predicted, _cell(one.label_quality)),
                )
                for image in self.images
                for one in image.classes
            ),
        )

    def image_confusions_csv(self) -> str:
        """Return ``image_confusions.csv``: a row for each pair of classes of each image."""
        return _csv(
            ("key", "file_name", "truth", "predicted", "pixels"),
            (
                (
                    *(image.key, image.file_name, self.names[truth]),
                    *(self.predicted_name(predicted), pixels),
                )
                for image in self.images
                for truth, predicted, pixels in image.confusion
            ),
        )

    def labels_csv(self) -> str:
        """Return ``labels.csv``: regions whose labels may be wrong, the most suspicious first."""
        return _csv(
            (
                *("suspicion", "key", "file_name", "kind", "annotated", "predicted", "pixels"),
                *("left", "top", "width", "height"),
            ),
            (
                (
                    *(f"{one.suspicion:.6f}", one.key, one.file_name, one.kind),
                    *(self.names[one.annotated], self.names[one.predicted], one.pixels, *one.box),
                )
                for one in self.regions
            ),
        )

    def worst_of_class(self, train_id: int, count: int) -> list[tuple[ImageScore, float]]:
        """Return the images in which a class scores worst, with its IoU, the worst first."""
        found = [
            (image, one.iou)
            for image in self.images
            for one in image.classes
            if one.train_id == train_id
        ]
        return sorted(found, key=lambda pair: (pair[1], pair[0].position))[:count]

    def text(self) -> str:
        """Return the scores for people: every class that occurs, the rest counted."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        scores, seen = self.scores, self.seen
        width = max((len(self.names[i]) for i in seen), default=10)
        yield f"{'class':<{width}}    IoU  boundary  accuracy    Dice        pixels"
        for i in sorted(seen, key=lambda i: -scores.iou[i]):
            boundary, accuracy = _number(self.boundary_iou[i]), _number(scores.accuracy[i])
            yield (
                f"{self.names[i]:<{width}} {scores.iou[i]:6.4f}  {boundary:>8}  {accuracy:>8}"
                f"  {scores.dice[i]:6.4f}  {scores.pixels[i]:>12,}"
            )
        absent = len(self.names) - len(seen)
        yield ""
        yield f"mIoU            {scores.miou:.4f}   over {len(seen)} classes" + (
            f"; {absent} neither occur nor were predicted" if absent else ""
        )
        yield f"without background {scores.miou_foreground:.4f}"
        if not self.quick:
            yield f"boundary mIoU   {mean(self.boundary_iou):.4f}"
        yield f"mean Dice       {scores.mean_dice:.4f}"
        yield f"weighted IoU    {scores.frequency_weighted_iou:.4f}   by pixels of each class"
        yield f"pixel accuracy  {scores.pixel_accuracy:.4f}"
        yield f"mean accuracy   {scores.mean_accuracy:.4f}"
        if self.calibration is not None:
            yield f"calibration error {self.calibration.ece:.4f}"
        if self.without_tta is not None:
            without = self.without_tta.miou
            yield f"mIoU without TTA {without:.4f}  (with TTA {scores.miou - without:+.4f})"
        yield f"samples         {self.samples}{', with test-time augmentation' * bool(self.tta)}"
        if self.without_prediction:
            yield (
                f"no prediction   {self.without_prediction:,} pixels: they count as misses of "
                "their classes"
            )
        for one in self.confusions[:3]:
            yield (
                f"confused        {one.share:.1%} of {self.names[one.truth]} is taken for "
                f"{self.predicted_name(one.predicted)}"
            )
        if self.worst:
            worst = self.worst[0].score
            yield f"worst image     {worst.key} ({worst.file_name}), mIoU {worst.miou:.4f}"


def _number(value: float | np.float64) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _cell(value: float | np.float64) -> str | float:
    return "" if math.isnan(value) else float(value)


def _csv(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return buffer.getvalue()
