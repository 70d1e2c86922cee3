"""What evaluations say of samples and classes, and how two of them differ."""

# N samples of the shards, C classes, R rows of a table

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .sources import EvaluationFiles


class ScoredSamples:
    """The tables of one evaluation, by sample; each is read when it is first asked for.

    Parameters
    ----------
    files
        What ``cocoseg eval`` wrote.
    positions
        Key → positions of the samples that were scored.
    samples
        N.
    names
        Of the classes, by train id.
    """

    def __init__(
        self,
        files: EvaluationFiles,
        positions: Mapping[str, Sequence[int]],
        samples: int,
        names: Sequence[str],
    ) -> None:
        self.files = files
        self._positions = positions
        self._samples = samples
        self._train_ids = {name: i for i, name in enumerate(names)}

    def _places(self, row: Mapping[str, str]) -> Sequence[int]:
        return self._positions.get(row["key"], ())

    @cached_property
    def _images(self) -> tuple[Mapping[str, NDArray[np.float64]], Mapping[int, str]]:
        columns = {"mIoU": "mIoU", "quality": "label_quality", "confidence": "confidence"}
        values = {name: np.full(self._samples, np.nan) for name in columns}
        file_names = {}
        for row in self.files.rows("images"):
            for position in self._places(row):
                file_names[position] = row["file_name"]
                for name, column in columns.items():
                    values[name][position] = _number(row.get(column))
        return values, file_names

    def of_images(self, name: str) -> NDArray[np.float64]:
        """Return ``mIoU``, ``quality`` or ``confidence`` of each sample, shape (N,); NaN: none."""
        return self._images[0][name]

    @property
    def file_names(self) -> Mapping[int, str]:
        """By position, of the samples that were scored."""
        return self._images[1]

    @cached_property
    def _classes(self) -> NDArray[np.float64]:
        rows = [
            (position, float(row["train_id"]), float(row["IoU"]))
            for row in self.files.rows("image_classes")
            for position in self._places(row)
        ]
        table = np.array(rows, np.float64).reshape(-1, 3)
        return table[np.argsort(table[:, 0], kind="stable")]

    def iou_of_class(self, train_id: int) -> NDArray[np.float64]:
        """Return the IoU of a class in each sample, shape (N,); NaN where it does not occur."""
        values = np.full(self._samples, np.nan)
        chosen = self._classes[self._classes[:, 1] == train_id]
        values[chosen[:, 0].astype(int)] = chosen[:, 2]
        return values

    def iou_of_sample(self, position: int) -> dict[int, float]:
        """Return the IoU of each class of a sample."""
        first, end = np.searchsorted(self._classes[:, 0], (position, position + 1))
        return {int(train_id): iou for _, train_id, iou in self._classes[first:end].tolist()}

    @cached_property
    def _confusions(self) -> NDArray[np.int64]:
        """(position, true class, predicted class (C: none), pixels), shape (R, 4)."""
        rows = []
        for row in self.files.rows("image_confusions"):
            truth = self._train_ids.get(row["truth"])
            predicted = self._train_ids.get(row["predicted"], len(self._train_ids))
            if truth is not None and truth != predicted:
                for position in self._places(row):
                    rows.append((position, truth, predicted, int(row["pixels"])))
        return np.array(rows, np.int64).reshape(-1, 4)

    def confused(self, truth: int, predicted: int) -> NDArray[np.float64]:
        """Return the pixels of a class that were predicted as another, by sample, shape (N,)."""
        table = self._confusions
        chosen = table[(table[:, 1] == truth) & (table[:, 2] == predicted)]
        pixels = np.zeros(self._samples)
        pixels[chosen[:, 0]] = chosen[:, 3]
        return pixels

    @cached_property
    def regions(self) -> list[dict[str, Any]]:
        """Where the labels may be wrong, the most suspicious first; see ``labels.csv``."""
        return [
            {
                "position": position,
                "key": row["key"],
                "file_name": row["file_name"],
                "kind": row["kind"],
                "annotated": self._train_ids.get(row["annotated"], -1),
                "predicted": self._train_ids.get(row["predicted"], -1),
                "suspicion": float(row["suspicion"]),
                "pixels": int(row["pixels"]),
                "box": [int(row[name]) for name in ("left", "top", "width", "height")],
            }
            for row in self.files.rows("labels")
            for position in self._places(row)
        ]

    @cached_property
    def suspicion(self) -> NDArray[np.float64]:
        """That of each sample's most suspicious region, shape (N,); 0 without one, NaN: none."""
        values = np.where(np.isnan(self.of_images("mIoU")), np.nan, 0.0)
        for region in self.regions:
            place = region["position"]
            values[place] = np.fmax(values[place], region["suspicion"])
        return values

    def facts(self, position: int) -> dict[str, Any] | None:
        """Return the scores of a sample, for JSON; None where it was not scored."""
        if position not in self.file_names:
            return None
        values = {
            name: _plain(self.of_images(name)[position])
            for name in ("mIoU", "quality", "confidence")
        }
        return {**values, "IoU": self.iou_of_sample(position)}

    def describe(self) -> dict[str, Any]:
        """Return the scores of the classes and how they are confused, for JSON.

        ``confusions`` lists (truth, predicted, pixels, samples), the most pixels first.
        """
        table = self._confusions
        pairs, row_pair, samples = np.unique(
            table[:, 1:3], axis=0, return_inverse=True, return_counts=True
        )
        pixels = np.zeros(len(pairs), np.int64)
        np.add.at(pixels, row_pair.ravel(), table[:, 3])
        found = np.column_stack([pairs, pixels, samples])
        return {
            "name": self.files.name,
            "metrics": self.files.metrics,
            "confusions": found[np.argsort(-pixels, kind="stable")].tolist(),
            "regions": len(self.regions),
        }


def compare(first: ScoredSamples, second: ScoredSamples) -> dict[str, Any]:
    """Return how scores change from one evaluation to another, for JSON.

    Images are compared where both have scored them.
    """
    before, after = (_scores_by_class(one.files.metrics) for one in (first, second))
    change = second.of_images("mIoU") - first.of_images("mIoU")
    known = change[~np.isnan(change)]
    return {
        "metrics": [
            {"name": name, "before": one.get(name), "after": other.get(name)}
            for one, other in [(first.files.metrics, second.files.metrics)]
            for name in ("mIoU", "mIoU_foreground", "boundary_mIoU", "pixel_accuracy", "mean_Dice")
        ],
        "classes": [
            {"name": name, "before": before.get(name), "after": after.get(name)}
            for name in dict.fromkeys([*before, *after])
            if not (before.get(name) is None and after.get(name) is None)
        ],
        "images": {
            "compared": len(known),
            "better": int((known > 0).sum()),
            "worse": int((known < 0).sum()),
        },
    }


def _scores_by_class(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    return {entry["name"]: entry.get("IoU") for entry in metrics.get("classes", ())}


def _number(text: str | None) -> float:
    return float(text) if text else math.nan


def _plain(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)
