"""The loss of an optimizer step, in parts, at full resolution and without holding it.

    L = Σ over pixels of all images of the step ÷ P  +  Σ over images ÷ I

P and I depend on the masks alone (`Denominators`): they are summed over all processes and
micro-batches before the first forward pass, and any cut of a global batch gives the same loss.
"""

# B images, C classes, H W pixels of a mask, h w of the network's output

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import ConfigError
from ...model.upsample import upsample
from ...taxonomy import Taxonomy
from ..config import TrainConfig
from . import LOSSES
from .cross_entropy import kept_pixels
from .options import LossOptions

ImageLoss = Callable[[Tensor, Tensor, Tensor, LossOptions], tuple[Tensor, Tensor]]
"""(logits (C, H, W), truth (H, W) with 0 where ignored, valid (H, W), options) → (sum over pixels,
value of the image), differentiable."""


@dataclass(frozen=True, slots=True)
class Denominators:
    """What one image adds to P and I; NumPy alone, for the loader's workers."""

    ignore_index: int
    class_weights: tuple[float, ...] | None = None
    """By train id; None: each pixel counts 1."""
    ohem: float = 1.0

    def of(self, mask: NDArray[np.integer]) -> tuple[float, float]:
        """Return (P, I) of a mask of train ids, shape (H, W)."""
        valid = int(np.count_nonzero(mask != self.ignore_index))
        image = float(valid > 0)
        if self.ohem < 1:
            return float(kept_pixels(valid, self.ohem)), image
        if self.class_weights is None:
            return float(valid), image
        counts = np.bincount(mask.ravel(), minlength=len(self.class_weights))
        return float(counts[: len(self.class_weights)] @ np.asarray(self.class_weights)), image


@dataclass(frozen=True, slots=True)
class StepLoss:
    """A loss with its settings, for the micro-batches of a step."""

    image_loss: ImageLoss
    denominators: Denominators
    label_smoothing: float = 0.0
    weights: Tensor | None = field(default=None, compare=False)
    """The class weights where the network is, see `on`; else they are copied for each batch."""

    def on(self, device: torch.device) -> "StepLoss":
        """Return the loss for float32 logits of a device: nothing is copied there any more."""
        weights = self.denominators.class_weights
        if weights is None:
            return self
        return replace(self, weights=torch.tensor(weights, dtype=torch.float32).to(device))

    @classmethod
    def of(
        cls, config: TrainConfig, taxonomy: Taxonomy, class_weights: Sequence[float] | None
    ) -> "StepLoss":
        """Return the loss that a configuration asks for.

        Parameters
        ----------
        class_weights
            By train id; None: all count the same.

        Raises
        ------
        ConfigError
            If a setting has no effect on this loss.
        """
        entry = LOSSES[config.loss_type]
        asked = {
            "class_weights": class_weights is not None,
            "label_smoothing": config.label_smoothing > 0,
            "ohem": config.ohem < 1,
        }
        for name, wanted in asked.items():
            if wanted and name not in entry.uses:
                using = ", ".join(key for key, one in LOSSES.items() if name in one.uses)
                raise ConfigError(
                    f"train.{name} has no effect on train.loss_type {config.loss_type}; "
                    f"it has on {using}"
                )
        module, _, function = entry.function.partition(":")
        weights = None if class_weights is None else tuple(class_weights)
        return cls(
            getattr(importlib.import_module(f".{module}", __package__), function),
            Denominators(taxonomy.ignore_index, weights, config.ohem),
            config.label_smoothing,
        )

    def __call__(
        self, logits_BChw: Tensor, masks_BHW: Tensor, pixels: float, images: float
    ) -> Tensor:
        """Return a micro-batch's part of the step's loss.

        Logits are brought to the masks' size image by image, each image's gradient is taken at
        once and carried back to the network's resolution: what is held is one image.

        Parameters
        ----------
        logits_BChw
            Of any float type.
        masks_BHW
            Train ids, int64.
        pixels, images
            P and I of the whole step; where they are 0, so is the loss.

        Returns
        -------
        Tensor
            Scalar, float32 (float64 for float64 logits).

        Raises
        ------
        RuntimeError
            In the backward pass, under ``create_graph``: the gradient has none itself.
        """
        divisors = (1 / pixels if pixels else 0.0, 1 / images if images else 0.0)
        wanted = torch.is_grad_enabled() and logits_BChw.requires_grad
        apply: Any = _Parts.apply
        part: Tensor = apply(logits_BChw, masks_BHW, self, divisors, wanted)
        return part

    def options(self, dtype: torch.dtype, device: torch.device) -> LossOptions:
        """Return the settings as `image_loss` takes them."""
        weights_C = self.weights
        if self.denominators.class_weights is not None and (
            weights_C is None or weights_C.dtype != dtype
        ):
            weights_C = torch.tensor(self.denominators.class_weights, dtype=dtype).to(device)
        return LossOptions(weights_C, self.label_smoothing, self.denominators.ohem)

    def image_part(
        self,
        logits_Chw: Tensor,
        mask_HW: Tensor,
        divisors: tuple[float, float],
        options: LossOptions,
    ) -> Tensor:
        """Return one image's part, differentiable; the divisors are given as factors."""
        logits_CHW = upsample(logits_Chw[None], *mask_HW.shape)[0]
        valid_HW = mask_HW != self.denominators.ignore_index
        truth_HW = torch.where(valid_HW, mask_HW, 0)
        over_pixels, over_image = self.image_loss(logits_CHW, truth_HW, valid_HW, options)
        return over_pixels * divisors[0] + over_image * divisors[1]


class _Parts(torch.autograd.Function):
    """Sum the images' parts; their gradients are taken in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        logits_BChw: Tensor,
        masks_BHW: Tensor,
        loss: StepLoss,
        divisors: tuple[float, float],
        wanted: bool,
    ) -> Tensor:
        exact = torch.promote_types(logits_BChw.dtype, torch.float32)
        total = torch.zeros((), dtype=exact, device=logits_BChw.device)
        gradients = torch.empty_like(logits_BChw, dtype=exact) if wanted else None
        options = loss.options(exact, logits_BChw.device)
        with torch.autocast(logits_BChw.device.type, enabled=False):
            for b, mask_HW in enumerate(masks_BHW):
                logits_Chw = logits_BChw[b].detach().to(exact)
                with torch.set_grad_enabled(wanted):
                    logits_Chw.requires_grad_(wanted)
                    part = loss.image_part(logits_Chw, mask_HW, divisors, options)
                if gradients is not None:
                    (gradients[b],) = torch.autograd.grad(part, logits_Chw)
                total += part.detach()
        ctx.save_for_backward(gradients)
        ctx.dtype = logits_BChw.dtype
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # create_graph; a second derivative would be wrong, unnoticed
            raise RuntimeError("the loss has no second derivative: take its gradient once only")
        (gradients,) = ctx.saved_tensors
        return (gradients * gradient).to(ctx.dtype), None, None, None, None
