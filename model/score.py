"""Score a network on shards: the one path that validation during training and ``eval`` share."""

# B batch, C classes, H W pixels of the photograph, h w of the network's input

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..errors import CocosegError, DataError
from ..metrics import confusion_matrix
from ..processes import loader_options
from ..shards.reader import Sample, ShardSet, good
from .fuse import best_classes, class_strips
from .preprocess import Preprocess
from .view import View

Predictor = Callable[[Sequence[NDArray[np.uint8]]], list[NDArray[np.integer]]]
"""Photographs, uint8 RGB (H, W, 3) each, to train-id masks (H, W) each."""


def forward(
    network: nn.Module,
    preprocess: Preprocess,
    images: Sequence[NDArray[np.uint8]],
    view: View = View(),  # noqa: B008 - frozen
) -> list[Tensor]:
    """Run the network on photographs of any size.

    Those of one input shape go through in one batch; nothing is padded.

    Parameters
    ----------
    images
        uint8 RGB, shape (H, W, 3) each.

    Returns
    -------
    list of Tensor
        Logits, mirrored back, float32, shape (C, h/4, w/4) each, on the network's device.
    """
    device = next(network.parameters()).device
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    resized = [preprocess.resize(image, view.scale) for image in images]
    for i, image in enumerate(resized):
        groups[image.shape].append(i)
    logits: list[Tensor] = [torch.empty(0)] * len(images)
    with torch.inference_mode():
        for places in groups.values():
            batch = torch.from_numpy(np.stack([resized[i] for i in places])).to(device)
            x = preprocess.normalise(view.mirror(batch, 1, 2))
            out = view.mirror(network(pixel_values=x).logits, 2, 3)
            for i, one in zip(places, out, strict=True):
                logits[i] = one
    return logits


@torch.inference_mode()
def predict_plain(
    network: nn.Module, preprocess: Preprocess, images: Sequence[NDArray[np.uint8]]
) -> list[NDArray[np.integer]]:
    """Predict masks at the photographs' sizes: one view, argmax of the upsampled logits."""
    return [
        best_classes(class_strips(logits, *image.shape[:2]), *image.shape[:2])
        for logits, image in zip(forward(network, preprocess, images), images, strict=True)
    ]


def predictions(
    predict: Predictor, shards: ShardSet, batches: Sequence[Sequence[int]], workers: int = 0
) -> Iterator[tuple[Sample, NDArray[np.integer]]]:
    """Predict the samples of `batches`, each batch as a whole, and yield them one by one.

    Parameters
    ----------
    batches
        Sample numbers; canonical ones come from `plan.evaluation_batches`.
    workers
        Loader processes.

    Raises
    ------
    BadSample
        If a sample cannot be had: a score without it would be another one.
    """
    loader: DataLoader[Sequence[Sample | CocosegError]] = DataLoader(
        _Samples(shards),
        batch_sampler=[list(batch) for batch in batches],
        collate_fn=list,
        **loader_options(workers, __name__),
    )
    for read in loader:
        samples = [good(sample) for sample in read]  # here: a worker would add its traceback
        masks = predict([sample.image for sample in samples])
        yield from zip(samples, masks, strict=True)


def score(
    predict: Predictor, shards: ShardSet, batches: Sequence[Sequence[int]], workers: int = 0
) -> NDArray[np.int64]:
    """Return the confusion matrix of `predict` over the samples of `batches`, int64, (C, C)."""
    taxonomy = shards.taxonomy
    matrix = np.zeros((taxonomy.num_classes, taxonomy.num_classes), np.int64)
    for sample, mask in predictions(predict, shards, batches, workers):
        matrix += confusion_matrix(sample.mask, mask, taxonomy.num_classes, taxonomy.ignore_index)
    return matrix


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


class _Samples(Dataset[Sequence[Sample | CocosegError]]):
    def __init__(self, shards: ShardSet) -> None:
        self.shards = shards

    def __getitems__(self, positions: Sequence[int]) -> Sequence[Sample | CocosegError]:
        try:
            return self.shards.read_many(positions)
        except CocosegError as error:
            return [error]
