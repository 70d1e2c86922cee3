"""Validation during training: each sample once, at any number of processes, all of it counted."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..distributed.group import Group
from ..meter import Meter, ShowProgress
from ..metrics import Scores
from ..model.counts import LOSS_UNIT
from ..model.predictor import Predictor
from ..model.preprocess import Preprocess
from ..model.score import NetworkPredicts, check_totals, totals_of
from ..shards.order import evaluation_batches
from ..shards.reader import ShardSet
from .kernels import usual_kernels


@dataclass(frozen=True, slots=True)
class Validated:
    """What validation found; the same on every process, and at every number of them."""

    scores: Scores
    loss: float
    """Mean cross entropy of the valid pixels, at the masks' own resolution; NaN without any."""


def validate(
    network: nn.Module,
    preprocess: Preprocess,
    shards: ShardSet,
    group: Group,
    *,
    batch_size: int,
    precision: torch.dtype,
    check: Callable[[], None],
    progress: ShowProgress = False,
) -> Validated:
    """Score a network as ``eval --no-tta`` does; all processes call it together.

    Parameters
    ----------
    network
        Unwrapped. It is left in eval mode.
    precision
        What the network computes in; see `ModelConfig.inference_precision`.
    check
        Called before each batch; what it raises ends validation on every process.
    progress
        How progress is shown; see `ShowProgress`.

    Raises
    ------
    CocosegError
        What failed on any process.
    DataError
        If the pixels that were scored are not those that the manifests count.
    """
    group.share_buffers(network)
    network.eval()
    predictor = Predictor(network, preprocess, precision=precision, batch_size=batch_size)
    batches = evaluation_batches(len(shards), batch_size, group.world_size, group.rank)
    size = sum(map(len, batches))
    with (
        group.together(),
        usual_kernels(),
        Meter("validation", size, "image", progress, leave=False) as meter,
    ):
        begun = 0

        def before_each() -> None:
            nonlocal begun
            check()
            meter.reach(begun)
            begun = min(begun + batch_size, size)

        predicts = NetworkPredicts(predictor, confidence=False, loss=True)
        own = totals_of(predicts, shards, batches, before_each)
        meter.reach(size)
    # Integers: no order of ranks can change a score or the loss.
    counts = np.append(own.confusion.ravel(), own.loss)
    *cells, loss = group.sum(torch.from_numpy(counts)).tolist()
    summed = np.array(cells, np.int64).reshape(own.confusion.shape)
    with group.together():
        check_totals(summed, shards, "validation scored wrongly: ")
    pixels = int(summed.sum())
    mean_loss = loss / LOSS_UNIT / pixels if pixels else float("nan")
    return Validated(Scores.from_confusion(summed), mean_loss)
