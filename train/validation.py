"""Validation during training: each sample once, at any number of processes, all of it counted."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..distributed.group import Group
from ..metrics import Scores
from ..model.preprocess import Preprocess
from ..model.score import check_totals, predict_plain, score
from ..shards.plan import evaluation_batches
from ..shards.reader import ShardSet


def validate(
    network: nn.Module,
    preprocess: Preprocess,
    shards: ShardSet,
    group: Group,
    *,
    batch_size: int,
    workers: int,
    check: Callable[[], None],
) -> Scores:
    """Score a network as ``eval --no-tta`` does; all processes call it together.

    Parameters
    ----------
    network
        Unwrapped. It is left in eval mode.
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

    def predict(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.integer]]:
        check()
        return predict_plain(network, preprocess, images)

    group.share_buffers(network)
    network.eval()
    batches = evaluation_batches(len(shards), batch_size, group.world_size, group.rank)
    with group.together():
        matrix = score(predict, shards, batches, workers)
    summed = group.sum(torch.from_numpy(matrix)).numpy()
    with group.together():
        check_totals(summed, shards, "validation scored wrongly: ")
    return Scores.from_confusion(summed)
