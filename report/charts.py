"""Charts as inline SVG: bars of named values, and a map of how often two sizes meet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Attribute, Html, compact, element, shortened


@dataclass(frozen=True, slots=True)
class Bar:
    """One named value."""

    name: str
    value: float
    """Not negative."""
    color: str = ""
    """``#rrggbb`` of the square beside the name; empty for none."""
    text: str = ""
    """What is written at its end; by default the value, shortened."""


_WIDTH, _ROW, _NAME, _END = 360, 17, 138, 48  # of a chart, a bar, its name, its value [px]
_COLUMN = 27  # bars in a chart, before the next one is begun beside it
_LETTERS = 17  # of a name that fit into _NAME


@dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars in the order given, in columns that stand side by side where there is room.

    Raises
    ------
    ValueError
        If a value is negative or not finite.
    """

    caption: str
    bars: Sequence[Bar]
    log: bool = False
    """Lengths follow the logarithm: for values that span powers of ten."""
    limit: int = 80
    """Bars that are drawn; the rest is summed up in a sentence."""
    most: float = 0
    """Where the axis ends, unless a value is larger: 1 for shares of a whole."""

    def __post_init__(self) -> None:
        wrong = next((b for b in self.bars if not 0 <= b.value < math.inf), None)
        if wrong is not None:
            raise ValueError(f"bar {wrong.name!r}: {wrong.value} has no length")

    def html(self) -> Html:
        """Return the markup."""
        drawn, rest = self.bars[: self.limit], self.bars[self.limit :]
        axis = _Axis.over([self.most, *(bar.value for bar in self.bars)], self.log)
        columns = max(1, math.ceil(len(drawn) / _COLUMN))
        each = math.ceil(len(drawn) / columns)
        charts = (
            self._chart(drawn[start : start + each], axis)
            for start in range(0, len(drawn), max(1, each))
        )
        scale = " Lengths are logarithmic." if self.log else ""
        more = ""
        if rest:
            total = compact(sum(bar.value for bar in rest))
            more = f" Not drawn: {len(rest):,} more, together {total}."
        return element(
            "figure",
            element("figcaption", self.caption + scale + more),
            element("div", *charts, class_="columns"),
            class_="chart",
        )

    def _chart(self, bars: Sequence[Bar], axis: "_Axis") -> Html:
        height = len(bars) * _ROW + 16
        room = _WIDTH - _NAME - _END
        parts = []
        for tick in axis.ticks:
            x = _NAME + room * axis.place(tick)
            parts.append(svg("line", class_="grid", x1=x, x2=x, y1=0, y2=height - 14))
            parts.append(label(x, height - 3, compact(tick), "middle", "axis"))
        for number, bar in enumerate(bars):
            parts.append(self._bar(bar, number * _ROW, room * axis.place(bar.value)))
        names = ", ".join(f"{bar.name} {bar.text or compact(bar.value)}" for bar in bars)
        box = f"0 0 {_WIDTH} {height}"
        return element("svg", *parts, viewBox=box, role="img", aria_label=names)

    def _bar(self, bar: Bar, top: int, length: float) -> Html:
        text = bar.text or compact(bar.value)
        square = [svg("rect", class_="mark", x=1, y=top + 3, width=10, height=10, fill=bar.color)]
        return element(
            "g",
            element("title", f"{bar.name}: {bar.text or f'{bar.value:,.12g}'}"),
            *(square if bar.color else []),
            label(16 if bar.color else 1, top + 12, shortened(bar.name, _LETTERS), "start"),
            svg("rect", class_="bar", x=_NAME, y=top + 2, width=length, height=_ROW - 5),
            label(_NAME + length + 4, top + 12, text, "start", "value"),
        )


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where values lie between 0 and 1."""

    low: float
    high: float
    log: bool
    ticks: Sequence[float]

    @classmethod
    def over(cls, values: Sequence[float], log: bool) -> "_Axis":
        """Span the values: from 0, or from a power of ten below the smallest positive one."""
        high = max(values, default=0) or 1
        if not log:
            step = nice_step(high / 4)
            return cls(0, high, False, [i * step for i in range(int(high / step + 1e-9) + 1)])
        first = math.ceil(math.log10(min(value for value in (*values, high) if value > 0))) - 1
        last = math.floor(math.log10(high))
        every = math.ceil((last - first + 1) / 6)
        ticks = [10.0**power for power in range(first, last + 1, every)]
        return cls(10.0**first, high, True, ticks)

    def place(self, value: float) -> float:
        if self.log:
            return math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        return value / self.high


def nice_step(at_least: float) -> float:
    """Return the smallest of 1, 2, 2.5, 4, 5, 8 or 10 times a power of ten that is no less.

    Raises
    ------
    ValueError
        If `at_least` is not positive.
    """
    if not at_least > 0:
        raise ValueError(f"no step is as small as {at_least}")
    unit = 10.0 ** math.floor(math.log10(at_least))
    factors = (1, 2, 2.5, 4, 5, 8, 10)
    return next(f * unit for f in factors if f * unit >= at_least * (1 - 1e-9))


_CELL, _LEFT, _BOTTOM = 18, 58, 40  # of a cell, and of the space for labels [px]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """How often values of x and y occur together, from 0 up, in cells of one size."""

    caption: str
    x_label: str
    y_label: str
    step: float
    """Side of a cell, in both directions."""
    counts: Sequence[Sequence[int]]
    """By y, then by x, both ascending; rows of one length."""
    open_ended: bool = False
    """Whether the last cells also hold whatever is larger."""

    def html(self) -> Html:
        """Return the markup."""
        rows, columns = len(self.counts), len(self.counts[0])
        width, bottom = _LEFT + columns * _CELL + 30, rows * _CELL + 8
        most = max(map(max, self.counts))
        parts = [
            self._cell(x, y, count, most, bottom)
            for y, row in enumerate(self.counts)
            for x, count in enumerate(row)
            if count
        ]
        right, top = _LEFT + columns * _CELL, bottom - rows * _CELL
        parts.append(svg("path", class_="frame", d=f"M{_LEFT} {top}V{bottom}H{right}"))
        for i in range(0, columns + 1, math.ceil(columns / 8)):
            text = self._bound(i, columns)
            parts.append(label(_LEFT + i * _CELL, bottom + 14, text, "middle", "axis"))
        for i in range(0, rows + 1, math.ceil(rows / 8)):
            text = self._bound(i, rows)
            parts.append(label(_LEFT - 5, bottom - i * _CELL + 4, text, "end", "axis"))
        middle = bottom - rows * _CELL / 2
        parts.append(label((_LEFT + right) / 2, bottom + 32, self.x_label, "middle"))
        turn = f"rotate(-90 12 {middle:g})"
        parts.append(
            svg("text", self.y_label, x=12, y=middle, text_anchor="middle", transform=turn)
        )
        total = sum(map(sum, self.counts))
        says = f"{self.caption} {total:,} in all, at most {most:,} in one cell."
        box = f"0 0 {width} {bottom + _BOTTOM}"
        chart = element("svg", *parts, viewBox=box, width=width, role="img", aria_label=says)
        return element("figure", element("figcaption", self.caption), chart, class_="chart")

    def _cell(self, x: int, y: int, count: int, most: int, bottom: int) -> Html:
        spans = (
            f"{edge * self.step:g}–{(edge + 1) * self.step:g}"
            + ("+" if self.open_ended and edge + 1 == length else "")
            for edge, length in ((x, len(self.counts[0])), (y, len(self.counts)))
        )
        return element(
            "rect",
            element("title", f"{' × '.join(spans)}: {count:,}"),
            class_="heat",
            x=_LEFT + x * _CELL,
            y=bottom - (y + 1) * _CELL,
            width=_CELL,
            height=_CELL,
            # By the logarithm, and never so faint that a single one is missed.
            fill_opacity=round(0.2 + 0.8 * math.log1p(count) / math.log1p(most), 2),
        )

    def _bound(self, edge: int, length: int) -> str:
        return f"{edge * self.step:g}" + ("+" if self.open_ended and edge == length else "")


def svg(tag: str, *children: str, **attributes: Attribute) -> Html:
    """Return an SVG element; tenths of a pixel are enough."""
    rounded = {k: round(v, 1) if isinstance(v, float) else v for k, v in attributes.items()}
    return element(tag, *children, **rounded)


def label(x: float, y: float, text: str, anchor: str, class_: str | None = None) -> Html:
    """Return text that starts, ends or has its middle (`anchor`) at a point [px]."""
    return svg("text", text, x=x, y=y, text_anchor=anchor, class_=class_)
