"""Cross entropy and Dice together."""

from torch import Tensor

from . import cross_entropy, dice
from .options import LossOptions
from .pixels import score_pixels


def ce_dice(
    logits_CHW: Tensor, truth_HW: Tensor, valid_HW: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Add `cross_entropy.cross_entropy` and `dice.dice`, equally weighted.

    Source: Isensee et al., "nnU-Net" (2021), methods, loss function.

    Returns
    -------
    Tensor, Tensor
        The sum over pixels of the one and the image's value of the other; scalars.
    """
    weights_C = cross_entropy.smoothing(logits_CHW, options)
    scores = score_pixels(logits_CHW, truth_HW, valid_HW, sums=True, weights_C=weights_C)
    return (
        cross_entropy.of_scores(scores, truth_HW, valid_HW, options),
        dice.of_scores(scores, truth_HW, valid_HW),
    )
