"""Losses as sums, so that a step's value does not depend on how its batch was cut.

Each returns a sum over valid pixels and a sum over images; the loop divides them by the counts of
the whole optimizer step, over all ranks and micro-batches. Ignored pixels count nowhere.
"""

# B batch, C classes, H W pixels

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

DICE_SMOOTH = 1.0
"""Pixels added to both sides of the Dice ratio, so that a class of few pixels stays calm."""
FOCAL_GAMMA = 2.0
"""Lin et al., §4.1: the value that worked best."""


@dataclass(frozen=True, slots=True)
class LossSums:
    """Parts of a loss before they are divided; zero tensors for what a loss does not use."""

    over_pixels: Tensor
    """To be divided by the valid pixels of the step."""
    over_images: Tensor
    """To be divided by the images of the step that have a valid pixel."""

    def mean(self, pixels: Tensor, images: Tensor) -> Tensor:
        """Return the loss, given the step's counts (scalars; zero counts give zero)."""
        return self.over_pixels / pixels.clamp(min=1) + self.over_images / images.clamp(min=1)


Loss = Callable[[Tensor, Tensor, int], LossSums]
"""(logits (B, C, H, W) float, target (B, H, W) int64, ignore index) → sums."""


@dataclass(frozen=True, slots=True)
class _Scored:
    """What all losses need of a batch; the full softmax is never held."""

    truth: Tensor
    """Train ids, 0 where ignored, int64, shape (B, H, W)."""
    valid: Tensor
    """bool, shape (B, H, W)."""
    log_normaliser: Tensor
    """log Σ exp of the logits, shape (B, H, W)."""
    log_p: Tensor
    """Log probability of the true class, 0 where ignored, shape (B, H, W)."""

    @classmethod
    def of(cls, logits: Tensor, target: Tensor, ignore_index: int) -> "_Scored":
        valid = target != ignore_index
        truth = torch.where(valid, target, 0)
        log_normaliser = logits.logsumexp(dim=1)
        log_p = logits.gather(1, truth[:, None])[:, 0] - log_normaliser
        return cls(truth, valid, log_normaliser, torch.where(valid, log_p, 0.0))


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> LossSums:
    """Sum −log p of the true class over the valid pixels."""
    scored = _Scored.of(logits, target, ignore_index)
    return LossSums(-scored.log_p.sum(), logits.new_zeros(()))


def dice(logits: Tensor, target: Tensor, ignore_index: int) -> LossSums:
    """Sum over images the mean of 1 − Dice over the classes present in the image.

    Dice of class c = (2 Σ p g + s) / (Σ p + Σ g + s) over the valid pixels, p its probability, g 1
    where it is true, s `DICE_SMOOTH`. A class absent from an image's truth does not count there.
    Source: Sudre et al., "Generalised Dice overlap as a deep learning loss function" (2017), with
    the sums in the first power.
    """
    scored = _Scored.of(logits, target, ignore_index)
    return LossSums(logits.new_zeros(()), _dice_sum(logits, scored))


def ce_dice(logits: Tensor, target: Tensor, ignore_index: int) -> LossSums:
    """Add cross entropy and Dice, equally weighted."""
    scored = _Scored.of(logits, target, ignore_index)
    return LossSums(-scored.log_p.sum(), _dice_sum(logits, scored))


def focal(logits: Tensor, target: Tensor, ignore_index: int) -> LossSums:
    """Sum (1 − p)^γ · −log p of the true class over the valid pixels.

    Source: Lin et al., "Focal Loss for Dense Object Detection" (2017), eq. 4, softmax form.
    """
    log_p = _Scored.of(logits, target, ignore_index).log_p
    weight = (1 - log_p.exp()) ** FOCAL_GAMMA  # 0 for ignored pixels, whose log p is 0
    return LossSums(-(weight * log_p).sum(), logits.new_zeros(()))


def _dice_sum(logits: Tensor, scored: _Scored) -> Tensor:
    batch, classes = logits.shape[:2]
    index = scored.truth.flatten(1)
    empty_BC = logits.new_zeros(batch, classes)
    truth_BC = empty_BC.scatter_add(1, index, scored.valid.flatten(1).to(logits.dtype))
    p_true = scored.log_p.exp() * scored.valid
    overlap_BC = empty_BC.scatter_add(1, index, p_true.flatten(1))
    # Probabilities of the present classes alone: a handful of the 81 in a photograph.
    image, present = truth_BC.nonzero(as_tuple=True)
    p_KHW = (logits[image, present] - scored.log_normaliser[image]).exp() * scored.valid[image]
    truth, overlap = truth_BC[image, present], overlap_BC[image, present]
    ratio = (2 * overlap + DICE_SMOOTH) / (p_KHW.sum(dim=(1, 2)) + truth + DICE_SMOOTH)
    present_a_image = (truth_BC > 0).sum(dim=1)
    return ((1 - ratio) / present_a_image[image]).sum() + 0 * p_true.sum()


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "dice": dice,
    "ce_dice": ce_dice,
    "focal": focal,
}
"""By `TrainConfig.loss_type`."""


def step_counts(masks: Tensor, ignore_index: int) -> Tensor:
    """Return (valid pixels, images with a valid pixel) of masks (B, H, W), float64, shape (2,)."""
    valid = (masks != ignore_index).flatten(1).sum(dim=1)
    return torch.stack((valid.sum(), (valid > 0).sum())).to(torch.float64)
