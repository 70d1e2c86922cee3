"""Annotations that mark an object, but not its pixels: a box, or an area, without a segmentation.

To paint nothing for them would teach background.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec
from pycocotools import mask as coco_mask
from rlemasklib import RLEMask

from .outlines import UNDECODABLE, BadAnnotation, Instances, brief, check_polygon, coordinate


@dataclass(frozen=True, slots=True)
class Box:
    """What an annotation says of its object."""

    numbers: tuple[float, float, float, float] | None
    """x, y of the top left corner, width, height [pixels]; None if they are absent or bad."""
    detail: str


def find_boxes(instances: Instances, forms: Counter[str]) -> list[Box | None]:
    """Return the boxes of those without a segmentation, by instance; None: it marks no object.

    A box without width or height and an area of 0 mark none.
    """
    found: list[Box | None] = []
    for raw in msgspec.json.decode(instances.boxes, type=list[tuple[msgspec.Raw, msgspec.Raw]]):
        found.append(_box(_value(raw[0]), _value(raw[1]), forms))
    return found or [None] * len(instances)


def box_pixels(box: Box, width: int, height: int) -> RLEMask:
    """Return the pixels of a box: those of pycocotools, whose ``rleFrBbox`` draws the polygon.

    Parameters
    ----------
    width, height
        Size of the image [pixels].

    Raises
    ------
    BadAnnotation
        ``bad-box`` or ``coordinates-far-off``.
    """
    if box.numbers is None:
        raise BadAnnotation("bad-box", f"no segmentation and no box to mark, but {box.detail}")
    left, top, across, down = box.numbers
    right, bottom = left + across, top + down
    polygon = [left, top, left, bottom, right, bottom, right, top]
    check_polygon("bbox", polygon, width, height)
    return RLEMask.from_dict(coco_mask.frPyObjects([polygon], height, width)[0])


_BAD = object()


def _value(raw: msgspec.Raw) -> Any:
    try:
        return msgspec.json.decode(raw)
    except UNDECODABLE:  # NaN and the like
        return _BAD


def _box(bbox: Any, area: Any, forms: Counter[str]) -> Box | None:
    if bbox is not None and bbox != [] and bbox != {}:
        try:
            x, y, width, height = (float(coordinate(value, forms)) for value in bbox)
        except (TypeError, ValueError, OverflowError):
            x = y = width = height = math.nan
        if not (math.isfinite(x + y + width + height) and width >= 0 and height >= 0):
            shown = "that is NaN or infinite" if bbox is _BAD else brief(bbox)
            return Box(None, f"a bbox {shown}; expected [x, y, width, height]")
        if width and height:
            return Box((x, y, width, height), f"a bbox {brief(bbox)}")
    try:
        marked = coordinate(area, forms) > 0
    except ValueError:
        marked = False
    return Box(None, f"an area of {brief(area)}") if marked else None
