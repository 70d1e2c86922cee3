"""Losses of one image, by name; a step's loss is made of them in `step`.

To add one: a file with a function as `cross_entropy.cross_entropy` is one, a line here, a test.
No torch in this module: settings are checked against it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LossEntry:
    """Where a loss is, and which settings it uses."""

    function: str
    """``module:function`` of this package."""
    uses: tuple[str, ...] = ()
    """Of ``class_weights``, ``label_smoothing``, ``ohem``; any other is refused."""


LOSSES = {
    "ce": LossEntry("cross_entropy:cross_entropy", ("class_weights", "label_smoothing", "ohem")),
    "dice": LossEntry("dice:dice"),
    "ce_dice": LossEntry("ce_dice:ce_dice", ("class_weights", "label_smoothing", "ohem")),
    "focal": LossEntry("focal:focal", ("class_weights",)),
}
"""By `TrainConfig.loss_type`."""
