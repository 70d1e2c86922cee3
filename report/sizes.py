"""The sizes of many images: which are frequent, and a map of width against height."""

import numpy as np
from numpy.typing import NDArray

from .blocks import Beside, Number, Table
from .charts import HeatMap, nice_step

_CELLS = 20  # about so many in each direction
_FREQUENT = 10  # sizes that are listed


def size_overview(widths: NDArray[np.integer], heights: NDArray[np.integer]) -> Beside:
    """Draw widths against heights, and list the most frequent sizes beside.

    Parameters
    ----------
    widths, heights
        Of each image [pixels], shape (N,), N > 0.
    """
    return Beside((_map(widths, heights), _table(widths, heights)))


def _map(widths: NDArray[np.integer], heights: NDArray[np.integer]) -> HeatMap:
    sides = np.concatenate((widths, heights)).astype(np.int64)
    # A few panoramas must not press all others into one cell: they go into the last one.
    largest = int(min(sides.max(), 1.5 * np.quantile(sides, 0.99)))
    step = nice_step(max(1, largest / _CELLS))
    ends = [int(np.ceil(min(largest, axis.max()) / step)) for axis in (widths, heights)]
    x, y = (
        np.minimum(np.ceil(axis / step).astype(np.int64) - 1, end - 1)
        for axis, end in zip((widths, heights), ends, strict=True)
    )
    counts = np.zeros((ends[1], ends[0]), np.int64)
    np.add.at(counts, (y, x), 1)
    return HeatMap(
        "Images by width and height; the stronger the color, the more.",
        "width [pixels]",
        "height [pixels]",
        step,
        counts.tolist(),
        open_ended=bool(sides.max() > largest),
    )


def _table(widths: NDArray[np.integer], heights: NDArray[np.integer]) -> Table:
    sizes, counts = np.unique(np.stack((widths, heights)), axis=1, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_FREQUENT]
    rows = []
    for i in frequent:
        width, height = (int(side) for side in sizes[:, i])
        share = int(counts[i]) / len(widths)
        size = Number(width * height, f"{width} × {height}")
        rows.append((size, int(counts[i]), Number(share, f"{share:.1%}")))
    few = len(counts) > _FREQUENT
    caption = f"The {_FREQUENT} most frequent of {len(counts):,} sizes" if few else "All sizes"
    return Table(caption, ("width × height", "images", "share"), rows)
