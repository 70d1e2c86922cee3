"""The table of samples: what the index and the evaluations say of each, filtered and ordered."""

# N samples, C classes, P pairs of sample and class

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..shards.reader import ShardSet
from .sources import EvaluationFiles

ORDERS = ("position", "key", "size", "classes", "share", "mIoU", "IoU", "quality", "suspicion")
"""By which samples can be sorted; the last four need an evaluation."""


@dataclass(frozen=True, slots=True)
class Query:
    """Which samples are shown, and in which order; every field is a part of the page's address."""

    text: str = ""
    """In the key, or the file name that an evaluation records, whatever the case."""
    train_id: int | None = None
    """Only samples that hold this class."""
    least: float = 0.0
    """Only samples of which the class fills this share, 0…1."""
    most: float = 1.0
    evaluation: int = 0
    """Whose scores are meant."""
    pair: tuple[int, int] | None = None
    """Only samples with pixels of this true class that are predicted as that one (C: none); most
    such pixels first."""
    order: str = "position"
    descending: bool = False

    @classmethod
    def from_parameters(cls, given: Mapping[str, str]) -> "Query":
        """Read the parameters of an address.

        Raises
        ------
        ConfigError
            If a value is not a number, or the order is unknown.
        """
        order = given.get("sort", "position")
        if order not in ORDERS:
            raise ConfigError(f"sort={order}: one of {', '.join(ORDERS)}")
        try:
            pair = given.get("pair")
            truth_and_prediction = None if pair is None else tuple(map(int, pair.split(",")))
            return cls(
                text=given.get("q", ""),
                train_id=int(given["class"]) if given.get("class") else None,
                least=float(given.get("least", 0)),
                most=float(given.get("most", 1)),
                evaluation=int(given.get("evaluation", 0)),
                pair=truth_and_prediction,  # type: ignore[arg-type]
                order=order,
                descending=given.get("desc") == "1",
            )
        except ValueError as error:
            raise ConfigError(f"the address has a value that is no number: {error}") from None


@dataclass(frozen=True, slots=True)
class _Scores:
    """What one evaluation says of each sample; NaN where it has not scored it."""

    file_names: Mapping[int, str]
    miou: NDArray[np.float64]
    quality: NDArray[np.float64]
    suspicion: NDArray[np.float64]
    """Of the sample's most suspicious region; 0 without one."""
    iou: Mapping[int, Mapping[int, float]]
    """Sample → train id → IoU."""
    confusion: Mapping[tuple[int, int], Mapping[int, int]]
    """By true and predicted class: sample → pixels."""


class SampleTable:
    """All samples of some shards, with what evaluations say of them."""

    def __init__(self, shards: ShardSet, evaluations: Sequence[EvaluationFiles] = ()) -> None:
        samples = [index.samples for index in shards.indices]
        self.keys = [key.decode(errors="replace") for part in samples for key in part["key"]]
        self._width = np.concatenate([part["width"] for part in samples]).astype(np.int64)
        self._height = np.concatenate([part["height"] for part in samples]).astype(np.int64)
        counts = np.concatenate([part["classes"] for part in samples]).astype(np.int64)
        self._sample_P = np.repeat(np.arange(len(counts)), counts)
        classes = [  # in the order of the samples, which an index need not have
            index.classes[int(start) : int(start) + int(count)]
            for index in shards.indices
            for start, count in index.samples[["classes_start", "classes"]]
        ]
        joined = np.concatenate(classes) if classes else np.zeros(0, [("train_id", "u2")])
        self._train_id_P = joined["train_id"].astype(np.int64)
        self._pixels_P = joined["pixels"].astype(np.int64)
        self._names = {name: i for i, name in enumerate(shards.taxonomy.names)}
        self._present = np.bincount(
            self._sample_P[self._train_id_P < len(self._names)], minlength=len(counts)
        )
        self._scores = [self._read(evaluation) for evaluation in evaluations]

    def __len__(self) -> int:
        return len(self.keys)

    def select(self, query: Query) -> NDArray[np.int64]:
        """Return the positions of the samples that are asked for, in their order.

        Raises
        ------
        ConfigError
            If the order needs an evaluation, or a class, that is not given.
        """
        kept = np.ones(len(self), bool)
        if query.text:
            kept &= self._matches(query.text.casefold())
        if query.train_id is not None:
            share = self.share(query.train_id)
            kept &= (share > 0) & (share >= query.least) & (share <= query.most)
        values = self._values(query)
        if query.pair is not None:
            pixels = self._evaluation(query).confusion.get(query.pair, {})
            values = np.zeros(len(self))
            values[list(pixels)] = -np.array(list(pixels.values()), float)
            kept &= values < 0
        positions = np.flatnonzero(kept)
        known = positions[~np.isnan(values[positions])]
        key = -values[known] if query.descending else values[known]
        # Samples that nothing is known of come last, whatever the direction.
        unknown = positions[np.isnan(values[positions])]
        return np.concatenate([known[np.argsort(key, kind="stable")], unknown])

    def images_by_class(self) -> list[int]:
        """Return how many samples hold each class, by train id."""
        counts: list[int] = np.bincount(self._train_id_P, minlength=len(self._names)).tolist()
        return counts

    def share(self, train_id: int) -> NDArray[np.float64]:
        """Return the share of each image that a class fills, shape (N,), 0…1."""
        chosen = self._train_id_P == train_id
        pixels = np.zeros(len(self))
        pixels[self._sample_P[chosen]] = self._pixels_P[chosen]
        share: NDArray[np.float64] = pixels / np.maximum(self._width * self._height, 1)
        return share

    def facts(self, position: int) -> dict[str, Any]:
        """Return what is known of a sample, for JSON."""
        first, end = np.searchsorted(self._sample_P, (position, position + 1))
        here = slice(int(first), int(end))
        classes = zip(self._train_id_P[here].tolist(), self._pixels_P[here].tolist(), strict=True)
        return {
            "key": self.keys[position],
            "width": int(self._width[position]),
            "height": int(self._height[position]),
            "classes": [{"train_id": i, "pixels": pixels} for i, pixels in classes],
            "scores": [self._scored(one, position) for one in self._scores],
        }

    def _scored(self, scores: _Scores, position: int) -> dict[str, Any] | None:
        if math.isnan(scores.miou[position]):
            return None
        return {
            "mIoU": float(scores.miou[position]),
            "quality": _plain(scores.quality[position]),
            "IoU": scores.iou.get(position, {}),
        }

    def _matches(self, text: str) -> NDArray[np.bool_]:
        found = np.array([text in key.casefold() for key in self.keys], bool)
        for scores in self._scores:
            for position, name in scores.file_names.items():
                found[position] |= text in name.casefold()
        return found

    def _values(self, query: Query) -> NDArray[np.float64]:
        """Return the value of each sample by which it is sorted; NaN where it has none."""
        if query.order == "position":
            return np.arange(len(self), dtype=float)
        if query.order == "key":
            rank = np.empty(len(self))
            rank[sorted(range(len(self)), key=self.keys.__getitem__)] = np.arange(len(self))
            return rank
        if query.order == "size":
            return (self._width * self._height).astype(float)
        if query.order == "classes":
            return self._present.astype(float)
        if query.order in ("share", "IoU") and query.train_id is None:
            raise ConfigError(f"sort={query.order}: needs a class")
        if query.order == "share":
            assert query.train_id is not None
            return self.share(query.train_id)
        scores = self._evaluation(query)
        if query.order == "IoU":
            values = np.full(len(self), np.nan)
            for position, by_class in scores.iou.items():
                values[position] = by_class.get(query.train_id or 0, np.nan)
            return values
        by_order = {
            "mIoU": scores.miou,
            "quality": scores.quality,
            "suspicion": scores.suspicion,
        }
        return by_order[query.order]

    def _evaluation(self, query: Query) -> _Scores:
        if not 0 <= query.evaluation < len(self._scores):
            raise ConfigError("this order needs an evaluation: add the folder of a 'cocoseg eval'")
        return self._scores[query.evaluation]

    def _read(self, evaluation: EvaluationFiles) -> _Scores:
        places = defaultdict(list)
        for position, key in enumerate(self.keys):
            places[key].append(position)
        miou, quality = np.full(len(self), np.nan), np.full(len(self), np.nan)
        file_names = {}
        for row in evaluation.images:
            for position in places.get(row["key"], ()):
                miou[position] = _number(row["mIoU"])
                quality[position] = _number(row.get("label_quality"))
                file_names[position] = row["file_name"]
        suspicion = np.where(np.isnan(miou), np.nan, 0.0)
        for row in evaluation.labels:
            for position in places.get(row["key"], ()):
                suspicion[position] = max(suspicion[position], float(row["suspicion"]))
        iou: defaultdict[int, dict[int, float]] = defaultdict(dict)
        for row in evaluation.image_classes:
            for position in places.get(row["key"], ()):
                iou[position][int(row["train_id"])] = float(row["IoU"])
        confusion: defaultdict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        for row in evaluation.image_confusions:
            truth = self._names.get(row["truth"])
            predicted = self._names.get(row["predicted"], len(self._names))
            if truth is not None and truth != predicted:
                for position in places.get(row["key"], ()):
                    confusion[truth, predicted][position] = int(row["pixels"])
        return _Scores(file_names, miou, quality, suspicion, iou, confusion)


def _number(text: str | None) -> float:
    return float(text) if text else math.nan


def _plain(value: np.float64) -> float | None:
    return None if math.isnan(value) else float(value)
