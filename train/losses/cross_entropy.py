"""Cross entropy, with class weights, label smoothing and the hardest pixels alone."""

import math

import torch
from torch import Tensor

from ...model.device import exact_dtype
from .options import LossOptions
from .pixels import PixelScores, score_pixels


def cross_entropy(
    logits_CHW: Tensor, truth_HW: Tensor, valid_HW: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Sum w_y · −log p_y over the valid pixels of an image, y being the true class.

    With label smoothing ε it is (1 − ε) · w_y · −log p_y + ε / C · Σ_c w_c · −log p_c, as in
    ``torch.nn.CrossEntropyLoss``. With ohem r the ⌈r · valid⌉ pixels of the largest −log p_y count
    and no others. Ignored pixels count nowhere, and a class absent from the truth only in the
    probabilities (and with smoothing).

    The step divides by the valid pixels' number; with class weights, by the sum of w_y over them;
    with ohem by the number kept, weighted or not, since which are kept shows only afterwards.

    Source of ohem: Wu, Shen, van den Hengel, "Bridging Category-level and Instance-level Semantic
    Image Segmentation" (2016), §3.2, online bootstrapping; there a fixed number an image is kept.

    Returns
    -------
    Tensor, Tensor
        Sum over pixels, and 0 over images; scalars.
    """
    scores = score_pixels(logits_CHW, truth_HW, valid_HW, weights_C=smoothing(logits_CHW, options))
    return of_scores(scores, truth_HW, valid_HW, options), logits_CHW.new_zeros(())


def smoothing(logits_CHW: Tensor, options: LossOptions) -> Tensor | None:
    """Return the weights that label smoothing needs of `score_pixels`; None without it."""
    if not options.label_smoothing:
        return None
    if options.class_weights is not None:
        return options.class_weights
    return logits_CHW.new_ones(len(logits_CHW))


def of_scores(
    scores: PixelScores, truth_HW: Tensor, valid_HW: Tensor, options: LossOptions
) -> Tensor:
    """Return the sum over pixels, given the image's scores."""
    each_HW = -scores.log_p
    if options.class_weights is not None:
        each_HW = each_HW * options.class_weights[truth_HW]
    if options.label_smoothing:
        share = options.label_smoothing / len(scores.class_sums)
        each_HW = (1 - options.label_smoothing) * each_HW - share * scores.log_p_all
    if options.ohem < 1:
        hardness_N = torch.where(valid_HW, -scores.log_p.detach(), -1.0).flatten()
        hardest_first_N = each_HW.flatten()[hardness_N.argsort(descending=True)]
        # `kept_pixels`, on the device: nothing waits for it.
        kept = (valid_HW.sum().to(exact_dtype(valid_HW.device)) * options.ohem).ceil()
        rank_N = torch.arange(len(hardness_N), device=hardness_N.device)
        return torch.where(rank_N < kept, hardest_first_N, 0.0).sum()
    return each_HW.sum()


def kept_pixels(valid: int, ohem: float) -> int:
    """Return how many of the valid pixels of an image are kept: ⌈ohem · valid⌉."""
    return min(valid, math.ceil(ohem * valid))
