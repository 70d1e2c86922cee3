"""The map of image sizes, and the list beside it."""

import numpy as np
import pytest
from cocoseg.report.sizes import size_overview


def overview(sizes):
    widths, heights = np.array(sizes, np.uint32).T
    return size_overview(widths, heights).blocks


def test_every_image_is_in_the_cell_of_its_size():
    heat, table = overview([(640, 480)] * 3 + [(480, 640)])
    counts = np.array(heat.counts)
    assert counts.sum() == 4
    assert heat.step == 40
    assert counts[480 // 40 - 1, 640 // 40 - 1] == 3
    assert counts[640 // 40 - 1, 480 // 40 - 1] == 1
    assert not heat.open_ended
    assert [(row[0].text, row[1]) for row in table.rows] == [("640 × 480", 3), ("480 × 640", 1)]


def test_a_panorama_does_not_press_the_others_together():
    heat, _ = overview([(640, 480)] * 500 + [(30_000, 200)])
    counts = np.array(heat.counts)
    assert counts.sum() == 501
    assert heat.step <= 50
    assert heat.open_ended
    assert counts[:, -1].sum() == 1


@pytest.mark.parametrize("size", [(1, 1), (1, 50_000), (16, 12)])
def test_a_single_size_is_drawn(size):
    heat, table = overview([size])
    assert np.sum(heat.counts) == 1
    assert len(heat.counts) <= 25
    assert heat.html()
    assert table.caption == "All sizes"


def test_only_the_most_frequent_sizes_are_listed():
    _, table = overview([(100 + i, 100) for i in range(30)] + [(105, 100)])
    assert len(table.rows) == 10
    assert table.rows[0][0].text == "105 × 100"
    assert table.caption == "The 10 most frequent of 30 sizes"
