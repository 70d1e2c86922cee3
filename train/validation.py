"""Validation during training: each sample once, at any number of processes, all of it counted."""

from collections.abc import Callable

import torch
from torch import nn

from ..distributed.group import Group
from ..metrics import Scores
from ..model.predictor import Predictor
from ..model.preprocess import Preprocess
from ..model.score import NetworkPredicts, check_totals, confusion_of
from ..shards.plan import evaluation_batches
from ..shards.reader import ShardSet
from .kernels import usual_kernels


def validate(
    network: nn.Module,
    preprocess: Preprocess,
    shards: ShardSet,
    group: Group,
    *,
    batch_size: int,
    precision: torch.dtype,
    check: Callable[[], None],
) -> Scores:
    """Score a network as ``eval --no-tta`` does; all processes call it together.

    Parameters
    ----------
    network
        Unwrapped. It is left in eval mode.
    precision
        What the network computes in; see `ModelConfig.inference_precision`.
    check
        Called before each batch; what it raises ends validation on every process.

    Returns
    -------
    Scores
        The same on every process, and at every number of them.

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
    with group.together(), usual_kernels():
        predicts = NetworkPredicts(predictor, confidence=False)
        matrix = confusion_of(predicts, shards, batches, check)
    summed = group.sum(torch.from_numpy(matrix)).numpy()
    with group.together():
        check_totals(summed, shards, "validation scored wrongly: ")
    return Scores.from_confusion(summed)
