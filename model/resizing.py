"""To which sizes the image processors of transformers resize images.

Source: transformers 5, ``image_transforms.py`` and ``models/dpt/image_processing_pil_dpt.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SMALLEST = 32
"""Pixels of the shorter side that a network gets, whatever is asked for."""
_LARGEST = 2**15

_SIDES = (
    {"height", "width"},
    {"shortest_edge"},
    {"shortest_edge", "longest_edge"},
    {"max_height", "max_width"},
)


@dataclass(frozen=True, slots=True)
class Resizing:
    """What ``do_resize``, ``size`` and the settings of DPT say. One pair of sides, or none."""

    sides: tuple[tuple[str, int], ...] = ()
    """The items of ``size`` [pixels]: ``height`` and ``width``, ``shortest_edge`` with or without
    ``longest_edge``, or ``max_height`` and ``max_width``. Empty: images keep their size."""
    keep_aspect_ratio: bool = False
    """DPT: scale both sides of an image by the factor that is nearer to 1."""
    multiple: int = 1
    """DPT: round both sides to a multiple of it (``ensure_multiple_of``)."""

    @classmethod
    def read(cls, content: Mapping[str, Any], *, dpt: bool) -> "Resizing":
        """Read a processor's settings, in which defaults are filled in.

        Raises
        ------
        ValueError
            If a value is of the wrong type or range, or is not supported; names the key.
        """
        if not flag(content, "do_resize"):
            return cls()
        sides = read_size("size", content["size"], square=flag(content, "default_to_square"))
        if not dpt:
            return cls(tuple(sorted(sides.items())))
        if sides.keys() != {"height", "width"}:
            raise ValueError(f"size: {content['size']!r}: DPT's processor needs height and width")
        multiple = content.get("ensure_multiple_of", 1)
        return cls(
            tuple(sorted(sides.items())),
            flag(content, "keep_aspect_ratio"),
            pixels("ensure_multiple_of", multiple),
        )

    @property
    def square(self) -> int | None:
        """The side, if all images become one square and nothing else is said."""
        sides = dict(self.sides)
        plain = self.multiple == 1 and not self.keep_aspect_ratio
        same = sides.keys() == {"height", "width"} and len(set(sides.values())) == 1
        return sides["height"] if plain and same else None

    @property
    def side(self) -> int | None:
        """The longest side that is named; None if images keep their size."""
        return max((number for _, number in self.sides), default=None)

    def target(self, width: int, height: int, scale: float) -> tuple[int, int]:
        """Return (w, h) [pixels] of an image of that size; never below `SMALLEST`.

        Parameters
        ----------
        scale
            Factor of all sides that are named, or of the image's own.

        Raises
        ------
        MemoryError
            If it is more pixels than any image may have.
        """
        sides = {name: max(1, round(number * scale)) for name, number in self.sides}
        if not sides:
            h, w = round(height * scale), round(width * scale)
        elif "longest_edge" in sides:
            h, w = _between(height, width, sides["shortest_edge"], sides["longest_edge"])
        elif "shortest_edge" in sides:
            short, long = min(width, height), max(width, height)
            longer = int(sides["shortest_edge"] * long / short)
            h, w = (longer, sides["shortest_edge"])[:: 1 if width <= height else -1]
        elif "max_height" in sides:
            factor = min(sides["max_height"] / height, sides["max_width"] / width)
            h, w = int(height * factor), int(width * factor)
        else:
            h, w = self._fitted(height, width, sides["height"], sides["width"])
        least = -(-SMALLEST // self.multiple) * self.multiple
        w, h = max(least, w), max(least, h)
        if w * h > _LARGEST**2:
            raise MemoryError(f"an input of {w} × {h} pixels")
        return w, h

    def _fitted(self, height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
        tall, wide = to_height / height, to_width / width
        if self.keep_aspect_ratio:
            tall = wide = wide if abs(1 - wide) < abs(1 - tall) else tall
        elif self.multiple == 1:
            return to_height, to_width
        step = self.multiple
        return round(tall * height / step) * step, round(wide * width / step) * step

    def to_dict(self) -> dict[str, Any]:
        """Return the keys of a processor that say the same."""
        told: dict[str, Any] = {"do_resize": bool(self.sides)}
        if self.sides:
            told["size"] = dict(self.sides)
        if self.keep_aspect_ratio or self.multiple > 1:
            told |= {
                "keep_aspect_ratio": self.keep_aspect_ratio,
                "ensure_multiple_of": self.multiple,
            }
        return told


def _between(height: int, width: int, shortest: int, longest: int) -> tuple[int, int]:
    """Return (h, w) with the shorter side at `shortest`, the longer one at most at `longest`."""
    short, long = min(height, width), max(height, width)
    exact: float = shortest
    if long / short * shortest > longest:
        exact = longest * short / long
    side = round(exact)
    if short == side:
        return height, width
    longer = int(exact * long / short)
    return (longer, side) if width < height else (side, longer)


def read_size(key: str, value: Any, *, square: bool) -> dict[str, int]:
    """Return a size as transformers names its sides.

    Parameters
    ----------
    value
        A number, [height, width], or an object.
    square
        Whether a number means a square; else it means the shorter side.

    Raises
    ------
    ValueError
        If it is anything else, or a form of size that no processor resizes to.
    """
    if isinstance(value, (list, tuple)) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif not isinstance(value, Mapping):
        side = pixels(key, value)
        value = {"height": side, "width": side} if square else {"shortest_edge": side}
    sides = {str(name): number for name, number in value.items() if number is not None}
    if sides.keys() not in _SIDES:
        raise ValueError(
            f"{key}: {dict(value)!r} is not supported; it needs height and width, shortest_edge "
            "(and longest_edge), or max_height and max_width"
        )
    return {name: pixels(key, number) for name, number in sides.items()}


def pixels(key: str, value: Any) -> int:
    """Return a number of pixels, or raise a ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _LARGEST:
        raise ValueError(f"{key}: {value!r} is not a number of pixels")
    return value


def flag(content: Mapping[str, Any], key: str) -> bool:
    """Return a truth value; what is absent or null is false."""
    value = content.get(key)
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{key}: {value!r} is not true or false")
    return bool(value)
