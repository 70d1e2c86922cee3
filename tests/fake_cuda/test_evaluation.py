"""Copies of the scoring loop, of validation and evaluation, on the fake CUDA device."""

import pytest

IMAGES = 4  # of the golden validation shards

CASES = {
    "validation": {},
    "evaluation": {"confidence": True, "precision": "float16"},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_sample_is_scored_on_the_device_without_a_blocking_copy(count, settings):
    seen = count("scoring", **settings)
    # per image: the mask, for the boundary scores; the confusion matrix and other counts
    assert 0 < len(seen.to_host) <= 2 * IMAGES, seen.to_host
    assert seen.waits == []
    assert seen.blocking == []
