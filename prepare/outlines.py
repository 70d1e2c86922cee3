"""The segmentations of one image: decoded, checked, encoded as RLE.

pycocotools trusts its input (bad numbers crash it), so everything is checked before it sees any.
All segmentations of an image are decoded, checked and encoded in one go; only when something is
wrong, or written in another form, are they looked at one by one.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from rlemasklib import RLEMask

from .lenient import NUMBER, whole_number


class BadAnnotation(Exception):
    """An instance that cannot be trusted, so neither can its image."""

    def __init__(self, reason: str, detail: str, annotation_id: int | None = None) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.annotation_id = annotation_id


class Instances(msgspec.Struct, frozen=True, array_like=True):
    """The annotations of one image, column by column, in JSON order."""

    ids: tuple[int | None, ...] = ()
    train_ids: tuple[int, ...] = ()
    """What to paint; 0 for categories dropped to background, or the ignore index."""
    crowds: tuple[bool, ...] = ()
    segmentations: bytes = b"[]"
    """A JSON array of their ``segmentation``: polygons in pixels (x, y from the top left corner),
    RLE, or null."""
    boxes: bytes = b"[]"
    """A JSON array of their ``[bbox, area]``; empty if all have a segmentation."""

    def __len__(self) -> int:
        return len(self.ids)


class _Rle(msgspec.Struct):
    size: list[int]
    counts: str | list[int]


_DECODER = msgspec.json.Decoder(list[list[list[float]] | _Rle | None])
_RAW_DECODER = msgspec.json.Decoder(list[msgspec.Raw])
UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


@dataclass(frozen=True, slots=True)
class Outlines:
    """The segmentations of an image, checked and encoded."""

    shapes: list[RLEMask | None]
    """None: has none."""
    out_of_bounds: int
    columns: slice
    """Outside these no shape has a pixel."""
    forms: Mapping[str, int]
    """What is written in another form than COCO's, and how often."""


def outline(instances: Instances, width: int, height: int) -> Outlines:
    """Check and encode all segmentations of an image.

    Parameters
    ----------
    width, height
        Size of the image [pixels].

    Raises
    ------
    BadAnnotation
        If one cannot be trusted; carries its reason code and annotation id.
    """
    try:
        decoded = _DECODER.decode(instances.segmentations)
    except UNDECODABLE:
        decoded = None
    polygons = _polygons_of(decoded or ())
    numbers = numbers_of(polygons)
    forms: Counter[str] = Counter()
    if decoded is None or not _sound(polygons, numbers, width, height):
        decoded = _checked_one_by_one(instances, width, height, forms)
        polygons = _polygons_of(decoded)
        numbers = numbers_of(polygons)
    rles = coco_mask.frPyObjects(polygons, height, width) if polygons else []
    shapes: list[RLEMask | None] = []
    used = out_of_bounds = 0
    bounded = not polygons or _inside(numbers, width, height)
    for position, content in enumerate(decoded):
        if not content:
            shapes.append(None)
        elif isinstance(content, list):
            parts = rles[used : used + len(content)]
            used += len(content)
            whole = parts[0] if len(parts) == 1 else coco_mask.merge(parts)
            shapes.append(RLEMask.from_dict(whole))
            out_of_bounds += not (bounded or _inside(numbers_of(content), width, height))
        else:
            try:
                shapes.append(_rle(content.size, content.counts, width, height))
            except BadAnnotation as bad:
                raise BadAnnotation(bad.reason, bad.detail, instances.ids[position]) from None
    columns = slice(0, width)
    if polygons and not any(isinstance(content, _Rle) for content in decoded):
        left, right = numbers[0::2].min(), numbers[0::2].max()
        columns = slice(max(0, int(left) - 1), max(0, int(right) + 2))  # it rounds by less than 1
    return Outlines(shapes, out_of_bounds, columns, forms)


def _polygons_of(decoded: Iterable[list[list[float]] | _Rle | None]) -> list[list[float]]:
    return [polygon for content in decoded if isinstance(content, list) for polygon in content]


def numbers_of(polygons: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Return x, y, x, y … of all polygons in one row."""
    return np.fromiter(itertools.chain.from_iterable(polygons), np.float64)


def _sound(
    polygons: Sequence[Sequence[float]], numbers: NDArray[np.float64], width: int, height: int
) -> bool:
    """Return whether pycocotools may see these polygons; False where one must be looked at."""
    if not polygons:
        return True
    if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
        return False
    limit = _limit(width, height)
    if not (numbers.min() >= -limit and numbers.max() <= 2 * limit):  # NaN is not either
        return False
    longest = max(map(len, polygons)) // 2 * 3 * limit  # no edge is longer than 3 x limit
    return longest <= _LONGEST_OUTLINE or all(_length(p) <= _LONGEST_OUTLINE for p in polygons)


def _limit(width: int, height: int) -> int:
    # A point farther off than this is not an annotator's slip.
    return max(width, height)


_LONGEST_OUTLINE = 10_000_000
"""pycocotools takes 35 bytes and 0.2 us a pixel of outline: 100,000 points criss-cross over
640 x 480 took 6.6 GB, and a failed malloc crashes it. All pixels of a COCO image are 300,000."""


def _length(polygon: Sequence[float]) -> float:
    """Return the length of a polygon's outline as pycocotools walks it [pixels]."""
    points = np.array(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def _inside(numbers: NDArray[np.float64], width: int, height: int) -> bool:
    return bool(
        numbers.min() >= 0 and numbers[0::2].max() <= width and numbers[1::2].max() <= height
    )


def _checked_one_by_one(
    instances: Instances, width: int, height: int, forms: Counter[str]
) -> list[list[list[float]] | _Rle | None]:
    """Find out what is wrong and say so, or return what was only written in another form."""
    try:
        raws = _RAW_DECODER.decode(instances.segmentations)
    except UNDECODABLE as error:
        raise BadAnnotation("bad-segmentation", f"segmentation: {error}") from None
    decoded = []
    for raw, annotation_id in zip(raws, instances.ids, strict=True):
        try:
            decoded.append(_segmentation(raw, width, height, forms))
        except BadAnnotation as bad:
            raise BadAnnotation(bad.reason, bad.detail, annotation_id) from None
    return decoded


def _segmentation(
    raw: msgspec.Raw, width: int, height: int, forms: Counter[str]
) -> list[list[float]] | _Rle | None:
    try:
        content = msgspec.json.decode(raw)
    except UNDECODABLE as error:  # 1e999 and the like, or NaN: see `lenient`
        detail = f"segmentation: {error}"
        if "out of range" in detail:
            detail = "segmentation: a number is NaN, infinite or out of range"
        raise BadAnnotation("bad-segmentation", detail) from None
    if content is None or content == [] or content == {}:
        return None
    if isinstance(content, list):
        if not any(isinstance(polygon, list) for polygon in content):
            content = [content]
            forms["flat_polygons"] += 1
        return [
            _polygon(f"segmentation[{number}]", polygon, width, height, forms)
            for number, polygon in enumerate(content)
        ]
    if isinstance(content, dict):
        size, counts = content.get("size"), content.get("counts")
        try:
            sides = [_whole(side, forms) for side in _a_list(size)]
        except ValueError:
            sides = []
        if len(sides) != 2:
            raise BadAnnotation("bad-rle", f"RLE size {brief(size)}; expected [height, width]")
        if isinstance(counts, str):
            return _Rle(sides, counts)
        try:
            return _Rle(sides, [_whole(run, forms) for run in _a_list(counts)])
        except ValueError:
            detail = "RLE counts are neither a string nor a list of integers"
            raise BadAnnotation("bad-rle", detail) from None
    raise BadAnnotation("bad-segmentation", f"segmentation is {type(content).__name__}")


def _a_list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("is not a list")
    return value


def _whole(value: Any, forms: Counter[str]) -> int:
    """Return an integer that may be written as a float or as text."""
    if type(value) is int:
        return value
    found = whole_number(msgspec.json.encode(value))
    if found is None:
        raise ValueError("is not a whole number")
    forms[found[1] or ""] += 1
    return int(found[0])


def coordinate(value: Any, forms: Counter[str]) -> float:
    """Return a number that may be written as text.

    Raises
    ------
    ValueError
        If it is none.
    """
    if type(value) in (int, float):
        return value  # type: ignore[no-any-return]
    if not isinstance(value, str) or not NUMBER.fullmatch(value):
        raise ValueError("is not a number")
    forms["numbers_as_text"] += 1
    return float(value)


def _polygon(where: str, polygon: Any, width: int, height: int, forms: Counter[str]) -> list[float]:
    """Check a polygon, and write its points in one row where they are pairs."""
    if isinstance(polygon, list) and polygon and all(map(_is_pair, polygon)):
        polygon = list(itertools.chain.from_iterable(polygon))
        forms["paired_points"] += 1
    try:
        numbers = [coordinate(value, forms) for value in _a_list(polygon)]
    except ValueError:
        raise BadAnnotation("bad-polygon", f"{where}: expected a flat list of numbers") from None
    check_polygon(where, numbers, width, height)
    return numbers


def _is_pair(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2


def check_polygon(where: str, polygon: Sequence[float], width: int, height: int) -> None:
    """Make sure that pycocotools can draw a polygon.

    Raises
    ------
    BadAnnotation
        ``bad-polygon`` or ``coordinates-far-off``; `where` is named in it.
    """
    if len(polygon) < 6 or len(polygon) % 2:
        raise BadAnnotation(
            "bad-polygon",
            f"{where}: {len(polygon)} numbers; a polygon is x, y of three or more points",
        )
    try:
        points = np.array(polygon, np.float64).reshape(-1, 2)
    except OverflowError:
        detail = f"{where}: an integer beyond any float"
        raise BadAnnotation("coordinates-far-off", detail) from None
    if _sound([polygon], points.ravel(), width, height):
        return
    low, high = points.min(axis=0), points.max(axis=0)
    if low.min() >= -_limit(width, height) and high.max() <= 2 * _limit(width, height):
        length = f"{_length(polygon):,.0f} pixels; at most {_LONGEST_OUTLINE:,}"
        raise BadAnnotation("bad-polygon", f"{where}: its outline has {length}")
    raise BadAnnotation(
        "coordinates-far-off",
        f"{where}: x {low[0]:g}…{high[0]:g}, y {low[1]:g}…{high[1]:g} in an image of "
        f"{width} x {height}",
    )


def _rle(size: list[int], counts: str | list[int], width: int, height: int) -> RLEMask:
    if len(size) != 2:
        raise BadAnnotation("bad-rle", f"RLE size {brief(size)}; expected [height, width]")
    if size != [height, width]:
        detail = f"RLE size {brief(size)}, image [{height}, {width}]"
        raise BadAnnotation("rle-size-mismatch", detail)
    runs = decode_counts(counts).tolist() if isinstance(counts, str) else counts
    if runs and min(runs) < 0:
        raise BadAnnotation("bad-rle", "RLE counts hold a negative run")
    total = sum(runs)  # of Python's integers, which do not overflow
    if total != height * width:
        said = total if total < 2**63 else "more than 2^63"  # Python refuses to write 4,300 digits
        raise BadAnnotation("rle-sum-mismatch", f"RLE counts sum to {said}, not {height} x {width}")
    return RLEMask.from_counts(np.array(runs, np.uint32), (height, width))


def brief(value: object) -> str:
    """Return the first letters of a value."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


_LONGEST = 7  # characters of a number: 35 bits, and no run is longer than 32


def decode_counts(text: str) -> NDArray[np.int64]:
    """Decode the compressed form of RLE counts.

    Six bits a character from 48 on, five of them payload, least significant first, the last one
    sign-extended; from the fourth run on, differences to the run before the last.
    Source: `rleFrString` in pycocotools' ``common/maskApi.c``.

    Returns
    -------
    ndarray
        int64, shape (runs,): pixels in turn off and on, down the columns; may be negative.

    Raises
    ------
    BadAnnotation
        If a character is outside the alphabet, or a number is cut or too long.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32).astype(np.int64) - 48
    if not codes.size:
        return codes
    strange = np.flatnonzero((codes < 0) | (codes >= 64))
    if strange.size:
        raise BadAnnotation("bad-rle", f"compressed RLE: strange character at {strange[0]}")
    ends = np.flatnonzero(codes & 0x20 == 0)
    if not ends.size or ends[-1] != len(codes) - 1:
        raise BadAnnotation("bad-rle", "compressed RLE: cut in the middle of a number")
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise BadAnnotation("bad-rle", f"compressed RLE: a number of {lengths.max()} characters")
    places = np.arange(len(codes)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((codes & 0x1F) << (5 * places), starts)
    runs -= np.where(codes[ends] & 0x10, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs
