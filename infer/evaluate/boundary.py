"""Boundary IoU of every class: agreement along object boundaries, whatever the objects' size.

Definition: Cheng et al., "Boundary IoU: Improving Object-Centric Image Segmentation Evaluation"
(CVPR 2021), §4: of a mask and its prediction, take the pixels within distance d of their own
contours, and of these two bands the IoU. As in the authors' code, d is 2 % of the image's diagonal
(rounded, at least 1 pixel), distance is the larger of |dx| and |dy|, and the edge of the image is a
contour. The paper scores one mask of an instance; here the mask is all of a class in an image, and
pixels are added up over the images before they are divided, as those of IoU are.

Pixels that the truth ignores belong to every class: what lies behind them is unknown, so they draw
no contour, neither in the truth nor in the prediction.
"""

# C classes, H W pixels

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from ...metrics import fractions

DILATION_RATIO = 0.02
"""d as a part of the diagonal: what the paper takes for COCO and LVIS (§5)."""


def boundary_width(height: int, width: int) -> int:
    """Return d, how far from its contour a pixel counts as boundary [pixels]."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def boundary_counts(
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    num_classes: int,
    ignore_index: int,
) -> NDArray[np.int64]:
    """Count the boundary pixels of one image.

    Parameters
    ----------
    truth
        Train ids, shape (H, W); `ignore_index` pixels are left out.
    prediction
        Train ids, shape (H, W); `ignore_index` where there is no prediction.

    Returns
    -------
    ndarray
        int64, shape (C, 3): boundary pixels that both have, of the truth, of the prediction.
    """
    ignored = truth == ignore_index
    none = prediction == ignore_index
    width = boundary_width(*truth.shape)
    bands = []
    for labels, without in ((truth, ignored), (prediction, none)):
        # From 1 up: 0 is what is not a class, such as all around the image.
        numbers = labels.astype(np.uint16) + np.uint16(1)
        numbers[without] = 0
        bands.append(~ignored & ~without & ~_interior(numbers, ignored, width))
    both = bands[0] & bands[1] & (truth == prediction)
    counted = (truth[both], truth[bands[0]], prediction[bands[1]])
    return np.stack([np.bincount(ids, minlength=num_classes) for ids in counted], axis=1)


def _interior(
    numbers: NDArray[np.uint16], ignored: NDArray[np.bool_], width: int
) -> NDArray[np.bool_]:
    """Return which pixels have only their own number, or ignored pixels, within `width`.

    That is erosion by a square for all classes at once: the smallest and the largest number of the
    square are the pixel's own.
    """
    square = np.ones((2 * width + 1,) * 2, np.uint8)
    largest = np.uint16(np.iinfo(np.uint16).max)
    smallest_near = cv2.erode(
        np.where(ignored, largest, numbers),
        square,
        borderType=cv2.BORDER_CONSTANT,
        borderValue=(0,),
    )
    largest_near = cv2.dilate(np.where(ignored, np.uint16(0), numbers), square)
    inside: NDArray[np.bool_] = (smallest_near == numbers) & (largest_near == numbers)
    return inside


def boundary_iou(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the boundary IoU of each class, shape (C,), NaN where there is no boundary.

    Parameters
    ----------
    counts
        The sum of `boundary_counts` over images, shape (C, 3).
    """
    both, of_truth, of_prediction = counts.T
    return fractions(both, of_truth + of_prediction - both)
