"""Class weights: the rare count more, as the paper says, and what is given is taken as it is."""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cocoseg.errors import ConfigError
from cocoseg.shards.manifest import Manifest, read_manifest
from cocoseg.train.class_weights import class_weights
from hypothesis import given
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def manifest(golden: Any) -> Manifest:
    return read_manifest(str(golden.shards("train")))


def with_pixels(manifest: Manifest, *pixels: int) -> Manifest:
    return msgspec.structs.replace(manifest, class_pixels=pixels)


def test_none_weighs_nothing(manifest: Manifest) -> None:
    assert class_weights("none", [manifest], 81) is None


def test_auto_is_the_published_formula(manifest: Manifest) -> None:
    # Worked out by hand: shares 1/2, 1/4, 1/4 of 400 valid pixels; ignored ones count nowhere.
    found = class_weights("auto", [with_pixels(manifest, 200, 100, 100)], 3)
    assert found == pytest.approx([2.388286, 4.183805, 4.183805], abs=1e-6)


def test_auto_adds_up_all_folders(manifest: Manifest) -> None:
    one = class_weights("auto", [with_pixels(manifest, 10, 4, 0, 6)], 4)
    two = [with_pixels(manifest, 10, 0, 0, 1), with_pixels(manifest, 0, 4, 0, 5)]
    assert class_weights("auto", two, 4) == one


def test_auto_agrees_with_the_masks_themselves(
    golden: Any, manifest: Manifest, stored: Any
) -> None:
    masks = [sample.mask for sample in stored(golden.shards("train")).values()]
    pixels = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256)[:81]
    found = class_weights("auto", [manifest], 81)
    assert found is not None
    for weight, count in zip(found, pixels, strict=True):
        expected = 1 / math.log(1.02 + count / pixels.sum()) if count else 0
        assert weight == pytest.approx(expected, rel=1e-12)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=100).filter(any))
def test_rarer_classes_weigh_more_within_bounds_and_absent_ones_nothing(
    golden: Any, pixels: list[int]
) -> None:
    base = read_manifest(str(golden.shards("val")))
    found = class_weights("auto", [with_pixels(base, *pixels)], len(pixels))
    assert found is not None
    present = sorted((count, weight) for count, weight in zip(pixels, found, strict=True) if count)
    weights = [weight for _, weight in present]
    assert weights == sorted(weights, reverse=True)
    assert all(1.42 < weight < 50.5 for weight in weights)
    assert all(not weight for count, weight in zip(pixels, found, strict=True) if not count)


def test_given_weights_are_taken_as_they_are(manifest: Manifest) -> None:
    assert class_weights((0.0, 2.0, 0.5), [manifest], 3) == (0.0, 2.0, 0.5)


@pytest.mark.parametrize("count", [0, 2, 80, 82])
def test_one_number_a_class_or_none(manifest: Manifest, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"holds {count} numbers; the shards have 81 classes"):
        class_weights((1.0,) * count, [manifest], 81)


def test_weights_that_teach_nothing_are_refused(manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match="all are 0"):
        class_weights((0.0,) * 81, [manifest], 81)
    with pytest.raises(ConfigError, match="no pixel that is not ignored"):
        class_weights("auto", [with_pixels(manifest, *(0,) * 81)], 81)


def test_shards_without_masks_have_no_pixels_to_count(manifest: Manifest) -> None:
    bare = msgspec.structs.replace(manifest, masks=False)
    for uncounted in (bare, with_pixels(manifest)):
        with pytest.raises(ConfigError, match="give the weights as a list"):
            class_weights("auto", [manifest, uncounted], 81)


def test_shards_of_other_programs_are_counted_too(
    golden: Any, tmp_path: Path, run_cocoseg: Any, manifest: Manifest
) -> None:
    for path in golden.shards("train").glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    ran = run_cocoseg("index", tmp_path, "--classes", "coco", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["samples"] == 8
    adopted = read_manifest(str(tmp_path))
    assert adopted.adopted
    assert class_weights("auto", [adopted], 81) == class_weights("auto", [manifest], 81)
