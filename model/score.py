"""The scoring loop that validation during training and ``eval`` share.

batches → samples, read and resized by threads → predictions → counted on their device → `finish`,
in threads
"""

# C classes, H W pixels of the image

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import CocosegError, DataError
from ..shards.reader import Sample, ShardSet, good
from .counts import BINS, calibration_counts, confusion_counts
from .pipeline import Transfer, read_ahead, thread_count, threads_for
from .predictor import DevicePrediction, Inputs, Predictor, check_finite

Result = TypeVar("Result")

_WAITING = 2  # images per thread whose predictions wait for `finish`


@dataclass(frozen=True, slots=True)
class Scored:
    """A sample and how it was predicted, on the host."""

    position: int
    """Of the sample in the shards."""
    sample: Sample
    mask: NDArray[np.integer]
    """Predicted train ids, shape (H, W); the ignore index where there is no prediction."""
    confusion: NDArray[np.int64]
    """See `confusion_counts`, shape (C, C + 1)."""
    calibration: NDArray[np.int64]
    """See `calibration_counts`, shape (BINS, 3); all 0 where there are no probabilities."""
    confidence: NDArray[np.float32] | None = None
    """Probability of the predicted class, shape (H, W); None where there are no probabilities."""
    truth_probability: NDArray[np.float32] | None = None
    """Probability of the true class, shape (H, W), 0 where it is ignored; None in the same case."""
    loss: int = 0
    """Cross entropy, added up over the valid pixels, in `LOSS_UNIT`; 0 where none is computed."""


class Predicts(Protocol):
    """What is scored: a network, or masks that anything made."""

    @property
    def device(self) -> torch.device:
        """Where its predictions are."""

    def prepare(self, sample: Sample) -> Any:
        """Do for a sample what any thread can."""

    def gather(self, samples: Sequence[Sample], prepared: Sequence[Any]) -> Any:
        """Do for the samples of a batch what another thread can while the last is predicted."""

    def predictions(self, gathered: Any) -> Iterable[DevicePrediction]:
        """Predict the samples of a batch.

        Masks hold the ignore index where there is no prediction.
        """


class NetworkPredicts:
    """Scores a network: see `Predicts`.

    Parameters
    ----------
    confidence
        Whether the probabilities of each pixel's predicted and true class are taken too; it does
        not change the mask.
    loss
        Whether the cross entropy is added up too.
    """

    def __init__(self, predictor: Predictor, *, confidence: bool, loss: bool = False) -> None:
        self._predictor = predictor
        self._confidence = confidence
        self._loss = loss
        self.device = predictor.device

    def without_augmentation(self) -> "NetworkPredicts":
        """Return one that scores a single view of each image, without confidence."""
        return NetworkPredicts(self._predictor.without_augmentation(), confidence=False)

    def prepare(self, sample: Sample) -> Any:
        """Resize the image."""
        return self._predictor.resize(sample.image)

    def gather(
        self, samples: Sequence[Sample], prepared: Sequence[Any]
    ) -> tuple[Inputs, list[Tensor] | None]:
        """Copy the images, and where they matter their masks, into memory that the device reads."""
        inputs = self._predictor.inputs([sample.image for sample in samples], prepared)
        if not (self._loss or self._confidence):
            return inputs, None
        return inputs, [_host_tensor(sample.mask, self.device) for sample in samples]

    def predictions(
        self, gathered: tuple[Inputs, list[Tensor] | None]
    ) -> Iterable[DevicePrediction]:
        """Run the network on the images as one batch."""
        inputs, truths = gathered
        return self._predictor.predictions(
            inputs, confidence=self._confidence, truths=truths, loss=self._loss
        )


def scored(
    predicts: Predicts,
    shards: ShardSet,
    batches: Iterable[Sequence[int]],
    finish: Callable[[Scored], Result],
    check: Callable[[], None] = lambda: None,
) -> Iterator[Result]:
    """Predict the samples of `batches`, each batch as a whole, and yield what becomes of each.

    The network does not wait: the next batch is read, and finished images are counted, by threads.

    Parameters
    ----------
    batches
        Sample numbers; canonical ones come from `plan.evaluation_batches`.
    finish
        Called once per sample, by several threads.
    check
        Called before each batch; what it raises ends the loop.

    Yields
    ------
    object
        What `finish` returned, in the order of the samples.

    Raises
    ------
    BadSample
        If a sample cannot be had: a score without it would be another one.
    DataError
        If the network's logits were not finite.
    """
    device, classes = predicts.device, shards.taxonomy.num_classes
    threads = thread_count(device)
    with (
        threads_for(device, threads, "cocoseg-read") as readers,
        threads_for(device, threads, "cocoseg-score") as scorers,
    ):

        def read(batch: Sequence[int]) -> tuple[list[_Read], Any]:
            size = -(-len(batch) // threads)
            parts = [batch[first : first + size] for first in range(0, len(batch), size)]
            found = readers.map(partial(_read, predicts, shards), parts)
            content = [one for part in found for one in part]
            samples = [good(one.sample) for one in content]
            return content, predicts.gather(samples, [one.prepared for one in content])

        waiting: deque[Future[Result]] = deque()
        for positions, (content, gathered) in read_ahead(batches, read, device):
            check()
            predictions = predicts.predictions(gathered)
            for position, one, prediction in zip(positions, content, predictions, strict=True):
                coming = _Coming(position, good(one.sample), prediction, one.truth, classes)
                waiting.append(scorers.submit(_finished, finish, coming))
                if len(waiting) > _WAITING * threads:
                    yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@dataclass(frozen=True, slots=True)
class Totals:
    """What is counted over samples: integers, whose sums are the same in any order."""

    confusion: NDArray[np.int64]
    """Shape (C, C + 1); see `confusion_counts`."""
    loss: int
    """See `Scored.loss`."""


def totals_of(
    predicts: Predicts,
    shards: ShardSet,
    batches: Iterable[Sequence[int]],
    check: Callable[[], None] = lambda: None,
) -> Totals:
    """Count over samples; see `scored`."""
    classes, loss = shards.taxonomy.num_classes, 0
    matrix = np.zeros((classes, classes + 1), np.int64)

    def counts(one: Scored) -> tuple[NDArray[np.int64], int]:
        return one.confusion, one.loss

    for confusion, part in scored(predicts, shards, batches, counts, check):
        matrix += confusion
        loss += part
    return Totals(matrix, loss)


def check_totals(matrix: NDArray[np.int64], shards: ShardSet, whose: str = "") -> None:
    """Make sure that every pixel of the shards was scored, and no other.

    Parameters
    ----------
    matrix
        Confusion matrix of all samples, int64, (C, …); rows are the truth.
    whose
        How the error begins.

    Raises
    ------
    DataError
        If the manifests count other pixels.
    """
    scored = matrix.sum(axis=1)
    expected = np.sum([manifest.class_pixels for manifest in shards.manifests], axis=0)
    wrong = np.flatnonzero(scored != expected)
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"{whose}{int(scored[first]):,} pixels of {shards.taxonomy.names[first]} were scored, "
            f"the manifests count {int(expected[first]):,} ({wrong.size} classes differ): run "
            "'cocoseg verify' on the shards"
        )


def _finished(finish: Callable[[Scored], Result], coming: "_Coming") -> Result:
    return finish(coming.wait())


@dataclass(frozen=True, slots=True)
class _Read:
    """What threads did for a sample."""

    sample: Sample | CocosegError
    truth: Tensor | None = None
    """The sample's mask, shape (H, W), on the host; page-locked where a GPU reads it."""
    prepared: Any = None


def _read(predicts: Predicts, shards: ShardSet, positions: Sequence[int]) -> list[_Read]:
    read = shards.read_many(positions)
    return [
        _Read(one, _host_tensor(one.mask, predicts.device), predicts.prepare(one))
        if isinstance(one, Sample)
        else _Read(one)
        for one in read
    ]


def _host_tensor(mask: NDArray[np.integer], device: torch.device) -> Tensor:
    wide = mask if mask.dtype == np.uint8 else mask.astype(np.int32)  # torch knows few uint16
    tensor = torch.from_numpy(wide)
    return tensor.pin_memory() if device.type == "cuda" else tensor


class _Coming:
    """A scored sample whose counts and mask are on their way to the host."""

    @torch.inference_mode()
    def __init__(
        self,
        position: int,
        sample: Sample,
        prediction: DevicePrediction,
        truth: Tensor | None,
        classes: int,
    ) -> None:
        assert truth is not None
        mask = prediction.mask
        truth = truth.to(mask.device, non_blocking=True)
        parts = [confusion_counts(truth, mask, classes).flatten()]
        if prediction.confidence is not None:
            counts = calibration_counts(truth, mask, prediction.confidence, classes)
            parts.append(counts.flatten())
        if prediction.loss is not None:
            parts.append(prediction.loss[None])
        if prediction.finite is not None:
            parts.append(prediction.finite.long()[None])
        self._position, self._sample, self._classes = position, sample, classes
        maps = (prediction.confidence, prediction.truth_probability)
        known = (one for one in maps if one is not None)
        self._transfer = Transfer(torch.cat(parts), mask, *known)
        # Not the prediction itself: its memory on the device is free from here on.
        self._calibrated, self._has_loss = (
            prediction.confidence is not None,
            prediction.loss is not None,
        )
        self._has_logits, self._origin = prediction.finite is not None, prediction.origin

    def wait(self) -> Scored:
        """Return it once all has arrived."""
        counts, mask, *maps = self._transfer.wait()
        if self._has_logits:
            check_finite(bool(counts[-1]), self._origin)
        cells = self._classes * (self._classes + 1)
        calibration = np.zeros((BINS, 3), np.int64)
        if self._calibrated:
            calibration = counts[cells : cells + BINS * 3].reshape(BINS, 3)
        return Scored(
            self._position,
            self._sample,
            mask if mask.dtype == np.uint8 else mask.astype(np.uint16),
            counts[:cells].reshape(self._classes, -1),
            calibration,
            confidence=maps[0] if maps else None,
            truth_probability=maps[1] if maps else None,
            loss=int(counts[-2]) if self._has_loss else 0,
        )
