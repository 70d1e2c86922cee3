"""Copies of the scoring loop, of validation and evaluation, on the fake CUDA device."""

import pytest

IMAGES = 4  # of the golden validation shards

CASES = {
    # the mask; the confusion matrix and other counts
    "validation": (2, {}),
    # and the probabilities of the predicted and of the true class, for label errors
    "evaluation": (4, {"confidence": True, "precision": "float16"}),
}


@pytest.mark.parametrize(("copies", "settings"), CASES.values(), ids=CASES.keys())
def test_a_sample_is_scored_on_the_device_without_a_blocking_copy(count, copies, settings):
    seen = count("scoring", **settings)
    assert 0 < len(seen.to_host) <= copies * IMAGES, seen.to_host
    assert seen.waits == []
    assert seen.blocking == []
