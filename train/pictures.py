"""Validation pictures: which samples, and image, truth and prediction side by side."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..colors import visualize_prediction
from ..taxonomy import Taxonomy

SIDE = 512
"""Longest side of an image in a picture [pixels]."""


def chosen(samples: int, count: int) -> tuple[int, ...]:
    """Return the numbers of `count` of `samples` samples, evenly spread; all, if there are fewer.

    They depend on nothing else: a run shows the same images from its start to its end.
    """
    count = min(samples, count)
    return tuple((2 * i + 1) * samples // (2 * count) for i in range(count))


def side_by_side(
    image: NDArray[np.uint8],
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    taxonomy: Taxonomy,
) -> NDArray[np.uint8]:
    """Put image, truth and prediction side by side, as `colors.visualize_prediction` does.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    truth, prediction
        Train ids, shape (H, W).

    Returns
    -------
    ndarray
        uint8 RGB; each panel's longer side is at most `SIDE` pixels.
    """
    height, width = truth.shape
    factor = SIDE / max(height, width)
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        truth, prediction = (
            np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
            for mask in (truth, prediction)
        )
    sheet = visualize_prediction(image, truth, prediction, taxonomy.names, taxonomy.ignore_index)
    return np.asarray(sheet)
