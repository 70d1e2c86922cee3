"""Copies of inference on the fake CUDA device, and kernels outside the network."""

import pytest

CASES = {
    "float32, two sizes": {"precision": "float32", "images": [(48, 64), (64, 48)]},
    "bfloat16, six views, all outputs": {"tta": True, "confidence": True, "probabilities": True},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_an_image_is_one_transfer_per_output_and_has_no_blocking_copy(count, settings):
    seen = count("inference", **settings)
    outputs = 1 + settings.get("confidence", False) + settings.get("probabilities", False)
    images = len(settings.get("images", [()]))
    assert 0 < len(seen.to_host) <= (outputs + 2) * images, seen.to_host
    assert len(seen.waits) <= settings.get("probabilities", False), seen.waits
    assert seen.blocking == []


def test_weights_are_rounded_once_for_all_views(count):
    one, six = (
        sum(many for op, _, many in count("inference", tta=tta).launches if "_to_copy" in op)
        for tta in (False, True)
    )
    assert six < 4 * one  # activations are rounded in every view


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
