"""Test-time augmentation: several views of an image, their probabilities averaged."""

# C classes, H W pixels of the photograph

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..model.preprocess import Preprocess, upsample
from ..model.score import forward, to_mask
from .config import InferConfig


@dataclass(frozen=True, slots=True)
class View:
    """One way to look at an image; `forward` inverts the flip, `upsample` the scale."""

    scale: float
    """Factor of the input size."""
    flip: bool
    """Mirrored left and right."""


def views_of(config: InferConfig) -> list[View]:
    """Return every scale, each as it is and, with ``tta_flip``, mirrored."""
    flips = (False, True) if config.tta_flip else (False,)
    return [View(scale, flip) for scale in config.tta_scales for flip in flips]


def predict_views(
    network: nn.Module,
    preprocess: Preprocess,
    views: Sequence[View],
    images: Sequence[NDArray[np.uint8]],
) -> list[NDArray[np.integer]]:
    """Predict masks at the photographs' sizes from the mean probability of all views."""
    return [to_mask(mean) for mean in mean_probabilities(network, preprocess, views, images)]


@torch.inference_mode()
def mean_probabilities(
    network: nn.Module,
    preprocess: Preprocess,
    views: Sequence[View],
    images: Sequence[NDArray[np.uint8]],
) -> Iterator[Tensor]:
    """Yield the mean probability of all views for each photograph: float32, shape (C, H, W).

    Each view's logits are brought to the photograph's size before softmax; two maps of (C, H, W)
    are alive at a time.
    """
    by_view = [forward(network, preprocess, images, v.scale, v.flip) for v in views]
    for i, image in enumerate(images):
        height, width = image.shape[:2]
        mean = upsample(by_view[0][i][None], height, width)[0].softmax(dim=0)
        for logits in by_view[1:]:
            mean += upsample(logits[i][None], height, width)[0].softmax(dim=0)
        yield mean.div_(len(views))
