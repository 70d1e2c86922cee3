"""HTML by construction: a plain string is text and is escaped, only `Html` is markup.

Forgetting that shows as visible tags on the page, never as a script that runs.
"""

import html
import itertools
import unicodedata
from collections.abc import Iterable

from ..printable import printable

Attribute = str | int | float | bool | None


class Html(str):
    """Markup that `element` made; whatever is added to it is a plain string again."""

    __slots__ = ()


_VOID = frozenset({"br", "hr", "img", "meta"})  # elements without an end (HTML standard, 13.1.2)


def element(tag: str, *children: str, **attributes: Attribute) -> Html:
    """Return one element.

    Parameters
    ----------
    children
        `Html` stays as it is, any other string is escaped.
    attributes
        ``class_`` is ``class``, and ``data_v`` is ``data-v``. None and False leave an attribute
        out, True gives it no value.
    """
    opened = [tag]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        name = key.rstrip("_").replace("_", "-")
        opened.append(name if value is True else f'{name}="{_attribute(value)}"')
    start = f"<{' '.join(opened)}>"
    return Html(start) if tag in _VOID else Html(f"{start}{join(children)}</{tag}>")


def join(children: Iterable[str]) -> Html:
    """Return elements and texts one behind the other."""
    return Html("".join(c if isinstance(c, Html) else escape(c) for c in children))


def escape(text: str) -> Html:
    """Return text that is inert, between tags and in quotes; see `printable`."""
    return Html(html.escape(printable(text)))


def _attribute(value: str | int | float) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return escape(value) if isinstance(value, str) else str(value)


def compact(value: float) -> str:
    """Write a number in at most five characters: ``950``, ``12.3k``, ``4.56M``."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit * 0.9995:  # 999,950 is 1M, not 1000k
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def shortened(text: str, letters: int) -> str:
    """Return text with an ellipsis for what is beyond `letters`; Chinese ones count twice."""
    if 2 * len(text) <= letters:
        return text
    widths = (2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)
    fitting = sum(1 for _ in itertools.takewhile(letters.__ge__, itertools.accumulate(widths)))
    return text if fitting == len(text) else text[: max(0, fitting - 1)] + "…"
