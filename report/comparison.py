"""Pictures of one thing side by side, such as an image, its truth and its prediction."""

from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import Jpeg, Tag, inline
from .markup import Html, element


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the pictures."""

    name: str
    image: Jpeg
    tags: Sequence[Tag] = ()
    """The key to its colors."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Pictures of one thing, of one size."""

    heading: str
    detail: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Comparisons:
    """One comparison below the other, or two beside each other where there is room."""

    comparisons: Sequence[Comparison]

    def html(self) -> Html:
        """Return the markup."""
        return element("div", *map(_comparison, self.comparisons), class_="comparisons")


def _comparison(comparison: Comparison) -> Html:
    heading = element("h3", comparison.heading, element("span", comparison.detail))
    panels = (_panel(panel, comparison.heading) for panel in comparison.panels)
    return element("div", heading, element("div", *panels, class_="panels"))


def _panel(panel: Panel, of: str) -> Html:
    names = ", ".join(tag.text for tag in panel.tags)
    alt = f"{of}, {panel.name}" + (f": {names}" if names else "")
    tags = (tag.html() for tag in panel.tags)
    caption = element("figcaption", element("b", panel.name), *tags)
    return element("figure", inline(panel.image, alt), caption)
