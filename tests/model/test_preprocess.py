"""Preprocessing: our sizes, pixels and predictions are those of transformers."""

import numpy as np
import pytest
import torch
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import HostNormalizer, Preprocess, resize_logits
from cocoseg.model.view import View
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F
from transformers import SegformerImageProcessorPil

# (height, width), smaller and larger than the input, and extreme
SIZES = [(64, 64), (48, 80), (301, 57), (33, 200), (1, 1), (1, 500), (500, 1)]


def photo(height, width, seed=0):
    """Blobs with noise, so that logits vary and every filter tap counts."""
    rng = np.random.default_rng(seed)
    blobs = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize((width, height), 3)
    noise = rng.integers(-40, 40, (height, width, 3))
    return np.clip(np.asarray(blobs) + noise, 0, 255).astype(np.uint8)


@pytest.mark.usefixtures("image_processor")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", [64, 97])
def test_pixels_are_those_of_transformers(size, side):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.1)
    theirs = SegformerImageProcessorPil(
        size={"height": side, "width": side}, image_mean=mean, image_std=std
    )
    expected = theirs(photo(*size), input_data_format="channels_last", return_tensors="pt")[
        "pixel_values"
    ]
    ours = Preprocess(side, mean=mean, std=std)
    got = ours.normalizer()(torch.from_numpy(ours.resize(photo(*size))[None].copy()))
    assert (got.shape, got.dtype) == (expected.shape, torch.float32)
    assert (got - expected).abs().max() <= 2e-6


@pytest.mark.usefixtures("image_processor")
def test_what_is_saved_gives_transformers_the_same_pixels():
    ours = Preprocess(80, mean=(0.1, 0.2, 0.3), std=(0.9, 0.8, 0.7))
    theirs = SegformerImageProcessorPil(**ours.to_dict())
    expected = theirs(photo(40, 50), return_tensors="pt")["pixel_values"]
    got = ours.normalizer()(torch.from_numpy(ours.resize(photo(40, 50))[None].copy()))
    assert (got - expected).abs().max() <= 2e-6


@pytest.mark.usefixtures("image_processor")
@pytest.mark.parametrize("size", SIZES)
def test_a_plain_prediction_is_that_of_transformers(make_network, size):
    network, image = make_network(5), photo(*size)
    theirs = SegformerImageProcessorPil(size={"height": 64, "width": 64})
    with torch.no_grad():
        out = network(**theirs(image, input_data_format="channels_last", return_tensors="pt"))
    (expected,) = theirs.post_process_semantic_segmentation(out, target_sizes=[size])
    (mask,) = Predictor(network, Preprocess(64)).predict([image])
    assert (mask.shape, mask.dtype) == (size, np.uint8)
    # Not a pixel may differ but where the two best classes are within float32's reach.
    logits = F.interpolate(out.logits, size, mode="bilinear")[0]
    best = logits.topk(2, dim=0).values
    sure = ((best[0] - best[1]) > 1e-4).numpy()
    assert sure.mean() > 0.99 or size == (1, 1)
    assert np.array_equal(mask[sure], expected.numpy()[sure])


def test_the_test_image_is_not_all_one_class(make_network):
    (mask,) = Predictor(make_network(5), Preprocess(64)).predict([photo(48, 80)])
    assert len(np.unique(mask)) >= 3


@pytest.mark.parametrize(
    ("width", "height", "scale", "expected"),
    [
        (640, 480, 1.0, (512, 384)),
        (480, 640, 1.0, (384, 512)),
        (640, 480, 1.25, (640, 480)),
        (640, 480, 0.75, (384, 288)),
        (100, 100, 1.0, (512, 512)),
        (1000, 10, 1.0, (512, 32)),
        (1, 500, 1.0, (32, 512)),
        (1, 1, 1.0, (512, 512)),
        (333, 500, 1.0, (341, 512)),
    ],
)
def test_keep_ratio_brings_the_longer_side_to_the_input_size(width, height, scale, expected):
    preprocess = Preprocess(512, keep_ratio=True)
    assert preprocess.target_size(width, height, scale) == expected
    image = np.zeros((height, width, 3), np.uint8)
    assert preprocess.resize(image, scale).shape == (*expected[::-1], 3)


@pytest.mark.parametrize(("scale", "side"), [(0.75, 480), (1.0, 640), (1.25, 800), (0.01, 32)])
def test_without_keep_ratio_every_photograph_becomes_a_square(scale, side):
    assert Preprocess(640).target_size(333, 500, scale) == (side, side)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(32, 1024), st.floats(0.25, 2))
def test_keep_ratio_keeps_the_ratio_within_rounding(width, height, side, scale):
    w, h = Preprocess(side, keep_ratio=True).target_size(width, height, scale)
    longer = max(32, round(side * scale))
    assert max(w, h) == longer
    exact = longer * min(width, height) / max(width, height)
    assert abs(min(w, h) - max(32, exact)) <= 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_upsampling_happens_in_float32_at_least(dtype):
    logits = torch.randn(2, 5, 7, 9, generator=torch.manual_seed(0)).to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    got = resize_logits(logits, 31, 20)
    assert got.dtype == wide
    expected = F.interpolate(logits.to(wide), (31, 20), mode="bilinear", align_corners=False)
    assert torch.equal(got, expected)


def test_upsampling_centers_pixels():
    """Halfway between two pixels lies their mean, and edges are repeated: no aligned corners."""
    got = resize_logits(torch.tensor([[[[0.0, 4.0]]]]), 1, 4)
    assert got.flatten().tolist() == [0.0, 1.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("content", "side"),
    [
        ({"size": 640}, 640),
        ({"size": {"height": 640, "width": 640}}, 640),
        ({}, 512),
    ],
)
def test_every_form_of_a_square_that_transformers_wrote_is_read(content, side):
    assert Preprocess.from_dict(content) == Preprocess(side)


def test_a_preprocess_comes_back_from_its_dict():
    mine = Preprocess(77, True, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert Preprocess.from_dict(mine.to_dict()) == mine


@pytest.mark.parametrize("blue_first", [False, True])
@pytest.mark.parametrize(
    "view", [View(), View(flip=True), View(flip_vertical=True), View(1.0, True, True)]
)
def test_on_the_host_normalizing_gives_the_same_bits(blue_first, view):
    preprocess = Preprocess(64, blue_first=blue_first)
    images = torch.from_numpy(np.stack([photo(40, 50), photo(40, 50)[::-1]]))
    expected = preprocess.normalizer()(view.mirror(images, 1, 2))
    assert torch.equal(HostNormalizer(preprocess)(images, view), expected)
