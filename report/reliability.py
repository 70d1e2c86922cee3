"""How often predictions are right, against how sure they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .charts import label, svg
from .markup import Html, compact, element

_SIDE, _LEFT, _TOP, _BOTTOM = 320, 58, 10, 40  # of the square, and the space around it [px]


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Pixels of about the same probability."""

    low: float
    high: float
    """Probabilities above `low`, up to `high`."""
    pixels: int
    accuracy: float
    """Share that is right; NaN if there are no pixels."""
    confidence: float
    """Mean probability; NaN if there are no pixels."""


@dataclass(frozen=True, slots=True)
class ReliabilityDiagram:
    """A bar of accuracy for each bin of probabilities; on the diagonal both agree.

    After DeGroot and Fienberg (1983), as in Guo et al. (2017). The stronger a bar, the more pixels.
    """

    caption: str
    bins: Sequence[ReliabilityBin]

    def html(self) -> Html:
        """Return the markup."""
        most = max((one.pixels for one in self.bins), default=0)
        parts = []
        for tick in (0, 0.25, 0.5, 0.75, 1):
            x, y = self._x(tick), self._y(tick)
            parts.append(svg("path", class_="grid", d=f"M{self._x(0):g} {y:g}H{self._x(1):g}"))
            parts.append(label(self._x(0) - 6, y + 4, f"{tick:.0%}", "end", "axis"))
            parts.append(label(x, self._y(0) + 15, f"{tick:.0%}", "middle", "axis"))
        parts += [self._bar(one, most) for one in self.bins if one.pixels]
        diagonal = f"M{self._x(0):g} {self._y(0):g}L{self._x(1):g} {self._y(1):g}"
        parts.append(svg("path", class_="diagonal", d=diagonal))
        parts += [
            svg(
                "circle", class_="mark", cx=self._x(one.confidence), cy=self._y(one.accuracy), r=3.0
            )
            for one in self.bins
            if one.pixels
        ]
        middle = _TOP + _SIDE / 2
        parts.append(label(_LEFT + _SIDE / 2, self._y(0) + 33, "probability", "middle"))
        turn = f"rotate(-90 12 {middle:g})"
        parts.append(svg("text", "right", x=12, y=middle, text_anchor="middle", transform=turn))
        width, height = _LEFT + _SIDE + 20, _TOP + _SIDE + _BOTTOM
        chart = element(
            "svg",
            *parts,
            viewBox=f"0 0 {width} {height}",
            width=width,
            role="img",
            aria_label=self.caption,
        )
        figcaption = element("figcaption", self.caption)
        return element("figure", figcaption, chart, class_="chart reliability")

    def _bar(self, one: ReliabilityBin, most: int) -> Html:
        says = (
            f"probability {one.low:.0%}–{one.high:.0%}: {one.accuracy:.1%} right, "
            f"{compact(one.pixels)} pixels"
        )
        left, top = self._x(one.low), self._y(one.accuracy)
        return svg(
            "rect",
            element("title", says),
            class_="heat",
            x=left,
            y=top,
            width=self._x(one.high) - left,
            height=self._y(0) - top,
            fill_opacity=round(0.15 + 0.7 * math.sqrt(one.pixels / most), 2),
        )

    def _x(self, share: float) -> float:
        return _LEFT + _SIDE * share

    def _y(self, share: float) -> float:
        return _TOP + _SIDE * (1 - share)
