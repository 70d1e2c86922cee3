"""Whether an export computes what transformers' own network does, and how nearly."""

# B batch, C classes, H W pixels of the input, h w of the logits

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import CocosegError, DataError
from ...model.preprocess import resize_logits
from .network import Reference, trial_images

TOLERANCE = 1e-4
"""Of the largest logit. Sums in another order differ by 1e-6 to 1e-5; a mean that is left out, or
channels that are swapped, by 1e-2 and more."""


@dataclass(frozen=True, slots=True)
class ParityCheck:
    """One batch, run both ways."""

    batch: int
    height: int
    width: int
    difference: float
    """The largest between logits; of masks, by how much the logit of a class in the mask is below
    the best one. Infinite where shapes differ or a number is none."""
    largest_logit: float
    """Of the reference, by magnitude."""

    @property
    def relative(self) -> float:
        """`difference` over `largest_logit`; infinite where that is 0 and the difference is not."""
        if not self.largest_logit:
            return math.inf if self.difference else 0.0
        return self.difference / self.largest_logit


@dataclass(frozen=True, slots=True)
class Parity:
    """All comparisons of one export."""

    comparisons: tuple[ParityCheck, ...]

    @property
    def worst(self) -> ParityCheck:
        """The comparison of the largest relative difference."""
        return max(self.comparisons, key=lambda one: one.relative)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        worst = self.worst
        return {
            "tolerance": TOLERANCE,
            "largest_relative_difference": worst.relative,
            "largest_difference": worst.difference,
            "largest_logit": worst.largest_logit,
            "shapes": [[one.batch, one.height, one.width] for one in self.comparisons],
        }

    def __str__(self) -> str:
        worst = self.worst
        sizes = dict.fromkeys(f"{one.height} x {one.width}" for one in self.comparisons)
        batches = sorted({one.batch for one in self.comparisons})
        return (
            f"{worst.difference:.2g} at logits up to {worst.largest_logit:.3g} "
            f"({worst.relative:.1e} of them; tolerance {TOLERANCE:g}); tried at "
            f"{', '.join(sizes)}, batches of {' and '.join(map(str, batches))}"
        )


def compare(
    run: Callable[[Tensor], Tensor],
    reference: Reference,
    shapes: Sequence[tuple[int, int, int]],
    *,
    of_masks: bool = False,
) -> Parity:
    """Run an export and the reference on the same images.

    Parameters
    ----------
    run
        uint8 RGB, shape (B, H, W, 3), to logits, float32, shape (B, C, h, w); or to train ids,
        shape (B, H, W), where `of_masks`.
    shapes
        (B, H, W) of each batch.

    Raises
    ------
    DataError
        If the reference's own logits are not finite numbers.
    """
    comparisons = []
    for batch, height, width in shapes:
        images = trial_images(batch, height, width)
        theirs = reference.logits(images)
        largest = float(theirs.abs().max())
        if not math.isfinite(largest):
            raise DataError("the checkpoint's logits are not finite: its weights are broken")
        ours = run(images)
        difference = _lost(ours, theirs) if of_masks else _largest_difference(ours, theirs)
        comparisons.append(ParityCheck(batch, height, width, difference, largest))
    return Parity(tuple(comparisons))


def refuse_difference(parity: Parity, output: str) -> None:
    """Raise a `CocosegError` if an export is not within the tolerance."""
    if parity.worst.relative > TOLERANCE:
        raise CocosegError(
            f"{output}: is not written: it does not compute what the network does; the largest "
            f"difference is {parity}. Please report it, with the versions that 'cocoseg doctor' "
            "prints."
        )


def _largest_difference(ours: Tensor, theirs: Tensor) -> float:
    if ours.shape != theirs.shape:
        return math.inf
    return _number((ours - theirs).abs().max())


def _lost(mask_BHW: Tensor, logits_BChw: Tensor) -> float:
    """Return by how much a mask's classes are below the best, at most: 0 for the argmax."""
    logits_BCHW = resize_logits(logits_BChw, *mask_BHW.shape[-2:])
    if mask_BHW.ndim != 3 or int(mask_BHW.max()) >= logits_BCHW.shape[1]:
        return math.inf
    chosen = logits_BCHW.gather(1, mask_BHW[:, None].to(torch.int64))
    return _number((logits_BCHW.amax(1, keepdim=True) - chosen).max())


def _number(value: Tensor) -> float:
    return float(value) if math.isfinite(value) else math.inf
