"""What the index counts, and the warnings about it."""

import itertools

import numpy as np
import pytest
from cocoseg.shards.census import Census
from cocoseg.shards.manifest import IndexRow, build_index
from cocoseg.taxonomy import SemanticClass, Taxonomy

TAXONOMY = Taxonomy(tuple(map(SemanticClass, ("background", "cat", "dog"))))
_numbers = itertools.count()


def folder(*masks: dict[int, int]):
    """An index of one shard; each mask is train id → pixels."""
    rows = [
        IndexRow(
            key=f"s{number}",
            extension="jpg",
            offsets=(0, 0, 0),
            lengths=(1, 1, 0),
            digests=(bytes(16),) * 3,
            width=10,
            height=10,
            orientation=1,
            class_pixels=tuple(sorted(mask.items())),
        )
        for number, mask in enumerate(masks)
    ]
    return build_index([rows])


def warnings(*folders):
    census = Census.of(folders, TAXONOMY.num_classes)
    return list(census.warnings(TAXONOMY, folders))


GOOD = {0: 50, 1: 25, 2: 25}


def test_good_masks_are_not_warned_of():
    assert warnings(folder(GOOD, {0: 100}, {0: 90, 1: 10, 255: 5})) == []
    assert warnings(folder()) == []


def test_everything_is_counted():
    census = Census.of(
        [folder(GOOD, {0: 100}), folder({255: 100}, {0: 40, 255: 60}, {1: 1, 255: 99})], 3
    )
    assert np.array_equal(census.pixels, [190, 26, 25])
    assert (census.ignored, census.untaught) == (259, (2,))
    assert (census.background, census.binary, census.samples) == (2, 1, 5)


def test_a_class_without_a_pixel_is_named():
    assert warnings(folder({0: 50, 1: 50}), folder({0: 100})) == [
        "1 of 2 classes have no pixel and can be neither learned nor scored: dog"
    ]


def test_many_classes_without_a_pixel_are_one_line():
    many = Taxonomy(tuple(SemanticClass(f"c{i}") for i in range(81)))
    index = folder({0: 5, 3: 5})
    (warning,) = Census.of([index], 81).warnings(many, [index])
    assert warning.startswith("79 of 80 classes have no pixel")
    assert warning.endswith("c1, c2, c4, c5, c6, c7, c8, c9 …")


def test_masks_that_are_ignored_as_a_whole_are_named_through_all_folders():
    first, second = folder(GOOD, {255: 100}), folder(GOOD, GOOD, {255: 100})
    assert warnings(first, second) == [
        "2 of 5 masks are ignored as a whole and contribute nothing: s1, s2"
    ]


def test_if_all_masks_are_ignored_nothing_can_be_learned():
    assert warnings(folder({255: 100}, {255: 100})) == [
        "every pixel of every mask is ignored: nothing can be learned"
    ]


def test_masks_of_0_and_255_look_like_binary_masks():
    (warning,) = warnings(folder({0: 50, 255: 50}, {0: 70, 255: 30}, {0: 100}))
    assert warning == (
        "the masks look like binary masks: they hold the values 0 and 255 only. 255 means "
        "'ignored', so that the foreground is not learned. Write the train id of the class (1 …) "
        "instead of 255"
    )


def test_some_binary_masks_among_others_are_told_where_they_outnumber_them():
    binary = {0: 50, 255: 50}
    (warning,) = warnings(folder(GOOD, binary, binary))
    assert warning.startswith("2 of 3 masks look like binary masks")
    assert warnings(folder(GOOD, GOOD, binary, binary)) == []  # regions that are really ignored


def test_background_alone_is_told():
    assert warnings(folder({0: 100}, {0: 100})) == [
        "no mask has a pixel of any class: only background can be learned"
    ]


@pytest.mark.parametrize("void", [65535])
def test_wide_masks_have_another_ignore_index(void):
    many = Taxonomy(tuple(SemanticClass(f"c{i}") for i in range(300)))
    index = folder({0: 50, void: 50})
    (warning,) = Census.of([index], 300).warnings(many, [index])
    assert "0 and 65535 only. 65535 means" in warning
    assert "255" not in warning


@pytest.mark.parametrize(("mask", "warned"), [({0: 50, 1: 50}, False), ({0: 50, 2: 50}, True)])
def test_a_class_called_void_that_has_pixels_is_warned_of(mask, warned):
    taxonomy = Taxonomy(tuple(map(SemanticClass, ("background", "cat", "Void"))))
    index = folder(mask, {0: 50, 1: 50})
    found = list(Census.of([index], 3).warnings(taxonomy, [index], absent_classes=False))
    assert (
        found
        == [
            "'Void' is a class, train id 2: its pixels are learned and scored. To ignore them, "
            "write 255 instead of 2 in the masks"
        ]
        * warned
    )
