"""Paint the instances of one image into a train-id mask.

The pixels of an instance are those of pycocotools on the full canvas (frPyObjects → merge →
decode), exactly: other rasterizers differ at the borders. pycocotools trusts its input (bad
numbers crash it), so everything is checked before it sees any.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Mask = NDArray[np.uint8] | NDArray[np.uint16]


class BadAnnotation(Exception):
    """An instance that cannot be trusted, so neither can its image."""

    def __init__(self, reason: str, detail: str, annotation_id: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.annotation_id = annotation_id


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotation of an image."""

    id: int | None
    train_id: int
    """What to paint; 0 for categories dropped to background, or the ignore index."""
    crowd: bool
    segmentation: bytes
    """The annotation's ``segmentation``, raw JSON: polygons in pixels (x, y from the top left
    corner), RLE, or null."""


@dataclass(frozen=True, slots=True)
class PaintRules:
    """What wins where instances overlap (see `PrepareConfig`)."""

    overlap: Literal["area", "order"]
    crowd: Literal["paint", "beneath", "ignore", "drop"]
    ignore_index: int


@dataclass(frozen=True, slots=True)
class Painting:
    """A painted mask and what was met on the way."""

    mask: Mask
    """Train ids, shape (H, W); uint8, or uint16 when the ignore index is 65535."""
    counts: Mapping[str, int]
    """instances, crowds, and the oddities that are accepted."""


def rasterize(
    instances: Sequence[Instance], width: int, height: int, rules: PaintRules
) -> Painting:
    """Paint the instances of one image into a train-id mask.

    Large instances go first, so that small ones in front stay visible; among equal areas the later
    annotation is on top.

    Parameters
    ----------
    instances
        In JSON order.
    width, height
        Size of the mask [pixels].

    Raises
    ------
    BadAnnotation
        If an instance cannot be trusted; carries its reason code and annotation id.
    """
    counts: Counter[str] = Counter(instances=len(instances))
    layers: list[tuple[bool, int, int, Any]] = []  # beneath, area, value, RLE
    for instance in instances:
        counts["crowds"] += instance.crowd
        try:
            shape = _shape(instance.segmentation, width, height)
        except BadAnnotation as bad:
            raise BadAnnotation(bad.reason, bad.detail, instance.id) from None
        if shape is None:
            counts["no_segmentation"] += 1
            continue
        counts["out_of_bounds"] += shape.out_of_bounds
        area = int(coco_mask.area(shape.rle))
        counts["zero_area"] += area == 0
        if area == 0 or (instance.crowd and rules.crowd == "drop"):
            continue
        ignored = instance.crowd and rules.crowd == "ignore"
        beneath = instance.crowd and rules.crowd in ("beneath", "ignore")
        value = rules.ignore_index if ignored else instance.train_id
        layers.append((beneath, area, value, shape.rle))

    mask = np.zeros((height, width), np.uint8 if rules.ignore_index == 255 else np.uint16)
    by_area = rules.overlap == "area"
    layers.sort(key=lambda layer: (not layer[0], -layer[1] if by_area else 0))  # stable
    for _, _, value, rle in layers:
        mask[coco_mask.decode(rle).view(bool)] = value
    return Painting(mask, {name: count for name, count in counts.items() if count})


@dataclass(frozen=True, slots=True)
class _Shape:
    rle: Any
    """pycocotools' compressed RLE."""
    out_of_bounds: bool


def _shape(segmentation: bytes, width: int, height: int) -> _Shape | None:
    """Check a segmentation and encode it; None where there is none."""
    try:
        content = msgspec.json.decode(segmentation)
    except (msgspec.DecodeError, RecursionError) as error:  # 1e999 and the like
        raise BadAnnotation("bad-segmentation", f"segmentation: {error}") from None
    if content is None or content == [] or content == {}:
        return None
    if isinstance(content, dict):
        return _Shape(_rle(content, width, height), out_of_bounds=False)
    if isinstance(content, list):
        return _polygons(content, width, height)
    raise BadAnnotation("bad-segmentation", f"segmentation is {type(content).__name__}")


def _polygons(polygons: list[Any], width: int, height: int) -> _Shape:
    # A point farther off than this is no annotator's slip, and its outline may not fit in memory.
    limit = max(width, height)
    outside = False
    for number, polygon in enumerate(polygons):
        where = f"segmentation[{number}]"
        if not isinstance(polygon, list) or not all(type(v) in (int, float) for v in polygon):
            raise BadAnnotation("bad-polygon", f"{where}: expected a flat list of numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise BadAnnotation(
                "bad-polygon",
                f"{where}: {len(polygon)} numbers; a polygon is x, y of three or more points",
            )
        try:
            points = np.array(polygon, np.float64).reshape(-1, 2)
        except OverflowError:
            raise BadAnnotation(
                "coordinates-far-off", f"{where}: an integer beyond any float"
            ) from None
        low, high = points.min(axis=0), points.max(axis=0)
        if not (np.isfinite(points).all() and low.min() >= -limit and high.max() <= 2 * limit):
            raise BadAnnotation(
                "coordinates-far-off",
                f"{where}: x {low[0]:g}…{high[0]:g}, y {low[1]:g}…{high[1]:g} in an image of "
                f"{width} x {height}",
            )
        outside |= bool(low.min() < 0 or high[0] > width or high[1] > height)
    rles = coco_mask.frPyObjects(polygons, height, width)
    return _Shape(coco_mask.merge(rles), outside)


def _rle(content: dict[str, Any], width: int, height: int) -> Any:
    size, counts = content.get("size"), content.get("counts")
    if not isinstance(size, list) or [type(v) for v in size] != [int, int]:
        raise BadAnnotation("bad-rle", f"RLE size {size!r}; expected [height, width]")
    if size != [height, width]:
        raise BadAnnotation("rle-size-mismatch", f"RLE size {size}, image [{height}, {width}]")
    if isinstance(counts, str):
        runs = decode_counts(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        raise BadAnnotation("bad-rle", "RLE counts are neither a string nor a list of integers")
    if any(run < 0 for run in runs):
        raise BadAnnotation("bad-rle", "RLE counts hold a negative run")
    if sum(runs) != height * width:
        raise BadAnnotation(
            "rle-sum-mismatch", f"RLE counts sum to {sum(runs)}, not {height} x {width}"
        )
    return coco_mask.frPyObjects({"size": size, "counts": runs}, height, width)


def decode_counts(text: str) -> list[int]:
    """Decode the compressed form of RLE counts.

    Six bits a character from 48 on, five of them payload, least significant first, the last one
    sign-extended; from the fourth run on, differences to the run before the last.
    Source: `rleFrString` in pycocotools' ``common/maskApi.c``.

    Raises
    ------
    BadAnnotation
        If a character is outside the alphabet or the last number is cut.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise BadAnnotation("bad-rle", f"compressed RLE: bad number at run {len(runs)}")
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            continue
        if code & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise BadAnnotation("bad-rle", "compressed RLE: cut in the middle of a number")
    return runs
