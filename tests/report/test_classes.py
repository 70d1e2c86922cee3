"""The table and the bars of classes."""

from cocoseg.report.blocks import Paragraph, Table
from cocoseg.report.charts import Bars
from cocoseg.report.classes import class_overview, class_tag
from cocoseg.taxonomy import SemanticClass, Taxonomy


def taxonomy(things):
    names = ("background", *(f"class {i}" for i in range(1, things + 1)))
    return Taxonomy(tuple(map(SemanticClass, names)))


def overview(pixels, ignored=0, **instances):
    return list(class_overview(taxonomy(len(pixels) - 1), pixels, ignored, instances))


def test_classes_have_the_colors_of_the_voc_map():
    assert class_tag(taxonomy(5), 1).color == "#9900ff"
    assert class_tag(taxonomy(5), 3).color == "#ff0000"
    assert class_tag(taxonomy(5), 255).text == "(ignored)"
    assert class_tag(taxonomy(1000), 255).text == "class 255"
    assert class_tag(taxonomy(1000), 65535).text == "(ignored)"


def test_everything_is_counted_and_shares_are_of_all_pixels():
    bars, table, unseen = overview([50, 10, 30, 0], 10, instances=[0, 2, 3, 0], val=[0, 2, 0, 0])
    assert isinstance(bars, Bars)
    assert [(bar.name, bar.value) for bar in bars.bars] == [("class 2", 30), ("class 1", 10)]
    assert isinstance(table, Table)
    assert list(table.columns)[2:4] == ["instances", "val"]
    assert [row[0] for row in table.rows] == [0, 1, 2, 3, 255]
    shares = ["50.000%", "10.000%", "30.000%", "0.000%", "10.000%"]
    assert [row[-1].text for row in table.rows] == shares
    assert table.rows[1][2:4] == [2, 2]
    assert isinstance(unseen, Paragraph)
    assert unseen.text == "Without instances: 1 (class 3)."


def test_tens_of_thousands_of_classes_stay_a_page():
    counts = [10**6, *(i % 7919 for i in range(1, 20_000))]
    blocks = overview(counts, instances=counts)
    table = next(block for block in blocks if isinstance(block, Table))
    assert len(table.rows) == 2000
    assert sum(len(block.html()) for block in blocks) < 600_000
    listed = {row[0] for row in table.rows}
    assert min(counts[i] for i in listed) >= max(n for i, n in enumerate(counts) if i not in listed)
