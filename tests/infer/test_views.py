"""Test-time augmentation: every view is inverted exactly, and probabilities are averaged."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cocoseg.infer.config import InferConfig
from cocoseg.infer.views import views_of
from cocoseg.model.fuse import Piece, probability_strips
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from cocoseg.model.view import View
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional as F

ALL = [(scale, flip) for scale in (0.75, 1.0, 1.25) for flip in (False, True)]


def as_views(pairs):
    return [View(scale, flip) for scale, flip in pairs]


def mean_probabilities(network, preprocess, views, images):
    """Ours: (C, H, W) for each image."""
    for image in images:
        height, width = image.shape[:2]
        predictor = Predictor(network, preprocess, views)
        inputs = predictor.inputs([image])
        with torch.inference_mode():
            logits = predictor._logits(inputs, inputs.whole)[0]
        piece = Piece(logits, 0, 0, height, width, views=views)
        strips = probability_strips([piece], range(height), width)
        yield torch.cat(list(strips)).permute(2, 0, 1)


def predict_views(network, preprocess, views, images):
    """Masks, by way of what the command calls."""
    return Predictor(network, preprocess, views).predict(images)


def reference(network, image, views, side=64):
    """Mean probability (C, H, W): one image, one view at a time, written from the definition."""
    size, total = image.shape[:2], 0
    for scale, flip in views:
        s = round(side * scale)
        x = Image.fromarray(image)
        if flip:
            x = x.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        x = np.asarray(x.resize((s, s), Image.Resampling.BILINEAR)).astype(np.float64) / 255
        x = (x - IMAGENET_MEAN) / IMAGENET_STD
        x = torch.from_numpy(x.astype(np.float32)).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = network(pixel_values=x).logits.double()
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        probabilities = logits.softmax(dim=1)[0]
        total = total + (probabilities.flip(2) if flip else probabilities)
    return total / len(views)


def check(network, images, views):
    got = list(mean_probabilities(network, Preprocess(64), as_views(views), images))
    masks = predict_views(network, Preprocess(64), as_views(views), images)
    for mean, mask, image in zip(got, masks, images, strict=True):
        expected = reference(network, image, views)
        assert mean.shape == expected.shape
        assert mean.dtype == torch.float32
        assert (mean - expected).abs().max() <= 1e-5
        best = expected.topk(2, dim=0).values
        sure = ((best[0] - best[1]) > 2e-5).numpy()
        assert (mask.shape, mask.dtype) == (image.shape[:2], np.uint8)
        assert np.array_equal(mask[sure], expected.argmax(0).numpy()[sure])
    return masks


@pytest.mark.parametrize("size", [(48, 64), (33, 57), (101, 19), (1, 1), (1, 300)])
@pytest.mark.parametrize("views", [ALL, ALL[::2], [(1.0, True)], [(0.6, False), (2.0, True)]])
def test_the_mean_of_views_is_that_of_the_definition(make_network, draw, size, views):
    check(make_network(), [draw(*size)], views)


def test_images_of_several_sizes_in_one_batch_are_not_mixed_up(make_network, draw):
    sizes = [(48, 64), (64, 48), (30, 30), (48, 64)]
    masks = check(make_network(), [draw(*size, seed=i) for i, size in enumerate(sizes)], ALL)
    assert [mask.shape for mask in masks] == sizes
    assert all(len(np.unique(mask)) > 1 for mask in masks)


@settings(max_examples=15)
@given(
    st.integers(1, 90), st.integers(1, 90), st.lists(st.floats(0.5, 1.6), min_size=1, max_size=3)
)
def test_any_size_and_any_scales_follow_the_definition(make_network, draw, height, width, scales):
    views = [(scale, flip) for scale in scales for flip in (False, True)]
    check(make_network(), [draw(height, width)], views)


def test_views_matter(make_network, draw):
    """Else the tests above would show nothing."""
    network, image = make_network(), draw(48, 64)
    one, flipped, scaled = (
        reference(network, image, [view]) for view in ((1.0, False), (1.0, True), (0.75, False))
    )
    assert (one - flipped).abs().max() > 0.05
    assert (one - scaled).abs().max() > 0.05


class Colors(nn.Module):
    """Logits that follow from the color of the pixel below alone, at a quarter of the size."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, pixel_values):
        return SimpleNamespace(logits=20 * pixel_values[:, :, 2::4, 2::4])


def quadrants(size):
    """Red, green, blue and red, at places that no mirroring maps onto themselves."""
    truth = np.zeros((size, size), np.uint8)
    truth[: size // 4, size // 2 :] = 1
    truth[size // 2 :, : size // 4] = 2
    return truth, (np.eye(3)[truth] * 255).astype(np.uint8)


@pytest.mark.parametrize("view", ALL)
def test_each_view_is_inverted_where_it_looked(view):
    truth, image = quadrants(64)
    (mask,) = predict_views(Colors(), Preprocess(64), as_views([view]), [image])
    # Near an edge the quarter-size logits blur; 4 pixels off it, all is exact.
    edge = np.zeros_like(truth, bool)
    for axis in (0, 1):
        for shift in range(-4, 5):
            edge |= np.roll(truth, shift, axis) != truth
    assert edge.mean() < 0.4
    assert np.array_equal(mask[~edge], truth[~edge])


@pytest.mark.parametrize("scale", [0.75, 1.0, 1.25])
def test_a_flip_of_a_network_that_looks_at_colors_alone_changes_nothing(scale):
    """Sampled at cell centers, so that mirroring commutes with it."""

    class Means(Colors):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=F.avg_pool2d(pixel_values, 4))

    _, image = quadrants(64)
    plain, flipped = (
        next(iter(mean_probabilities(Means(), Preprocess(64), [View(scale, flip)], [image])))
        for flip in (False, True)
    )
    assert (plain - flipped).abs().max() <= 1e-6


def test_probabilities_are_averaged_and_not_logits(draw):
    """One sure view does not outvote two others: their logits would say 1, they say 0."""

    class BySize(Colors):
        def forward(self, pixel_values):
            batch, _, height, width = pixel_values.shape
            logits = torch.zeros(batch, 2, height // 4, width // 4)
            logits[:, 0] = 2.0 if height > 32 else 0.0
            logits[:, 1] = 0.0 if height > 32 else 50.0
            return SimpleNamespace(logits=logits)

    views = as_views([(0.5, False), (1.0, False), (1.5, False)])
    (mean,) = mean_probabilities(BySize(), Preprocess(64), views, [draw(20, 30)])
    sure = 1 / (1 + np.exp(-2.0))
    assert mean[0].numpy() == pytest.approx(2 * sure / 3, abs=1e-6)
    (mask,) = predict_views(BySize(), Preprocess(64), views, [draw(20, 30)])
    assert not mask.any()


@settings(max_examples=30)
@given(st.booleans(), st.booleans(), st.integers(1, 9), st.integers(1, 9))
def test_a_mirroring_is_its_own_inverse(flip, vertical, height, width):
    view = View(1.0, flip, vertical)
    images = torch.rand(2, height, width, 3)
    mirrored = view.mirror(images, 1, 2)
    assert torch.equal(view.mirror(mirrored, 1, 2), images)
    expected = images
    if vertical:
        expected = expected[:, torch.arange(height - 1, -1, -1)]
    if flip:
        expected = expected[:, :, torch.arange(width - 1, -1, -1)]
    assert torch.equal(mirrored, expected)


@pytest.mark.parametrize("flip", [False, True])
def test_a_vertical_flip_is_looked_back_through_where_it_looked(flip):
    truth, image = quadrants(64)
    plain, flipped = (
        predict_views(Colors(), Preprocess(64), [View(1.0, flip, vertical)], [image])[0]
        for vertical in (False, True)
    )
    assert (plain != flipped).mean() < 0.1  # at edges: a quarter of the size is not symmetric
    assert (flipped[8:24, 40:56] == truth[8:24, 40:56]).mean() > 0.5
    assert len(np.unique(flipped)) == 3


def test_views_are_every_scale_as_it_is_and_mirrored():
    assert [(v.scale, v.flip) for v in views_of(InferConfig())] == ALL
    config = InferConfig(tta_scales=(1.0, 2.0), tta_flip=False)
    assert [(v.scale, v.flip) for v in views_of(config)] == [(1.0, False), (2.0, False)]
    config = InferConfig(tta_scales=(1.0,), tta_flip_vertical=True)
    assert views_of(config) == [
        View(1.0, False, False), View(1.0, True, False), View(1.0, False, True),
        View(1.0, True, True),
    ]  # fmt: skip
    assert views_of(InferConfig(use_tta=False)) == [View()]
