"""Validation and evaluation on a GPU: what the scoring loop copies."""

import pytest

IMAGES = 4  # of the golden validation shards

CASES = {
    "validation": {},
    "evaluation": {"confidence": True},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_a_sample_is_counted_on_the_device_and_nothing_waits(count, settings):
    seen = count("scoring", **settings)
    # the mask, for the boundary scores; all counts
    assert 0 < len(seen.to_host) <= 2 * IMAGES, seen.to_host
    assert seen.waits == []
    assert seen.blocking == []
