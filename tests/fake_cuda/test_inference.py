"""Inference on a GPU: what it copies, and what it launches beside the network."""

import pytest

CASES = {
    "one view": {},
    "float16, two sizes": {"precision": "float16", "images": [(48, 64), (64, 48)]},
    "float32, confidence": {"precision": "float32", "confidence": True},
    "six views, probabilities": {"tta": True, "confidence": True, "probabilities": True},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_an_image_comes_to_the_host_as_what_was_asked_for_and_nothing_waits(count, settings):
    seen = count("inference", **settings)
    asked = 1 + settings.get("confidence", False) + settings.get("probabilities", False)
    images = len(settings.get("images", [()]))
    assert 0 < len(seen.to_host) <= (asked + 2) * images, seen.to_host
    assert len(seen.waits) <= settings.get("probabilities", False), seen.waits
    assert seen.blocking == []


def test_six_views_launch_few_kernels_outside_the_network(count):
    seen = count("outside_network", height=480, width=640)
    assert len(seen.to_host) <= 1 + 2, seen.to_host
    assert seen.waits == []
    assert seen.blocking == []
    assert seen.kernels <= 250


def test_tiles_launch_few_kernels_outside_the_network(count):
    seen = count("outside_network", height=4500, width=6000)
    assert len(seen.to_host) <= 1 + 2, seen.to_host
    assert seen.waits == []
    assert len(seen.blocking) <= 50, seen.blocking
    assert seen.kernels <= 6_000
