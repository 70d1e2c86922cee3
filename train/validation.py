"""Validation during training: each sample once, at any number of processes, all of it counted."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..distributed.group import Group
from ..errors import DataError
from ..metrics import Scores
from ..model.preprocess import Preprocess
from ..model.score import predict_plain, score
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
        _check_totals(summed, shards)
    return Scores.from_confusion(summed)


def _check_totals(matrix: NDArray[np.int64], shards: ShardSet) -> None:
    expected = np.sum([manifest.class_pixels for manifest in shards.manifests], axis=0)
    wrong = np.flatnonzero(matrix.sum(axis=1) != expected)
    if wrong.size:
        first = int(wrong[0])
        raise DataError(
            f"validation scored {int(matrix[first].sum()):,} pixels of "
            f"{shards.taxonomy.names[first]}, the manifests count {int(expected[first]):,} "
            f"({wrong.size} classes differ): run 'cocoseg verify' on the validation shards"
        )
