"""A sliding window: every pixel is seen, weights add up to one, and memory stays bounded."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cocoseg.model import predictor, tiles
from cocoseg.model.memory import OutOfMemory
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.tiles import Tiling
from cocoseg.model.view import View
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F


@settings(max_examples=200)
@given(st.integers(1, 700), st.integers(1, 300), st.floats(0, 0.95))
def test_the_tiles_of_an_axis_cover_it_and_their_weights_add_up_to_one(
    length: int, size: int, overlap: float
) -> None:
    tiles = Tiling(size, overlap).axis(length)
    side = min(size, length)
    total = np.zeros(length)
    for start, weight in tiles:
        assert 0 <= start <= length - side
        assert weight.shape == (side,)
        assert (weight > 0).all()
        total[start : start + side] += weight
    assert np.allclose(total, 1, atol=1e-12)
    starts = [start for start, _ in tiles]
    assert starts == sorted(set(starts))
    for one, other in itertools.pairwise(starts):
        assert one + side - other >= int(side * overlap)


def test_weights_change_smoothly() -> None:
    for _, weight in Tiling(100, 0.25).axis(1000):
        assert np.abs(np.diff(weight)).max() < 0.08
        assert np.abs(np.diff(weight, 2)).max() < 0.01


PLAIN = (View(),)


class Colors(nn.Module):
    """Logits that follow from the color below alone, at a quarter of the size; counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.batches: list[int] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.batches.append(len(pixel_values))
        return SimpleNamespace(logits=4 * F.avg_pool2d(pixel_values, 4))


def ready(network: nn.Module, tiling: Tiling | None, views=PLAIN, batch: int = 8, above=100):
    return Predictor(
        network, Preprocess(64), views, tiling=tiling, tile_above=above, batch_size=batch
    )


def blobs(height: int, width: int) -> np.ndarray:
    noise = torch.rand(1, 3, 6, 8, generator=torch.Generator().manual_seed(4))
    large = F.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return (large[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)


VIEWS = (*PLAIN, View(flip=True), View(1.5, flip_vertical=True))


def by_definition(network, image: np.ndarray, tiling: Tiling, views) -> torch.Tensor:
    """Blended probabilities, (C, H, W), from full-resolution maps of all tiles at once."""
    height, width = image.shape[:2]
    total, weights = torch.zeros(3, height, width), torch.zeros(height, width)
    for top, weight_H in tiling.axis(height):
        for left, weight_W in tiling.axis(width):
            h, w = len(weight_H), len(weight_W)
            tile = image[top : top + h, left : left + w]
            mean = torch.zeros(3, h, w)
            for view in views:
                batch = torch.from_numpy(Preprocess(64).resize(tile, view.scale).copy())[None]
                if view.flip:
                    batch = batch.flip(2)
                if view.flip_vertical:
                    batch = batch.flip(1)
                low = network(pixel_values=Preprocess(64).normalizer()(batch)).logits
                if view.flip:
                    low = low.flip(3)
                if view.flip_vertical:
                    low = low.flip(2)
                mean += F.interpolate(low, (h, w), mode="bilinear")[0].softmax(0) / len(views)
            weight = torch.from_numpy(np.outer(weight_H, weight_W)).float()
            total[:, top : top + h, left : left + w] += weight * mean
            weights[top : top + h, left : left + w] += weight
    assert (weights - 1).abs().max() < 1e-6
    return total


@pytest.mark.parametrize("size", [(150, 230), (64, 300), (300, 64), (101, 99), (40, 1000)])
@pytest.mark.parametrize("views", [VIEWS[:1], VIEWS])
@torch.inference_mode()
def test_blended_probabilities_are_those_of_the_definition(size, views) -> None:
    image, tiling = blobs(*size), Tiling(80, 0.3)
    network = ready(Colors(), tiling, views)
    inputs = network.inputs([image])
    (found,) = network.predictions(inputs, confidence=True, probabilities=True)
    got = found.to_host().wait()
    expected = by_definition(Colors(), image, tiling, views)
    assert got.probabilities is not None
    assert np.abs(got.probabilities - expected.permute(1, 2, 0).numpy()).max() < 1e-3  # float16
    assert np.abs(got.confidence - expected.amax(0).numpy()).max() < 1e-5
    sure = (expected.topk(2, 0).values.diff(dim=0).abs()[0] > 1e-4).numpy()
    assert np.array_equal(got.mask[sure], expected.argmax(0).numpy()[sure])


def test_only_photographs_above_the_size_are_cut() -> None:
    for side, images in ((100, 1), (101, 4)):
        network = Colors()
        ready(network, Tiling(80, 0.25)).predict([blobs(side, side)])
        assert sum(network.batches) == images


def test_the_tiles_of_a_row_go_through_in_batches() -> None:
    network = Colors()
    ready(network, Tiling(50, 0.0), batch=4).predict([blobs(90, 500)])
    assert network.batches == [4, 4, 2, 4, 4, 2]


def test_what_is_held_does_not_grow_with_the_height(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows of tiles at most, however many there are."""
    held: list[int] = []
    strips = tiles.probability_strips

    def counted(pieces, *more):
        held.append(len(pieces))
        return strips(pieces, *more)

    monkeypatch.setattr(tiles, "probability_strips", counted)
    ready(Colors(), Tiling(60, 0.25)).predict([blobs(2000, 100)])
    assert max(held) == 2 * len(Tiling(60, 0.25).axis(100))
    assert len(held) > 40


# ---- too little memory


class Small(Colors):
    """A device that takes so many images at once."""

    def __init__(self, most: int, error: Exception) -> None:
        super().__init__()
        self.most, self.error = most, error

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        if len(pixel_values) > self.most:
            raise self.error
        return super().forward(pixel_values)


OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_too_little_memory_halves_the_batch_and_says_so(error, caplog) -> None:
    images = [blobs(60, 80 + i) for i in range(8)]
    network = Small(3, error)
    ours = ready(network, None)
    masks = ours.predict(images)
    assert network.batches == [2, 2, 2, 2]
    assert [message.split(":")[0] for message in caplog.messages] == ["out of memory"] * 2
    assert "batches of 2 images from now on" in caplog.messages[-1]
    for mask, expected in zip(masks, ready(Colors(), None).predict(images), strict=True):
        assert np.array_equal(mask, expected)
    ours.predict(images)  # is not tried again
    assert len(caplog.messages) == 2


def test_where_memory_does_not_do_for_one_the_way_out_is_told() -> None:
    with pytest.raises(OutOfMemory, match=r"^the network, at batch size 1$"):
        ready(Small(0, OUT_OF_MEMORY[0]), None).predict([blobs(60, 80)])


KINDS = ("class_strips", "probability_strips")


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("kind", KINDS)
def test_too_little_memory_for_strips_halves_the_strips(error, kind, monkeypatch, caplog) -> None:
    views = PLAIN if kind == "class_strips" else (View(), View(flip=True))
    images = [blobs(60, 80), blobs(80, 60)]
    expected = ready(Colors(), None, views).predict(images)
    strips = getattr(predictor, kind)
    sizes = []

    def scarce(*arguments):
        sizes.append(arguments[3])
        if arguments[3] > 2**17:
            raise error
        yield from strips(*arguments)

    monkeypatch.setattr(predictor, kind, scarce)
    network = Colors()
    masks = ready(network, None, views).predict(images)
    assert sizes == [2**19, 2**18, 2**17, 2**17]
    assert network.batches == [2] * len(views)  # what the network said is not asked for again
    assert [np.array_equal(a, b) for a, b in zip(masks, expected, strict=True)] == [True, True]
    assert {message.split(":")[0] for message in caplog.messages} == {
        "out of memory while upsampling"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_then_it_halves_the_batch(kind, monkeypatch, caplog) -> None:
    """Strips fit only where the logits of one image are held; then they are large again."""
    views = PLAIN if kind == "class_strips" else (View(), View(flip=True))
    images = [blobs(60, 80), blobs(80, 60), blobs(70, 70)]
    expected = ready(Colors(), None, views).predict(images)
    strips, network, sizes = getattr(predictor, kind), Colors(), []

    def scarce(*arguments):
        sizes.append(arguments[3])
        if network.batches[-1] > 1:
            raise OUT_OF_MEMORY[0]
        yield from strips(*arguments)

    monkeypatch.setattr(predictor, kind, scarce)
    masks = ready(network, None, views).predict(images)
    assert network.batches == [3] * len(views) + [1] * 3 * len(views)
    assert [np.array_equal(a, b) for a, b in zip(masks, expected, strict=True)] == [True] * 3
    assert "batches of 1 images" in caplog.messages[-1]
    assert sizes == [2**19, 2**18, 2**17, 2**16, 2**19, 2**19, 2**19]


@pytest.mark.parametrize(
    ("kind", "views", "cut", "told"),
    [
        ("class_strips", PLAIN, False, "upsampling the logits of one image"),
        ("probability_strips", VIEWS, False, "upsampling the logits of one image"),
        ("probability_strips", VIEWS, True, "the logits of a row of tiles"),
    ],
)
def test_where_no_strip_fits_the_cause_is_named(kind, views, cut, told, monkeypatch) -> None:
    def full(*_: object):
        raise OUT_OF_MEMORY[0]
        yield

    monkeypatch.setattr(tiles if cut else predictor, kind, full)
    network = ready(Colors(), Tiling(40, 0.25) if cut else None, views, above=50)
    with pytest.raises(OutOfMemory, match=told):
        network.predict([blobs(60, 80)] * 2)


def test_other_errors_are_not_taken_for_too_little_memory() -> None:
    with pytest.raises(RuntimeError, match="broken"):
        ready(Small(0, RuntimeError("broken")), None).predict([blobs(60, 80)])
