"""Outlines of drawn regions, traced to a fraction of a pixel, as an annotator would click them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sketch import Floats, Points

TOLERANCE = 0.3  # pixels; how far a simplified outline may leave the traced one
SPECK = 2.0  # square pixels; smaller parts and holes are not outlined, as no annotator would

# An outline walks along pixel edges, the region to its right, in four directions: right, down,
# left, up. For each, the step from its pixel to the one across the edge, and the edge's corners.
_ACROSS = ((-1, 0), (0, 1), (1, 0), (0, -1))  # (row, column), as all of these
_START = ((0, 0), (0, 1), (1, 1), (1, 0))
_END = ((0, 1), (1, 1), (1, 0), (0, 0))


@dataclass(frozen=True, slots=True)
class Outline:
    """One closed line around a part of a region, or around a hole in it.

    Attributes
    ----------
    points
        float64, shape (n, 2), x and y [pixels], origin at the image's top left corner.
    is_hole
        Whether the region lies outside the line.
    """

    points: Points
    is_hole: bool


def trace(region: NDArray[np.bool_], coverage: Floats) -> tuple[Outline, ...]:
    """Outline every part and every hole of a region.

    The line walks along the pixels' edges; every step is then moved across its edge to the place
    where the coverage, interpolated between the two pixel centers, passes one half.

    Parameters
    ----------
    region
        Shape (H, W).
    coverage
        float32, shape (H, W), 0-1: how much of each pixel the region covers.
    """
    height, width = region.shape
    occupied_rows, occupied_cols = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if occupied_rows.size == 0:
        return ()
    top, left = int(occupied_rows[0]), int(occupied_cols[0])
    bottom, right = int(occupied_rows[-1]) + 1, int(occupied_cols[-1]) + 1
    inside = np.pad(region[top:bottom, left:right], 1)
    # Past the image's border there is nothing to interpolate with: the same again leaves the line
    # on the border.
    y0, y1 = max(top - 1, 0), min(bottom + 1, height)
    x0, x1 = max(left - 1, 0), min(right + 1, width)
    missing = ((y0 - top + 1, bottom + 1 - y1), (x0 - left + 1, right + 1 - x1))
    cover = np.pad(coverage[y0:y1, x0:x1].astype(np.float64), missing, mode="edge")
    columns = inside.shape[1] + 1
    crossing: dict[tuple[int, int], tuple[float, float]] = {}
    following: dict[tuple[int, int], int] = {}
    for direction, (across, start, end) in enumerate(zip(_ACROSS, _START, _END, strict=True)):
        rows, cols = np.nonzero(inside)
        edge = ~inside[rows + across[0], cols + across[1]]
        rows, cols = rows[edge], cols[edge]
        here, there = cover[rows, cols], cover[rows + across[0], cols + across[1]]
        slope = here - there
        share = np.where(slope > 1e-3, (here - 0.5) / np.maximum(slope, 1e-3), 0.5)
        share = np.clip(share, 0.02, 0.98)
        x = left - 1 + cols + 0.5 + share * across[1]  # - 1: the padding
        y = top - 1 + rows + 0.5 + share * across[0]
        begins = (rows + start[0]) * columns + cols + start[1]
        ends = (rows + end[0]) * columns + cols + end[1]
        steps = zip(begins.tolist(), ends.tolist(), x.tolist(), y.tolist(), strict=True)
        for begin, stop, at_x, at_y in steps:
            crossing[begin, direction] = (at_x, at_y)
            following[begin, direction] = stop
    outlines = []
    while following:
        corner, direction = next(iter(following))
        line = []
        while (corner, direction) in following:
            line.append(crossing[corner, direction])
            corner = following.pop((corner, direction))
            # Where two parts touch at a corner, a turn to the right stays on the same part.
            for turn in (1, 0, 3):
                if (corner, (direction + turn) % 4) in crossing:
                    direction = (direction + turn) % 4
                    break
        points = np.array(line)
        area = _signed_area(points)
        if len(line) >= 4 and abs(area) >= SPECK:
            points = np.clip(simplify(points, TOLERANCE), 0, (width, height)).round(2)
            if len(points) >= 3:
                outlines.append(Outline(points, is_hole=area < 0))
    return tuple(outlines)


def simplify(points: Points, tolerance: float) -> Points:
    """Leave out points of a closed line that lie within `tolerance` of it (Douglas-Peucker)."""
    far = int(np.argmax(np.hypot(*(points - points[0]).T)))
    x, y = np.concatenate([points, points[:1]]).T
    keep = {0, far}
    pending = [(0, far), (far, len(points))]
    while pending:
        first, last = pending.pop()
        if last - first < 2:
            continue
        across, down = x[last] - x[first], y[last] - y[first]
        span = slice(first + 1, last)
        distance = np.abs((x[span] - x[first]) * down - (y[span] - y[first]) * across)
        worst = int(distance.argmax())
        if distance[worst] > tolerance * math.hypot(across, down):
            middle = first + 1 + worst
            keep.add(middle)
            pending += [(first, middle), (middle, last)]
    return points[sorted(keep)]


def _signed_area(points: Points) -> float:
    x, y = points.T
    return float(0.5 * np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
