"""What is counted of one image's prediction, on the device where it is.

Integers alone, so that sums are the same in any order. Nothing here makes the host wait: no
selection by a mask, whose size it would have to know.
"""

# C classes, H W pixels, N pixels of a part

from collections.abc import Iterator

import torch
from torch import Tensor

BINS = 15
"""Of calibration."""
UNIT = 2**24
"""Probabilities are added up as multiples of 1 ÷ `UNIT`: integers, so that the sum is the same in
any order. From 0.5 up a float32 is such a multiple; below, 3e-8 is lost at most. 5e11 pixels fit
into 64 bits."""
LOSS_UNIT = 2**20
"""Losses are added up as multiples of 1 ÷ `LOSS_UNIT`: of a pixel at most 5e-7 is lost."""
_MOST_LOSS = 2.0**10  # of a pixel: 8e9 pixels of it fit into 64 bits

_PART = 2**22  # pixels that are counted at once: 50 bytes of temporaries for each


def confusion_counts(truth: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """Count pixels by (ground truth, prediction).

    Parameters
    ----------
    truth
        Train ids, any integers of shape (H, W); other values, such as the ignore index, are
        left out.
    prediction
        Train ids of the same shape; other values are 'no prediction'.

    Returns
    -------
    Tensor
        int64, shape (C, C + 1): rows are the ground truth, the last column is 'no prediction'.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth {truth.shape} and prediction {prediction.shape} differ in shape")
    width = num_classes + 1
    left_out = num_classes * width
    cells = torch.zeros(left_out + 1, dtype=torch.int64, device=truth.device)
    for truth_N, predicted_N in _parts(truth, prediction):
        truth_N, predicted_N = truth_N.long(), predicted_N.long().clamp_(max=num_classes)
        cell_N = torch.where(truth_N < num_classes, truth_N * width + predicted_N, left_out)
        _add(cells, cell_N, _ones(cell_N))
    return cells[:-1].view(num_classes, width)


def calibration_counts(
    truth: Tensor, prediction: Tensor, confidence: Tensor, num_classes: int
) -> Tensor:
    """Count the pixels of one image by how sure the prediction is.

    Parameters
    ----------
    truth
        Train ids, shape (H, W); other values are left out.
    prediction
        Train ids, shape (H, W).
    confidence
        Probability of the predicted class, float32, 0…1, shape (H, W). NaN counts as 0.

    Returns
    -------
    Tensor
        int64, shape (BINS, 3): pixels, pixels that are right, sum of the probabilities in `UNIT`.
        Bin i holds probabilities above i ÷ BINS, up to (i + 1) ÷ BINS.
    """
    columns = torch.zeros(3, BINS + 1, dtype=torch.int64, device=truth.device)
    for truth_N, predicted_N, confidence_N in _parts(truth, prediction, confidence):
        # NaN as an integer is out of every bin. Exact in float32: a factor of two's power, and
        # integers up to 2^24.
        units_N = (confidence_N.nan_to_num(0.0).clamp_(0, 1) * UNIT).round_().long()
        bin_N = torch.div(units_N * BINS - 1, UNIT, rounding_mode="floor").clamp_(min=0)
        bin_N = torch.where(truth_N < num_classes, bin_N, BINS)
        right_N = (truth_N.long() == predicted_N.long()).long()
        for column, values_N in zip(columns, (_ones(bin_N), right_N, units_N), strict=True):
            _add(column, bin_N, values_N)
    return columns.T[:-1]


def of_truth(p_RWC: Tensor, truth_RW: Tensor) -> Tensor:
    """Return each pixel's value of its true class, shape (R, W).

    Parameters
    ----------
    p_RWC
        float32, shape (R, W, C).
    truth_RW
        Train ids; where it is another value, such as the ignore index, the result is 0.
    """
    classes, truth_RW = p_RWC.shape[2], truth_RW.long()
    own_RW = p_RWC.gather(2, truth_RW.clamp(max=classes - 1)[..., None])[..., 0]
    return torch.where(truth_RW < classes, own_RW, 0.0)


def loss_units(logits_RWC: Tensor, best_RW: Tensor, truth_RW: Tensor) -> Tensor:
    """Add up the cross entropy of the pixels of a strip, −log of the true class's probability.

    Parameters
    ----------
    logits_RWC
        float32, shape (R, W, C).
    best_RW
        The largest of each pixel's.
    truth_RW
        Train ids; other values, such as the ignore index, are left out.

    Returns
    -------
    Tensor
        int64 scalar, in `LOSS_UNIT`; of any value where a logit is not finite.
    """
    classes = logits_RWC.shape[2]
    truth_RW = truth_RW.long()
    own_RW = logits_RWC.gather(2, truth_RW.clamp(max=classes - 1)[..., None])[..., 0]
    log_sum_RW = (logits_RWC - best_RW[..., None]).exp_().sum(dim=2).log_()
    loss_RW = (log_sum_RW + best_RW).sub_(own_RW).clamp_(0, _MOST_LOSS)
    units_RW = (loss_RW * LOSS_UNIT).round_().long()
    return torch.where(truth_RW < classes, units_RW, 0).sum()


def _parts(*maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same pixels of each map, some at a time."""
    return zip(*(values.flatten().split(_PART) for values in maps), strict=True)


def _add(sums: Tensor, index_N: Tensor, values_N: Tensor) -> None:
    """Add values to the sums of their index, in place."""
    sums.scatter_add_(0, index_N, values_N)  # not bincount: on a GPU its size waits for the host


def _ones(like_N: Tensor) -> Tensor:
    return torch.ones((), dtype=torch.int64, device=like_N.device).expand_as(like_N)
