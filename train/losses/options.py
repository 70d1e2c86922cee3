"""Settings that several losses use."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossOptions:
    """See `TrainConfig`."""

    class_weights: Tensor | None = None
    """By train id, shape (C,), in the logits' dtype and on their device; None: all 1."""
    label_smoothing: float = 0.0
    ohem: float = 1.0
