"""What a section of a report holds: key figures, notes, lists, tables and pictures.

Every block is a frozen dataclass with one method, `html`; charts are in `charts`.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .markup import Html, element


class Block(Protocol):
    """Anything that can stand in a section."""

    def html(self) -> Html:
        """Return the markup."""


@dataclass(frozen=True, slots=True)
class Beside:
    """Blocks side by side, where there is room."""

    blocks: Sequence[Block]

    def html(self) -> Html:
        """Return the markup."""
        return element("div", *(block.html() for block in self.blocks), class_="beside")


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str

    def html(self) -> Html:
        """Return the markup."""
        return element("p", self.text)


@dataclass(frozen=True, slots=True)
class Note:
    """Text that must not be overlooked."""

    text: str

    def html(self) -> Html:
        """Return the markup."""
        return element("p", self.text, class_="note", role="note")


@dataclass(frozen=True, slots=True)
class Items:
    """A list of short texts."""

    texts: Sequence[str]

    def html(self) -> Html:
        """Return the markup."""
        return element("ul", *(element("li", text) for text in self.texts))


@dataclass(frozen=True, slots=True)
class Figure:
    """One number that is worth a second look."""

    label: str
    value: str
    detail: str = ""
    alarming: bool = False


@dataclass(frozen=True, slots=True)
class Figures:
    """The key figures, side by side."""

    figures: Sequence[Figure]

    def html(self) -> Html:
        """Return the markup."""
        return element("dl", *map(_figure, self.figures), class_="figures")


def _figure(figure: Figure) -> Html:
    return element(
        "div",
        element("dt", figure.label),
        element("dd", figure.value),
        *([element("dd", figure.detail, class_="detail")] if figure.detail else []),
        class_="alarming" if figure.alarming else None,
    )


@dataclass(frozen=True, slots=True)
class Tag:
    """A name and the color that stands for it elsewhere on the page."""

    text: str
    color: str = ""
    """``#rrggbb``; empty for a name without color."""

    def html(self) -> Html:
        """Return the markup."""
        return element("span", swatch(self.color), self.text, class_="tag")


def swatch(color: str) -> Html:
    """Return a small square of a color (``#rrggbb``), or nothing for an empty one.

    Raises
    ------
    ValueError
        If it is no such color.
    """
    if not color:
        return Html()
    if not re.fullmatch("#[0-9a-f]{6}", color):
        raise ValueError(f"{color!r} is not a color of the form #rrggbb")
    return element("span", class_="swatch", style=f"background:{color}")


@dataclass(frozen=True, slots=True)
class Number:
    """A cell that reads as `text` and is sorted by `value`."""

    value: float
    text: str


Cell = str | int | Number | Tag
_TALL = 16  # rows beyond which a table gets its own scroll bar on the screen


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; a click on a heading sorts by it."""

    caption: str
    """Read out by screen readers, and shown."""
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    """Each as long as `columns`. Integers and `Number` are set to the right."""

    def html(self) -> Html:
        """Return the markup.

        Raises
        ------
        ValueError
            If a row has another length than `columns`.
        """
        wrong = next((row for row in self.rows if len(row) != len(self.columns)), None)
        if wrong is not None:
            raise ValueError(f"{len(self.columns)} columns, but a row of {len(wrong)} cells")
        numeric = [
            any(isinstance(row[i], (int, Number)) for row in self.rows)
            for i in range(len(self.columns))
        ]
        heads = (
            element(
                "th",
                element("button", name, type="button"),
                scope="col",
                class_="n" if number else None,
            )
            for name, number in zip(self.columns, numeric, strict=True)
        )
        table = element(
            "table",
            element("caption", self.caption),
            element("thead", element("tr", *heads)),
            element("tbody", *(element("tr", *map(_cell, row)) for row in self.rows)),
        )
        tall = len(self.rows) > _TALL
        return element(
            "div",
            table,
            class_="scroll tall" if tall else "scroll",
            role="region",
            aria_label=self.caption,
            tabindex=0,  # so that the keyboard can scroll it
        )


def _cell(cell: Cell) -> Html:
    match cell:
        case Tag():
            return element("td", cell.html())
        case Number():
            return element("td", cell.text, class_="n", data_v=cell.value)
        case int():
            return element("td", f"{cell:,}", class_="n", data_v=cell)
        case _:
            return element("td", cell)


@dataclass(frozen=True, slots=True)
class Jpeg:
    """A picture as it lies in the page."""

    content: bytes
    width: int
    height: int
    """Size [pixels]."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a grid, and what is under it."""

    image: Jpeg | None
    alt: str
    """What it shows, for those who cannot see it; where there is no image, why."""
    caption: str
    tags: Sequence[Tag] = ()
    """The key to its colors."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """A grid of pictures."""

    pictures: Sequence[Picture]

    def html(self) -> Html:
        """Return the markup."""
        return element("div", *map(_picture, self.pictures), class_="pictures")


_TINY = 96  # smaller pictures are enlarged with visible pixels [pixels]


def inline(image: Jpeg, alt: str) -> Html:
    """Return a picture as an element that holds all of its bytes."""
    return element(
        "img",
        src="data:image/jpeg;base64," + base64.b64encode(image.content).decode(),
        alt=alt,
        width=image.width,
        height=image.height,
        class_="tiny" if max(image.width, image.height) < _TINY else None,
    )


def _picture(picture: Picture) -> Html:
    if picture.image is None:
        shown = element("div", picture.alt, class_="missing", role="img", aria_label=picture.alt)
    else:
        shown = inline(picture.image, picture.alt)
    tags = [element("div", *(tag.html() for tag in picture.tags))] if picture.tags else []
    caption = element("figcaption", element("b", picture.caption), *tags)
    return element("figure", shown, caption)
