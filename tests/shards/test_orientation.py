"""EXIF: the turn that the annotated size asks for, and the majority's where it does not tell."""

import numpy as np
import pytest
from cocoseg.shards.reader import ShardSet
from PIL import Image

TURNS = range(1, 9)
SWAPPING = (5, 6, 7, 8)
STORED, UPRIGHT = (16, 12), (12, 16)  # width, height of a photograph that EXIF lays on its side


def upright(pixels, orientation):
    """TIFF 6.0, tag 274: where the stored first row and first column belong."""
    return {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: pixels.swapaxes(0, 1)[:, ::-1],
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: pixels.swapaxes(0, 1)[::-1],
    }[orientation]


def turn_of(folder, stored):
    (sample,) = stored(folder).values()
    return sample.meta["orientation"]


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("extension", ["png", "tif", "jpg", "webp"])
def test_the_reader_lays_every_orientation_over_its_mask(
    coco_set, tmp_path, orientation, extension
):
    annotated = UPRIGHT if orientation in SWAPPING else STORED
    name = f"1.{extension}"
    path = coco_set.photo(1, *STORED, name=name, orientation=orientation, annotated=annotated)
    with Image.open(path) as image:
        image.load()
        pixels = np.array(image)
    turned_by_pillow = extension == "tif"
    expected = pixels if turned_by_pillow else upright(pixels, orientation)
    coco_set.annotate(1, [[1, 1, 6, 1, 6, 4, 1, 4]])
    coco_set.prepare(tmp_path / "shards")
    sample = ShardSet([str(tmp_path / "shards")]).read(0)
    assert np.array_equal(sample.image, expected)
    assert sample.mask.shape == (annotated[1], annotated[0])


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("orientation", SWAPPING)
def test_annotations_of_the_stored_pixels_are_laid_over_the_stored_pixels(
    coco_set, tmp_path, stored, orientation, extension
):
    path = coco_set.photo(1, *STORED, name=f"1.{extension}", orientation=orientation)
    coco_set.prepare(tmp_path / "shards")
    with Image.open(path) as image:
        image.load()
        turned_by_pillow = extension == "tif"
        pixels = np.array(image)
    sample = ShardSet([str(tmp_path / "shards")]).read(0)
    assert turn_of(tmp_path / "shards", stored) == 1
    shown = upright(sample.image, orientation) if turned_by_pillow else sample.image
    assert np.array_equal(shown, pixels)


@pytest.mark.parametrize(
    ("mode", "annotated", "turn"),
    [
        ("auto", UPRIGHT, 6),
        ("auto", STORED, 1),
        ("apply", UPRIGHT, 6),
        ("apply", STORED, None),
        ("raw", UPRIGHT, None),
        ("raw", STORED, 1),
        ("auto", (11, 16), None),
        ("apply", (11, 16), None),
        ("raw", (11, 16), None),
    ],
)
def test_a_size_that_the_permitted_turns_do_not_give_is_quarantined(
    coco_set, tmp_path, stored, mode, annotated, turn
):
    coco_set.photo(1, *STORED, orientation=6, annotated=annotated)
    coco_set.photo(2)
    result = coco_set.prepare(tmp_path / "shards", exif=mode)
    samples = stored(tmp_path / "shards")
    if turn is None:
        assert [entry.reason for entry in result.quarantined] == ["size-mismatch"]
        assert "orientation 6" in result.quarantined[0].detail
        assert list(samples) == ["000000000002"]
    else:
        assert samples["000000000001"].meta["orientation"] == turn
        assert result.manifest.counts.get("turned_by_exif", 0) == (turn != 1)


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize(
    ("upright_votes", "stored_votes", "applied"),
    [(0, 0, True), (1, 1, True), (2, 1, True), (1, 2, False), (0, 1, False)],
)
def test_what_matches_both_ways_follows_the_majority_of_the_others(
    coco_set, tmp_path, stored, orientation, upright_votes, stored_votes, applied
):
    side = (16, 16) if orientation in SWAPPING else STORED
    coco_set.photo(1, *side, orientation=orientation)
    for image_id in range(10, 10 + upright_votes):
        coco_set.photo(image_id, *STORED, orientation=8, annotated=UPRIGHT)
    for image_id in range(20, 20 + stored_votes):
        coco_set.photo(image_id, *STORED, orientation=6)
    coco_set.photo(30)
    result = coco_set.prepare(tmp_path / "shards")
    samples = stored(tmp_path / "shards")
    assert samples["000000000001"].meta["orientation"] == (orientation if applied else 1)
    assert result.manifest.counts["exif_ambiguous"] == 1
    assert result.manifest.counts.get("turned_by_exif", 0) == applied + upright_votes


@pytest.mark.parametrize(("mode", "turn"), [("apply", 3), ("raw", 1)])
def test_a_forced_mode_asks_no_majority(coco_set, tmp_path, stored, mode, turn):
    coco_set.photo(1, *STORED, orientation=3)
    result = coco_set.prepare(tmp_path / "shards", exif=mode)
    assert turn_of(tmp_path / "shards", stored) == turn
    assert "exif_ambiguous" not in result.manifest.counts


@pytest.mark.parametrize("broken", [b"Exif\0\0junk", b"Exif\0\0", b""])
def test_a_broken_exif_block_is_no_turn(coco_set, tmp_path, stored, broken):
    coco_set.photo(1, exif=broken)
    coco_set.prepare(tmp_path / "shards")
    assert turn_of(tmp_path / "shards", stored) == 1


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_no_turn(coco_set, tmp_path, stored, value):
    coco_set.photo(1, orientation=value)
    coco_set.prepare(tmp_path / "shards")
    assert turn_of(tmp_path / "shards", stored) == 1


def test_the_turn_is_recorded_in_the_samples_json_and_the_photo_stays_as_it_was(
    coco_set, tmp_path, stored
):
    path = coco_set.photo(1, *STORED, orientation=6, annotated=UPRIGHT)
    coco_set.prepare(tmp_path / "shards")
    (sample,) = stored(tmp_path / "shards").values()
    assert sample.photo == path.read_bytes()
    described = {"width": 12, "height": 16, "orientation": 6}
    assert sample.meta.items() >= described.items()
