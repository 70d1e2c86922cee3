"""Focal loss: what is already right counts less."""

from torch import Tensor

from .options import LossOptions
from .pixels import score_pixels

GAMMA = 2.0
"""Lin et al., §4.1: the value that worked best."""


def focal(
    logits_CHW: Tensor, truth_HW: Tensor, valid_HW: Tensor, options: LossOptions
) -> tuple[Tensor, Tensor]:
    """Sum α_y (1 − p_y)^γ · −log p_y over the valid pixels of an image, y being the true class.

    α are the class weights, γ `GAMMA`. Ignored pixels count nowhere, and a class absent from the
    truth only in the probabilities. The step divides by the valid pixels' number; with class
    weights by the sum of α_y over them.

    Source: Lin et al., "Focal Loss for Dense Object Detection" (2017), eq. 5, softmax form.

    Returns
    -------
    Tensor, Tensor
        Sum over pixels, and 0 over images; scalars.
    """
    log_p = score_pixels(logits_CHW, truth_HW, valid_HW).log_p
    each_HW = -((1 - log_p.exp()) ** GAMMA) * log_p  # 0 where ignored, as log p is there
    if options.class_weights is not None:
        each_HW = each_HW * options.class_weights[truth_HW]
    return each_HW.sum(), logits_CHW.new_zeros(())
