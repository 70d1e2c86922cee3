"""The renderer: everything is inert, nothing is loaded, the same content gives the same bytes."""

import base64
import dataclasses
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from cocoseg.report.blocks import (
    Beside,
    Figure,
    Figures,
    Items,
    Jpeg,
    Note,
    Number,
    Paragraph,
    Picture,
    Pictures,
    Table,
    Tag,
)
from cocoseg.report.charts import Bar, Bars, HeatMap, nice_step
from cocoseg.report.comparison import Comparison, Comparisons, Panel
from cocoseg.report.confusion import ConfusionMap
from cocoseg.report.markup import compact, element, shortened
from cocoseg.report.page import PageSection, render
from cocoseg.report.reliability import ReliabilityBin, ReliabilityDiagram
from hypothesis import given
from hypothesis import strategies as st

VOID = {"meta", "img"}
HOSTILE = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;\0\udcff\u202e"


class Page(HTMLParser):
    """A page as a browser takes it apart; fails where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self, tag):
        return [text for name, text in self.texts if name == tag]


JPEG = Jpeg(b"\xff\xd8", 8, 6)


def every_block(text):
    """One of each kind, with `text` wherever text can be."""
    picture = Picture(JPEG, text, text, (Tag(text, "#804020"), Tag(text)))
    return (
        Beside((Paragraph(text), Note(text))),
        Items((text, text)),
        Figures((Figure(text, text, text, alarming=True),)),
        Table(text, (text, "n"), ((text, 1), (Tag(text, "#102030"), Number(0.5, text)))),
        Bars(text, (Bar(text, 3, "#102030", text), Bar(text, 0)), log=True),
        HeatMap(text, text, text, 40.0, ((0, 3), (1, 0)), open_ended=True),
        Pictures((picture, Picture(None, text, text))),
        Comparisons((Comparison(text, text, (Panel(text, JPEG, (Tag(text, "#102030"),)),)),)),
        ConfusionMap(text, (Tag(text), Tag(text)), (Tag(text), Tag(text)), np.eye(2, dtype=int)),
        ReliabilityDiagram(text, (ReliabilityBin(0, 0.5, 9, 0.2, 0.4),)),
    )


def page_of(*blocks):
    return Page(render("title", [PageSection("heading", blocks)]))


def test_hostile_text_is_inert_wherever_text_can_be():
    text = render(HOSTILE, [PageSection(HOSTILE, every_block(HOSTILE))])
    hostile, tame = Page(text), Page(render("t", [PageSection("h", every_block("harmless"))]))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in tame.tags]
    for tag, attributes in hostile.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
    assert len(hostile.all("script")) == 1
    assert hostile.text("title")[0].startswith('"><script>alert(1)</script>')  # and shown in full
    text.encode()  # halves of surrogate pairs would refuse
    assert not re.search("[\0\u202e]", text)


@given(st.text(st.characters(), min_size=1, max_size=40))
def test_any_text_stays_one_text_and_what_is_printable_comes_back_as_it_was(text):
    page = page_of(Table("c", ("a",), ((text,),)))
    assert len(page.all("td")) == 1
    if text.isprintable():
        assert page.text("td") == [text]


def test_a_page_loads_nothing():
    text = render("title", [PageSection("heading", every_block("text"))])
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/jpeg;base64,"))
    assert not {"link", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.tags}
    assert "://" not in text
    assert not re.search(r"@import|url\(", text)


def test_no_script_runs_but_the_one_that_sorts():
    page = page_of(Paragraph(HOSTILE))
    (policy,) = (m["content"] for m in page.all("meta") if "http-equiv" in m)
    (script,) = page.text("script")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_same_content_gives_the_same_bytes():
    pages = {render("t", [PageSection("h", every_block("text"))]) for _ in range(2)}
    assert len(pages) == 1


def test_blocks_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Paragraph("text").text = "other"


def test_links_lead_to_the_sections():
    page = Page(render("t", [PageSection("Image sizes", ()), PageSection("Ω", ())]))
    links = [attributes["href"] for attributes in page.all("a")]
    assert links == ["#" + attributes["id"] for attributes in page.all("section")]
    assert links[0] == "#image-sizes"


def test_a_table_says_what_its_columns_are_and_how_they_sort():
    rows = (("cat", 1234, Number(0.5, "50%")), ("dog", 7, ""))
    page = page_of(Table("Classes", ("name", "pixels", "share"), rows))
    assert page.text("caption") == ["Classes"]
    assert [th["scope"] for th in page.all("th")] == ["col"] * 3
    assert [th.get("class") for th in page.all("th")] == [None, "n", "n"]
    assert page.text("td") == ["cat", "1,234", "50%", "dog", "7"]
    assert [td.get("data-v") for td in page.all("td")] == [None, "1234", "0.5", None, "7", None]


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 columns"):
        Table("c", ("a", "b"), (("x",),)).html()


def test_pictures_have_alternative_texts_and_sizes():
    page = page_of(*every_block("what is seen"))
    image, compared = page.all("img")
    assert compared["alt"] == "what is seen, what is seen: what is seen"
    assert image["alt"] == "what is seen"
    assert (image["width"], image["height"]) == ("8", "6")
    assert base64.b64decode(image["src"].partition(",")[2]) == b"\xff\xd8"
    (missing,) = (div for div in page.all("div") if div.get("class") == "missing")
    assert missing["aria-label"] == "what is seen"


@pytest.mark.parametrize("color", ["red", "#12345", "#123456;color:red", "#00000g"])
def test_what_is_no_color_is_refused(color):
    with pytest.raises(ValueError, match="is not a color"):
        Tag("cat", color).html()


def lengths(bars):
    return [float(r["width"]) for r in page_of(bars).all("rect") if r.get("class") == "bar"]


def test_bars_are_as_long_as_their_values():
    long, short, none = lengths(Bars("c", (Bar("a", 30), Bar("b", 10), Bar("c", 0))))
    assert long == pytest.approx(3 * short, abs=0.2)
    assert none == 0


def test_logarithmic_bars_show_powers_of_ten_as_equal_steps():
    bars = Bars("c", [Bar(str(n), n) for n in (100_000, 1000, 10, 0)], log=True)
    first, second, third, none = lengths(bars)
    assert first - second == pytest.approx(second - third, abs=0.2)
    assert third > 0
    assert none == 0


def test_bars_of_shares_end_where_the_whole_does():
    whole, half = (
        lengths(Bars("c", (Bar("a", 1), Bar("b", 0.5)))),
        lengths(Bars("c", (Bar("b", 0.5),), most=1)),
    )
    assert half == whole[1:]


def test_bars_beyond_the_limit_are_summed_up():
    bars = Bars("c", [Bar(f"class {n}", 100 - n) for n in range(100)], limit=80)
    page = page_of(bars)
    assert len(lengths(bars)) == 80
    assert f"20 more, together {sum(range(1, 21))}." in page.text("figcaption")[0]


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_bar_without_a_length_is_refused(value):
    with pytest.raises(ValueError, match="has no length"):
        Bars("c", (Bar("a", value),))


def test_a_heat_map_draws_what_occurs_and_says_how_often():
    page = page_of(HeatMap("c", "x", "y", 40.0, ((0, 3), (1, 0))))
    cells = [rect for rect in page.all("rect") if rect.get("class") == "heat"]
    assert page.text("title")[1:] == ["40–80 × 0–40: 3", "0–40 × 40–80: 1"]
    assert float(cells[0]["fill-opacity"]) > float(cells[1]["fill-opacity"]) > 0.2
    assert float(cells[0]["x"]) > float(cells[1]["x"])
    assert float(cells[0]["y"]) > float(cells[1]["y"])  # small heights are at the bottom


def test_plain_strings_are_escaped_even_when_made_of_markup():
    bold = element("b", "x")
    assert element("p", bold) == "<p><b>x</b></p>"
    assert element("p", "see " + bold) == "<p>see &lt;b&gt;x&lt;/b&gt;</p>"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (950, "950"), (999_950, "1M"), (12_345, "12.3k"), (4.56e6, "4.56M"), (2e12, "2T")],
)
def test_numbers_are_shortened(value, text):
    assert compact(value) == text


def test_texts_are_shortened_by_the_room_they_take():
    assert shortened("dining table", 18) == "dining table"
    assert shortened("x" * 19, 18) == "x" * 17 + "…"
    assert shortened("漢字" * 9, 18) == "漢字漢字漢字漢字…"


@given(st.floats(1e-9, 1e12))
def test_a_nice_step_is_as_large_as_asked_and_hardly_larger(value):
    step = nice_step(value)
    assert value * (1 - 1e-8) <= step <= 2 * value * (1 + 1e-8)
