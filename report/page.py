"""A report as one HTML file: no network, no other file, the same bytes for the same content."""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from .blocks import Block
from .markup import Html, element, join
from .style import SCRIPT, STYLE


@dataclass(frozen=True, slots=True)
class PageSection:
    """A heading and what is under it."""

    heading: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """The heading as a fragment of an address."""
        return re.sub(r"[^a-z0-9]+", "-", self.heading.lower()).strip("-") or "section"


# Nothing is loaded from anywhere, and no script runs but ours, whatever the content says.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{}'"


def render(title: str, sections: Sequence[PageSection]) -> str:
    """Return a report as the text of an HTML file; write it as UTF-8.

    Parameters
    ----------
    title
        The heading of the page.
    sections
        From top to bottom; all their texts are escaped.
    """
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY.format(digest)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", Html(STYLE)),
    )
    links = [element("a", one.heading, href=f"#{one.anchor}") for one in sections]
    body = element(
        "body",
        element("header", element("h1", title), element("nav", *links, aria_label="Sections")),
        element("main", *map(_section, sections)),
        element("script", Html(SCRIPT)),
    )
    return "<!DOCTYPE html>\n" + element("html", head, body, lang="en") + "\n"


def _section(section: PageSection) -> Html:
    heading = element("h2", section.heading)
    blocks = join(block.html() for block in section.blocks)
    return element("section", heading, blocks, id=section.anchor)
