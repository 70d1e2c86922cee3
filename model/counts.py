"""What is counted of one image's prediction, on the device where it is.

Integers alone, so that sums are the same in any order. Nothing here makes the host wait: no
selection by a mask, whose size it would have to know.
"""

# C classes, H W pixels, N = H · W

import torch
from torch import Tensor

BINS = 15
"""Of calibration."""
UNIT = 2**24
"""Probabilities are added up as multiples of 1 ÷ `UNIT`: integers, so that the sum is the same in
any order. From 0.5 up a float32 is such a multiple; below, 3e-8 is lost at most. 5e11 pixels fit
into 64 bits."""


def confusion_counts(truth: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Count pixels by (ground truth, prediction).

    Parameters
    ----------
    truth
        Train ids, any integers of shape (H, W); what is no train id, such as the ignore index, is
        left out.
    prediction
        Train ids of the same shape; what is no train id is 'no prediction'.

    Returns
    -------
    Tensor
        int64, shape (C, C + 1): rows are the ground truth, the last column is 'no prediction'.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    width = num_classes + 1
    truth_N = truth.flatten().long()
    predicted_N = prediction.flatten().long().clamp_(max=num_classes)
    left_out = num_classes * width
    cell_N = torch.where(truth_N < num_classes, truth_N * width + predicted_N, left_out)
    return _histogram(cell_N, left_out + 1)[:-1].view(num_classes, width)


def calibration_counts(
    truth: Tensor, prediction: Tensor, confidence: Tensor, num_classes: int
) -> Tensor:
    """Count the pixels of one image by how sure the prediction is.

    Parameters
    ----------
    truth
        Train ids, shape (H, W); what is no train id is left out.
    prediction
        Train ids, shape (H, W).
    confidence
        Probability of the predicted class, float32, 0…1, shape (H, W).

    Returns
    -------
    Tensor
        int64, shape (BINS, 3): pixels, pixels that are right, sum of the probabilities in `UNIT`.
        Bin i holds probabilities above i ÷ BINS, up to (i + 1) ÷ BINS.
    """
    truth_N, predicted_N = truth.flatten().long(), prediction.flatten().long()
    # Exact in float32: a factor of two's power, and integers up to 2^24.
    units_N = (confidence.flatten().clamp(0, 1) * UNIT).round_().long()
    bin_N = torch.div(units_N * BINS - 1, UNIT, rounding_mode="floor").clamp_(min=0)
    bin_N = torch.where(truth_N < num_classes, bin_N, BINS)
    right_N = (truth_N == predicted_N).long()
    columns = [_histogram(bin_N, BINS + 1)]
    for values_N in (right_N, units_N):
        columns.append(values_N.new_zeros(BINS + 1).scatter_add_(0, bin_N, values_N))
    return torch.stack(columns, dim=1)[:-1]


def _histogram(values_N: Tensor, size: int) -> Tensor:
    """Count integers from 0 to size - 1."""
    # Not bincount: on a GPU it looks for the largest value on the host.
    ones_N = torch.ones((), dtype=torch.int64, device=values_N.device).expand_as(values_N)
    return values_N.new_zeros(size).scatter_add_(0, values_N, ones_N)
