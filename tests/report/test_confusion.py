"""The map of confusions and the reliability diagram: what they draw, and what they leave out."""

import re

import numpy as np
import pytest
from cocoseg.report.blocks import Tag
from cocoseg.report.confusion import ConfusionMap
from cocoseg.report.reliability import ReliabilityBin, ReliabilityDiagram

NAMES = ("background", "cat", "dog", "cow")


def drawn(counts, extra=()):
    tags = [Tag(name) for name in NAMES[: len(counts)]]
    html = ConfusionMap("c", tags, [*tags, *map(Tag, extra)], np.array(counts)).html()
    cells = re.findall(
        r"<rect class=\"(\w+)\"[^>]* fill-opacity=\"([\d.]+)\"><title>([^<]*)<", html
    )
    return [(kind, float(opacity), text) for kind, opacity, text in cells], html


def test_hits_and_mistakes_differ_and_the_larger_share_is_stronger():
    cells, _ = drawn([[90, 10, 0], [4, 3, 1], [0, 0, 2]])
    assert [text for _, _, text in cells] == [
        "90.0% of background predicted as background: 90 pixels",
        "10.0% of background predicted as cat: 10 pixels",
        "50.0% of cat predicted as background: 4 pixels",
        "37.5% of cat predicted as cat: 3 pixels",
        "12.5% of cat predicted as dog: 1 pixels",
        "100.0% of dog predicted as dog: 2 pixels",
    ]
    assert [kind for kind, _, _ in cells] == ["heat", "wrong", "wrong", "heat", "wrong", "heat"]
    by_share = sorted(cells, key=lambda cell: float(cell[2].partition("%")[0]))
    assert [opacity for _, opacity, _ in by_share] == sorted(opacity for _, opacity, _ in cells)


def test_classes_that_are_nowhere_are_left_out():
    _, html = drawn([[5, 0, 0, 1], [0, 0, 0, 0], [0, 0, 3, 0], [0, 0, 0, 0]])
    assert ">cat<" not in html
    assert html.count(">cow<") == 2  # predicted, though never there: a row and a column


def test_a_column_of_no_prediction_is_drawn_where_there_is_one():
    counts = [[5, 0, 1], [0, 2, 0]]
    assert ">(none)<" in drawn(counts, ["(none)"])[1]
    assert ">(none)<" not in drawn([[5, 0, 0], [0, 2, 0]], ["(none)"])[1]


def test_of_hundreds_of_classes_the_most_confused_are_drawn():
    tags = [Tag(f"c{i}") for i in range(300)]
    counts = np.eye(300, dtype=np.int64) * 1000
    counts[200, 100] = 7
    html = ConfusionMap("c", tags, tags, counts).html()
    assert html.count(">c200<") == html.count(">c100<") == 2
    assert "Not drawn: 210 classes with fewer wrong pixels." in html


def test_without_pixels_nothing_is_drawn():
    assert drawn([[0, 0], [0, 0]])[0] == []


def test_a_bin_is_as_high_as_its_pixels_are_right_and_an_empty_one_is_not_drawn():
    nan = float("nan")
    bins = (
        ReliabilityBin(0, 0.5, 100, 0.25, 0.4),
        ReliabilityBin(0.5, 0.8, 0, nan, nan),
        ReliabilityBin(0.8, 1, 400, 0.75, 0.9),
    )
    html = ReliabilityDiagram("c", bins).html()
    heights = [float(h) for h in re.findall(r"<rect[^>]* height=\"([\d.]+)\"", html)]
    assert heights == pytest.approx([80, 240])
    assert "probability 80%–100%: 75.0% right, 400 pixels" in html
    assert html.count("<circle") == 2
    assert "nan" not in html
