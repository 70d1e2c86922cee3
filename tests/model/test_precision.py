"""What a network computes in, and that everything behind it stays float32."""

import numpy as np
import pytest
import torch
from cocoseg.model.precision import autocast, dtype_name, resolve_precision, tf32
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.view import View
from PIL import Image

CPU, GPU, MPS = map(torch.device, ("cpu", "cuda:1", "mps"))


@pytest.mark.parametrize(
    ("name", "device", "native", "expected"),
    [
        ("auto", CPU, True, torch.float32),
        ("auto", MPS, True, torch.float32),
        ("auto", GPU, True, torch.bfloat16),
        ("auto", GPU, False, torch.float16),
        ("float32", GPU, True, torch.float32),
        ("bfloat16", CPU, False, torch.bfloat16),
        ("float16", GPU, True, torch.float16),
    ],
)
def test_auto_is_what_the_device_computes_natively(name, device, native, expected, monkeypatch):
    def supported(including_emulation):
        assert including_emulation is False
        return native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert resolve_precision(name, device) == expected


def test_names_are_those_of_the_settings():
    assert [dtype_name(one) for one in (torch.bfloat16, torch.float32)] == ["bfloat16", "float32"]


@pytest.mark.parametrize("enabled", [False, True])
def test_tf32_is_as_asked_for_in_the_context_and_as_before_afterwards(enabled):
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    with tf32(enabled):
        assert (products.allow_tf32, convolutions.allow_tf32) == (enabled, enabled)
    assert (products.allow_tf32, convolutions.allow_tf32) == before


VIEWS = [View(0.75), View(0.75, flip=True), View(), View(flip=True, flip_vertical=True)]


def blobs(seed, height, width):
    generator = torch.Generator().manual_seed(seed)
    small = torch.randint(0, 256, (5, 6, 3), generator=generator, dtype=torch.uint8)
    return np.asarray(Image.fromarray(small.numpy()).resize((width, height)))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_the_network_alone_computes_in_half_precision(make_network, precision):
    network, seen = make_network(5), []
    network.decode_head.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    images = [blobs(0, 40, 60), blobs(1, 60, 40)]
    found = {}
    for name in (torch.float32, precision):
        predictor = Predictor(network, Preprocess(64), VIEWS, precision=name)
        found[name] = list(predictor.predictions(predictor.inputs(images), confidence=True))
    assert seen == [torch.float32] * len(VIEWS) + [precision] * len(VIEWS)
    for one, other in zip(*found.values(), strict=True):
        assert other.confidence.dtype == torch.float32
        difference = (one.confidence - other.confidence).abs()
        assert 0 < difference.max() < 0.1
        assert (one.mask == other.mask).float().mean() > 0.97


def test_probabilities_of_half_precision_logits_are_averaged_in_float32(make_network):
    """To the last bits: the mean of the views' softmaxes of the rounded logits."""
    network, image = make_network(5), blobs(2, 40, 60)
    predictor = Predictor(network, Preprocess(64), VIEWS, precision=torch.bfloat16)
    (got,) = predictor.predictions(predictor.inputs([image]), confidence=True)
    total = torch.zeros(5, 40, 60, dtype=torch.float64)
    with torch.no_grad(), autocast(CPU, torch.bfloat16):
        for view in VIEWS:
            pixels = torch.from_numpy(Preprocess(64).resize(image, view.scale).copy())[None]
            x = Preprocess(64).normalizer()(view.mirror(pixels, 1, 2))
            logits = view.mirror(network(pixel_values=x).logits, 2, 3).double()
            whole = torch.nn.functional.interpolate(logits, (40, 60), mode="bilinear")
            total += whole.softmax(1)[0] / len(VIEWS)
    assert (got.confidence - total.amax(0)).abs().max() < 1e-6


def test_weights_stay_float32(make_network):
    network = make_network(5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    Predictor(network, Preprocess(64), precision=torch.bfloat16).predict([blobs(3, 40, 60)])
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
