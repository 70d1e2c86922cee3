"""Dice: overlap of each class, whatever its size."""

import torch
from torch import Tensor

from .options import LossOptions
from .pixels import PixelScores, score_pixels

SMOOTH = 1.0
"""Pixels added to both sides of the ratio, so that a class of few pixels stays calm."""


def dice(
    logits_CHW: Tensor, truth_HW: Tensor, valid_HW: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Average 1 − Dice over the classes that are present in the truth of an image.

    Dice of class c = (2 Σ p g + s) / (Σ p + Σ g + s) over the valid pixels, p its probability, g 1
    where it is true, s `SMOOTH`. Ignored pixels count nowhere; a class absent from the truth does
    not count, and an image without a valid pixel is 0 and none of the images that the step divides
    by. By image and not by batch: a Dice over a batch is not a sum over its micro-batches.

    Source: Milletari et al., "V-Net" (2016), §3, with the sums in the first power as in Sudre et
    al., "Generalised Dice overlap as a deep learning loss function" (2017).

    Returns
    -------
    Tensor, Tensor
        0 over pixels, and the image's value; scalars.
    """
    del options
    scores = score_pixels(logits_CHW, truth_HW, valid_HW, sums=True)
    return logits_CHW.new_zeros(()), of_scores(scores, truth_HW, valid_HW)


def of_scores(scores: PixelScores, truth_HW: Tensor, valid_HW: Tensor) -> Tensor:
    """Return the image's value, given its scores."""
    zeros_C = torch.zeros_like(scores.class_sums)
    counts = valid_HW.to(zeros_C.dtype)
    truth_N = truth_HW.flatten()
    truth_C = zeros_C.scatter_add(0, truth_N, counts.flatten())
    overlap_C = zeros_C.scatter_add(0, truth_N, (scores.log_p.exp() * counts).flatten())
    ratio_C = (2 * overlap_C + SMOOTH) / (scores.class_sums + truth_C + SMOOTH)
    present_C = truth_C > 0
    return torch.where(present_C, 1 - ratio_C, 0.0).sum() / present_C.sum().clamp(min=1)
