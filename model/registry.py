"""Networks that a name can ask for with random weights: a family and a size, ``segformer-b0``.

A family is a module beside this one with `SIZES` and `architecture`, and one line in `FAMILIES`.
None of it imports torch: the settings of a run are checked against these names.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from . import segformer


class Family(Protocol):
    """What the module of a family holds."""

    @property
    def SIZES(self) -> Mapping[str, object]:  # noqa: N802 - a constant of the module
        """Sizes by name, smallest first."""

    def architecture(self, size: str) -> Any:
        """Return transformers' configuration of a network of that size."""


FAMILIES: dict[str, Family] = {
    "segformer": segformer,
}


def names() -> tuple[str, ...]:
    """Return every name, such as ``segformer-b0``."""
    return tuple(f"{name}-{size}" for name, family in FAMILIES.items() for size in family.SIZES)


def is_random(name: str) -> bool:
    """Return whether a model name asks for random weights (``segformer-b0``) or pretrained ones.

    A name of a known family counts, whatever its size: the hub's names have an owner.
    """
    return "/" not in name and name.partition("-")[0] in FAMILIES and "-" in name


def architecture(name: str) -> Any:
    """Return transformers' configuration of the network of that name."""
    family, _, size = name.partition("-")
    return FAMILIES[family].architecture(size)
