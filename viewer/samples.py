"""The table of samples: what the index and the evaluations say of each, filtered and ordered."""

# N samples, C classes, P pairs of sample and class

import os
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CocosegError, ConfigError
from ..shards.reader import ShardSet
from ..storage import LocalPath, locate, resolved
from .evaluations import ScoredSamples
from .sources import EvaluationFiles

_OF_SHARDS = ("position", "key", "size", "classes", "instances", "share")
_OF_EVALUATION = ("mIoU", "IoU", "confidence", "quality", "suspicion")


def orders(evaluations: int) -> tuple[str, ...]:
    """Return by what samples can be sorted, with so many evaluations."""
    if not evaluations:
        return _OF_SHARDS
    return (*_OF_SHARDS, *_OF_EVALUATION, *(["change"] if evaluations > 1 else []))


@dataclass(frozen=True, slots=True)
class Query:
    """Which samples are shown, and in which order; every field is a part of the page's address."""

    text: str = ""
    """In the key, or if in none, in the file name that is recorded; whatever the case."""
    train_id: int | None = None
    """Only samples that hold this class."""
    second: int | None = None
    """Only samples that hold this class, too."""
    least: float | None = None
    """Only samples whose value in the order is at least this."""
    most: float | None = None
    evaluation: int = 0
    """Whose scores are meant."""
    other: int = 0
    """The evaluation that ``change`` leads to."""
    pair: tuple[int, int] | None = None
    """Only samples with pixels of this true class that are predicted as that one (C: none); most
    such pixels first, if no other order is asked for."""
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
        if order not in orders(2):
            raise ConfigError(f"sort={order[:40]}: one of {', '.join(orders(2))}")
        try:
            pair = given.get("pair")
            truth, predicted = (None, None) if pair is None else map(int, pair.split(","))
            return cls(
                text=given.get("q", ""),
                train_id=int(given["class"]) if given.get("class") else None,
                second=int(given["with"]) if given.get("with") else None,
                least=float(given["least"]) if given.get("least") else None,
                most=float(given["most"]) if given.get("most") else None,
                evaluation=int(given.get("evaluation", 0)),
                other=int(given.get("other", 0)),
                pair=None if truth is None or predicted is None else (truth, predicted),
                order=order,
                descending=given.get("desc") == "1",
            )
        except ValueError as error:
            raise ConfigError(f"the address has a value that is no number: {error}"[:200]) from None


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
        self._num_classes = shards.taxonomy.num_classes
        self._present = np.bincount(
            self._sample_P[self._train_id_P < self._num_classes], minlength=len(counts)
        )
        self._shards = shards
        self._reading = threading.Lock()
        self._ends = np.cumsum([len(part) for part in samples]).tolist()
        self.evaluations = [
            ScoredSamples(one, self._scored_by(one), len(self), shards.taxonomy.names)
            for one in evaluations
        ]

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
            kept &= self.share(query.train_id) > 0
        if query.second is not None:
            kept &= self.share(query.second) > 0
        values = self._values(query)
        if query.pair is not None:
            confused = self.evaluation(query.evaluation).confused(*query.pair)
            kept &= confused > 0
            if query.order == "position":
                values = -confused
        if query.least is not None:
            kept &= values >= query.least
        if query.most is not None:
            kept &= values <= query.most
        positions = np.flatnonzero(kept)
        known = positions[~np.isnan(values[positions])]
        key = -values[known] if query.descending else values[known]
        # Samples that nothing is known of come last, whatever the direction.
        unknown = positions[np.isnan(values[positions])]
        return np.concatenate([known[np.argsort(key, kind="stable")], unknown])

    def images_by_class(self) -> list[int]:
        """Return how many samples hold each class, by train id."""
        counts: list[int] = np.bincount(self._train_id_P, minlength=self._num_classes).tolist()
        return counts

    def images_by_pair(self, train_ids: Sequence[int]) -> NDArray[np.int64]:
        """Return how many samples hold both of two of these K classes, shape (K, K)."""
        held = np.zeros((len(self), len(train_ids)), np.float32)
        for column, train_id in enumerate(train_ids):
            held[self._sample_P[self._train_id_P == train_id], column] = 1
        return (held.T @ held).astype(np.int64)  # exact up to 2**24 samples

    @property
    def _recorded(self) -> tuple[NDArray[np.float64], list[str]]:
        with self._reading:  # once, however many ask
            return self._read_recorded

    @cached_property
    def _read_recorded(self) -> tuple[NDArray[np.float64], list[str]]:
        """Number of instances and file name of each sample; read out of every sample."""
        instances, file_names = np.full(len(self), np.nan), [""] * len(self)
        for position in range(len(self)):
            try:
                meta = self._shards.read_meta(position)
                file_names[position] = str(meta.get("file_name", "")).casefold()
                instances[position] = meta.get("instances", np.nan)
            except (CocosegError, TypeError, ValueError):  # damaged, or another program's
                continue
        return instances, file_names

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
            "scores": [one.facts(position) for one in self.evaluations],
        }

    def evaluation(self, number: int) -> ScoredSamples:
        """Return an evaluation.

        Raises
        ------
        ConfigError
            If there is none of this number.
        """
        if not 0 <= number < len(self.evaluations):
            raise ConfigError("this needs an evaluation: add the folder of a 'cocoseg eval'")
        return self.evaluations[number]

    def path(self, position: int) -> str:
        """Return ``SHARDS/KEY`` of a sample, which lists of samples hold."""
        part = int(np.searchsorted(self._ends, position, side="right"))
        folder = locate(self._shards.folders[part])
        shown = os.path.abspath(folder) if isinstance(folder, LocalPath) else folder.url
        return f"{shown}/{self.keys[position]}"

    def _matches(self, text: str) -> NDArray[np.bool_]:
        found = np.array([text in key.casefold() for key in self.keys], bool)
        if not found.any():  # file names are slower: the index does not hold them
            found = np.array([text in name for name in self._recorded[1]], bool)
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
        if query.order == "instances":
            return self._recorded[0]
        scores = self.evaluation(query.evaluation)
        if query.order == "IoU":
            return scores.iou_of_class(query.train_id or 0)
        if query.order == "suspicion":
            return scores.suspicion
        if query.order == "change":
            return self.evaluation(query.other).of_images("mIoU") - scores.of_images("mIoU")
        return scores.of_images(query.order)

    def _scored_by(self, evaluation: EvaluationFiles) -> dict[str, list[int]]:
        """Return the positions of each key, in the shards that an evaluation scored.

        Shards that were moved since are not recognized; then a key may be of any of them.
        """
        scored = {resolved(str(folder)) for folder in evaluation.metrics.get("shards", ())}
        parts = [i for i, folder in enumerate(self._shards.folders) if resolved(folder) in scored]
        found = defaultdict(list)
        for part in parts or range(len(self._shards.folders)):
            first = self._ends[part] - len(self._shards.indices[part])
            for position in range(first, self._ends[part]):
                found[self.keys[position]].append(position)
        return found
