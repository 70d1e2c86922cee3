"""Cases of inference: from images to masks, with a network and without one."""

# B batch, C classes, h w of the network's input

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from cases_common import DEVICE, TAXONOMY, template
from cocoseg.infer.config import InferConfig
from cocoseg.infer.views import views_of
from cocoseg.model.meta import empty_copy
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.tiles import Tiling
from counter import Counter
from device import fake_device
from numpy.typing import NDArray
from torch import Tensor, nn


def inference(
    counter: Counter,
    *,
    images: Sequence[tuple[int, int]] = ((48, 64),),
    tta: bool = False,
    precision: str = "bfloat16",
    size: int = 64,
    confidence: bool = False,
    probabilities: bool = False,
) -> None:
    """Predict images, (height, width) each, with a network.

    Parameters
    ----------
    tta
        With the views of `InferConfig`: three scales, each mirrored too.
    """
    network, preprocess = template("segformer-tiny", size)
    with fake_device():
        predictor = Predictor(
            empty_copy(network, "cuda").eval(),
            preprocess,
            views_of(InferConfig(use_tta=tta)),
            precision=getattr(torch, precision),
        )
        with counter:
            inputs = predictor.inputs([_black(*shape) for shape in images])
            predictions = predictor.predictions(
                inputs, confidence=confidence, probabilities=probabilities
            )
            for coming in [one.to_host() for one in predictions]:
                coming.wait()


def outside_network(
    counter: Counter, *, height: int, width: int, tta: bool = True, tile_above: int = 4096
) -> None:
    """Predict one image with a network of size 640 that launches nothing."""
    with fake_device():
        predictor = Predictor(
            _NoNetwork(),
            _NoResize(640),
            views_of(InferConfig(use_tta=tta)),
            tiling=Tiling(1280, 0.25),
            tile_above=tile_above,
        )
        with counter:
            predictor.predict([_black(height, width)])


class _NoNetwork(nn.Module):
    """Returns logits of the shape that a SegFormer returns."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(0, device=DEVICE))

    def forward(self, pixel_values: Tensor) -> Any:
        batch, _, height, width = pixel_values.shape
        shape = (batch, TAXONOMY.num_classes, height // 4, width // 4)
        return SimpleNamespace(logits=torch.empty(shape, device=DEVICE))


class _NoResize(Preprocess):
    """Resizes to black pixels."""

    def resize(self, image: NDArray[np.uint8], scale: float = 1.0) -> NDArray[np.uint8]:
        return _black(*self.target_size(image.shape[1], image.shape[0], scale)[::-1])


def _black(height: int, width: int) -> NDArray[np.uint8]:
    return np.zeros((height, width, 3), np.uint8)
