"""Which classes are taken for which others, as a map of colored cells."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .blocks import Tag
from .charts import label, svg
from .markup import Html, element, shortened

_LIMIT = 90  # classes that are drawn: COCO's 81 and some
_SIDE = 900  # about that wide [px]
_LARGE, _SMALL = 26, 11  # side of a cell [px]
_LETTERS = 17  # of a name
_FAINT = 0.005  # share of a class from which on it is drawn


@dataclass(frozen=True, slots=True)
class ConfusionMap:
    """A confusion matrix: rows are the truth, columns what was predicted.

    The stronger a cell, the larger its share of the true class; the diagonal has a color of its
    own. Classes that are nowhere are left out; of too many, those with the most wrong pixels stay.
    """

    caption: str
    truths: Sequence[Tag]
    """By row."""
    predicted: Sequence[Tag]
    """By column: the same classes in the same order, and perhaps more columns."""
    counts: NDArray[np.int64]
    """Pixels, shape (rows, columns)."""

    def html(self) -> Html:
        """Return the markup."""
        rows, columns = self._drawn()
        cell = min(_LARGE, max(_SMALL, _SIDE // max(1, len(columns))))
        font = min(12, cell - 2)
        margin = round(font * 0.62 * _LETTERS) + 16
        parts = []
        totals = self.counts.sum(axis=1)
        for y, row in enumerate(rows):
            top = margin + y * cell
            parts.append(self._name(self.truths[row], margin - 6, top + cell / 2, font, 0))
            for x, column in enumerate(columns):
                count = int(self.counts[row, column])
                share = count / int(totals[row]) if count else 0
                if share >= _FAINT:
                    parts.append(self._cell(row, column, margin + x * cell, top, cell, share))
        for x, column in enumerate(columns):
            at = margin + (x + 0.5) * cell
            parts.append(self._name(self.predicted[column], at, margin - 6, font, 90))
        width, height = margin + len(columns) * cell, margin + len(rows) * cell
        parts.append(svg("path", class_="frame", d=f"M{margin} {height}V{margin}H{width}"))
        parts.append(label(margin - 8, 12, "truth ↓   predicted →", "end", "axis"))
        left_out = int((totals + self._column_totals() > 0).sum()) - len(rows)
        more = f" Not drawn: {left_out:,} classes with fewer wrong pixels." if left_out else ""
        chart = element(
            "svg",
            *parts,
            viewBox=f"0 0 {width + 1} {height + 1}",
            width=width + 1,
            role="img",
            aria_label=f"{self.caption} The table of confusions says the same in numbers.",
        )
        return element(
            "figure",
            element("figcaption", self.caption + more),
            element("div", chart, class_="scroll"),
            class_="chart confusion",
        )

    def _column_totals(self) -> NDArray[np.int64]:
        totals: NDArray[np.int64] = self.counts[:, : len(self.truths)].sum(axis=0)
        return totals

    def _drawn(self) -> tuple[list[int], list[int]]:
        """Return the rows and columns that are drawn, in their order."""
        classes = len(self.truths)
        there = np.flatnonzero(self.counts.sum(axis=1) + self._column_totals())
        wrong = self.counts.sum(axis=1) + self._column_totals() - 2 * np.diag(self.counts)
        most = there[np.argsort(-wrong[there], kind="stable")[:_LIMIT]]
        rows = sorted(map(int, most))
        others = [i for i in range(classes, len(self.predicted)) if self.counts[:, i].any()]
        return rows, rows + others

    def _cell(self, row: int, column: int, x: int, y: int, side: int, share: float) -> Html:
        count = int(self.counts[row, column])
        says = f"{share:.1%} of {self.truths[row].text} predicted as {self.predicted[column].text}"
        return svg(
            "rect",
            element("title", f"{says}: {count:,} pixels"),
            class_="heat" if row == column else "wrong",
            x=x,
            y=y,
            width=side,
            height=side,
            # By the square root: a confusion of 4 % is seen.
            fill_opacity=round(0.08 + 0.92 * math.sqrt(share), 2),
        )

    def _name(self, tag: Tag, x: float, y: float, font: int, turned: int) -> Html:
        return svg(
            "text",
            shortened(tag.text, _LETTERS),
            x=x,
            y=y,
            dy="0.35em",
            text_anchor="start" if turned else "end",
            transform=f"rotate(-{turned} {x:g} {y:g})" if turned else None,
            style=f"font-size:{font}px",
        )
