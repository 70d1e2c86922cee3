"""Image processors of other programs: pixels and masks are those of transformers, or refused."""

import json

import numpy as np
import pytest
import torch
from cocoseg.checkpoint.folder import save_network
from cocoseg.checkpoint.network import load_network, start_network
from cocoseg.errors import DataError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.folder import used_settings
from cocoseg.model.config import ModelConfig
from cocoseg.model.predictor import Predictor
from cocoseg.model.preprocess import KIND_OF_NETWORK, SEGFORMER, Preprocess
from cocoseg.model.view import View
from cocoseg.taxonomy import SemanticClass, Taxonomy
from torch.nn import functional as F
from transformers import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING, AutoImageProcessor

from .test_preprocess import photo

SEGFORMER_LIKE = ("Segformer", "Beit", "MobileNetV2", "MobileViT")
FIVE = Taxonomy(tuple(SemanticClass(name) for name in ("background", "cat", "dog", "fish", "bird")))
IMAGES = [(60, 84), (97, 50), (40, 40)]
NO_CROP = {"do_center_crop": False}

FIELDS = {
    "nothing": {},
    "square": {"size": {"height": 64, "width": 64}},
    "no square": {"size": {"height": 48, "width": 96}},
    "a list": {"size": [96, 40]},
    "a number": {"size": 56},
    "a number, square": {"size": 56, "default_to_square": True},
    "a number, no square": {"size": 56, "default_to_square": False},
    "shorter side": {"size": {"shortest_edge": 53}},
    "both sides": {"size": {"shortest_edge": 50, "longest_edge": 80}},
    "both sides, wide": {"size": {"shortest_edge": 40, "longest_edge": 900}},
    "at most": {"size": {"max_height": 70, "max_width": 45}},
    "no resize": {"do_resize": False},
    "no resize, a size": {"do_resize": False, "size": {"height": 64, "width": 64}},
    "nearest": {"resample": 0, "size": {"height": 64, "width": 64}},
    "lanczos": {"resample": 1, "size": {"height": 64, "width": 64}},
    "bicubic": {"resample": 3, "size": {"height": 64, "width": 64}},
    "box": {"resample": 4, "size": {"height": 40, "width": 64}},
    "hamming": {"resample": 5, "size": {"height": 40, "width": 64}},
    "no rescale": {"do_rescale": False},
    "another factor": {"rescale_factor": 1 / 127.5},
    "no normalization": {"do_normalize": False},
    "normalization": {"do_normalize": True, "image_mean": [0.1, 0.2, 0.3]},
    "neither": {"do_normalize": False, "do_rescale": False},
    "mean and deviation": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    "null flags": {"do_normalize": None, "do_rescale": None, "do_reduce_labels": None},
    "null values": {"do_normalize": False, "image_mean": None, "crop_size": None},
    "null, no resize": {"do_resize": None, "size": None, "resample": 3},
    "flip": {"do_flip_channel_order": True},
    "no flip": {"do_flip_channel_order": False},
    "labels": {"do_reduce_labels": True},
    "RGB": {"do_convert_rgb": True},
    "crop of all": {
        "do_center_crop": True,
        "size": {"height": 64, "width": 40},
        "crop_size": {"height": 64, "width": 40},
    },
    "not read": {"do_pad": True, "pad_size": {"height": 900, "width": 900}, "size_divisor": 32},
}
DPT_FIELDS = {
    name: fields
    for name, fields in FIELDS.items()
    if name not in ("a number, no square", "shorter side", "both sides", "both sides, wide")
    and name not in ("at most", "crop of all", "not read")
} | {
    "aspect": {"size": {"height": 64, "width": 64}, "keep_aspect_ratio": True},
    "aspect, no square": {"size": {"height": 70, "width": 110}, "keep_aspect_ratio": True},
    "multiple": {"size": {"height": 70, "width": 50}, "ensure_multiple_of": 32},
    "aspect, multiple": {"size": 71, "keep_aspect_ratio": True, "ensure_multiple_of": 14},
    "crop is not read": {"do_center_crop": True, "crop_size": 32},
    "pad of nothing": {"do_pad": True},
    "pad is off": {"size_divisor": 32},
}
CASES = [
    *((kind, name, fields) for kind in SEGFORMER_LIKE for name, fields in FIELDS.items()),
    *(("DPT", name, fields) for name, fields in DPT_FIELDS.items()),
]


def processor_of(folder, content, model_type="segformer"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    (folder / "preprocessor_config.json").write_text(json.dumps(content))
    return AutoImageProcessor.from_pretrained(folder)


def pixels_of(preprocess, image):
    resized = preprocess.resize(image)[None].copy()
    return preprocess.normalizer()(torch.from_numpy(resized))


@pytest.fixture(scope="module")
def network(make_network):
    return make_network(5)


@torch.no_grad()
@pytest.mark.usefixtures("image_processor")
@pytest.mark.parametrize(
    ("kind", "fields"), [pytest.param(k, f, id=f"{k}-{name}") for k, name, f in CASES]
)
def test_pixels_and_masks_are_those_of_transformers(network, tmp_path, kind, fields):
    content = {"image_processor_type": f"{kind}ImageProcessor", **NO_CROP, **fields}
    if fields:  # else the default, which is large
        content.setdefault("size", {"height": 64, "width": 64})
    theirs = processor_of(tmp_path, content)
    ours = Preprocess.from_dict(content)
    again = processor_of(tmp_path / "saved", ours.to_dict())
    assert Preprocess.from_dict(ours.to_dict()) == ours
    predictor = Predictor(network, ours)
    for size in IMAGES:
        image = photo(*size)
        batch = theirs(image, input_data_format="channels_last", return_tensors="pt")
        expected, got = batch["pixel_values"], pixels_of(ours, image)
        assert got.shape == expected.shape
        assert (got - expected).abs().max() <= 3e-6 * max(1, expected.abs().max())
        saved = again(image, input_data_format="channels_last", return_tensors="pt")
        assert torch.allclose(saved["pixel_values"].float(), got, rtol=1e-5, atol=1e-5)
        out = network(pixel_values=got)  # of the same bits: only sizes and upsampling are left
        (mask,) = theirs.post_process_semantic_segmentation(out, target_sizes=[size])
        logits = F.interpolate(out.logits, size, mode="bilinear")[0]
        best = logits.topk(2, dim=0).values
        sure = ((best[0] - best[1]) > 1e-4 * logits.abs().max()).numpy()
        assert sure.mean() > 0.98
        (made,) = predictor.predict([image])
        assert np.array_equal(made[sure], mask.numpy()[sure])


@pytest.mark.usefixtures("image_processor")
def test_a_folder_that_names_no_class_gets_that_of_its_network(tmp_path):
    torchvision = {"sapiens2", "tipsv2_dpt"}
    for kind in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        ours = KIND_OF_NETWORK.get(kind.model_type, SEGFORMER)
        if kind.model_type in torchvision:
            assert ours.lower().startswith(kind.model_type.replace("_", ""))
            continue
        theirs = processor_of(tmp_path, {}, kind.model_type)
        assert type(theirs).__name__.removesuffix("Pil") == ours


@pytest.mark.parametrize("suffix", ["ImageProcessor", "ImageProcessorFast", "ImageProcessorPil"])
@pytest.mark.parametrize("kind", [*SEGFORMER_LIKE, "DPT"])
def test_older_names_of_a_class_mean_the_same(kind, suffix):
    expected = Preprocess.from_dict({"image_processor_type": f"{kind}ImageProcessor", **NO_CROP})
    assert Preprocess.from_dict({"image_processor_type": kind + suffix, **NO_CROP}) == expected
    older = {"feature_extractor_type": f"{kind}FeatureExtractor", **NO_CROP}
    assert Preprocess.from_dict(older) == expected


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("MobileViT", {}, "do_center_crop: true is not supported"),
        ("MobileNetV2", {}, "do_center_crop"),
        ("Beit", {"do_center_crop": True, "crop_size": 100}, "do_center_crop"),
        ("Beit", {"do_center_crop": True, "crop_size": {"shortest_edge": 3}}, "do_center_crop"),
        ("Beit", {"do_center_crop": True, "crop_size": {"height": 3}}, "crop_size"),
        ("DPT", {"do_pad": True, "size_divisor": 14}, "do_pad: true with a size_divisor"),
        ("DPT", {"size": {"shortest_edge": 40}}, "size: .* needs height and width"),
        ("DPT", {"ensure_multiple_of": 0}, "ensure_multiple_of: 0"),
        ("DPT", {"keep_aspect_ratio": 1}, "keep_aspect_ratio: 1 is not true or false"),
        ("Segformer", {"do_resize": "no"}, "do_resize: 'no' is not true or false"),
        ("Segformer", {"do_rescale": 1}, "do_rescale: 1"),
        ("Segformer", {"size": {"longest_edge": 40}}, "size: .* is not supported"),
        ("Segformer", {"size": {"height": 40}}, "size: .* is not supported"),
        ("Segformer", {"size": [1, 2, 3]}, "size: .* is not a number of pixels"),
        ("Segformer", {"size": 40.5}, r"size: 40\.5 is not a number of pixels"),
        ("Segformer", {"size": {"height": 40, "width": 10**9}}, "size: 1000000000"),
        ("Segformer", {"resample": 60}, "resample: 60 is not the number"),
        ("Segformer", {"resample": None}, "resample: None"),
        ("Segformer", {"size": None}, "size: None"),
        ("Segformer", {"image_mean": None}, "image_mean: None"),
        ("Segformer", {"rescale_factor": None}, "rescale_factor: None"),
        ("Segformer", {"resample": True}, "resample: True"),
        ("Segformer", {"resample": []}, "resample: "),
        ("Segformer", {"rescale_factor": 0}, "rescale_factor: 0"),
        ("Segformer", {"rescale_factor": "1/255"}, "rescale_factor: '1/255'"),
        ("Segformer", {"rescale_factor": float("nan")}, "rescale_factor: nan"),
        ("Sapiens2", {}, "Sapiens2ImageProcessor needs torchvision"),
        ("Tipsv2Dpt", {}, "Tipsv2DptImageProcessor needs torchvision"),
        ("ViT", {}, "image_processor_type: ViTImageProcessor is not supported; known are Segf"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(kind, fields, said):
    with pytest.raises(ValueError, match=said):
        Preprocess.from_dict({"image_processor_type": f"{kind}ImageProcessor", **fields})


@pytest.fixture
def folder(make_network, tmp_path):
    network = make_network(5)
    network.config.id2label = dict(enumerate(FIVE.names))
    network.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


def write(folder, **content):
    (folder / "preprocessor_config.json").write_text(json.dumps(content))


def test_a_refusal_names_the_file(folder):
    write(folder, image_processor_type="BeitImageProcessor", do_center_crop=True, crop_size=9)
    with pytest.raises(DataError, match=r"hub/preprocessor_config\.json: do_center_crop: true"):
        load_network(str(folder), ModelConfig())


@pytest.mark.parametrize("config", [{}, {"input_size": 96}, {"input_size": 64, "keep_ratio": True}])
def test_without_a_processor_the_size_is_the_models_and_reported(folder, caplog, config):
    model = ModelConfig(**config)
    expected = Preprocess(model.input_size, model.keep_ratio)
    assert load_network(str(folder), model).preprocess == expected
    assert (
        f"hub: has no preprocessor_config.json: assuming RGB images, resized to model.input_size "
        f"{model.input_size}, and ImageNet's mean and standard deviation"
    ) in caplog.text
    settings = used_settings(InferConfig(checkpoint=str(folder)), model)
    assert f"input_size: {model.input_size}" in settings
    write(folder, size=64)
    assert "input_size" not in used_settings(InferConfig(checkpoint=str(folder)), model)


def test_a_training_uses_the_pixel_values_of_a_processor_and_its_own_sizes(folder, tmp_path):
    write(
        folder,
        image_processor_type="MobileNetV2ImageProcessor",
        size={"shortest_edge": 99},
        resample=3,
        rescale_factor=1 / 127.5,
        image_mean=[1.0, 1.0, 1.0],
        image_std=[1.0, 2.0, 1.0],
    )  # and it crops: a training does not
    model = ModelConfig(name=str(folder), input_size=64, keep_ratio=True)
    network, preprocess = start_network(model, FIVE, 0)
    mean, std = (1.0, 1.0, 1.0), (1.0, 2.0, 1.0)
    assert preprocess == Preprocess(64, True, mean, std, rescale=1 / 127.5)
    save_network(tmp_path, network, preprocess, FIVE)
    assert load_network(str(tmp_path), ModelConfig()).preprocess == preprocess


def test_scales_of_views_multiply_the_size_of_a_processor():
    def target(fields, size, scale):
        width, height = size
        return Preprocess.from_dict(fields).target_size(width, height, scale)

    assert target({"size": {"height": 48, "width": 96}}, (500, 300), 1.25) == (120, 60)
    assert target({"size": {"shortest_edge": 40}}, (200, 100), 1.5) == (120, 60)
    assert target({"do_resize": False}, (200, 100), 0.5) == (100, 50)
    assert target({"do_resize": False}, (20, 100), 1.0) == (32, 100)
    dpt = {"image_processor_type": "DPTImageProcessor", "size": 64, "ensure_multiple_of": 14}
    assert target(dpt, (200, 100), 1.5) == (98, 98)
    assert target(dpt, (200, 100), 0.25) == (42, 42)
    with pytest.raises(MemoryError, match="an input of"):
        target({"size": {"shortest_edge": 512}}, (100_000, 1), 1.0)


@torch.no_grad()
def test_views_of_images_that_keep_their_size_are_averaged(network):
    preprocess = Preprocess.from_dict({"do_resize": False})
    views = [View(), View(1.0, flip=True), View(1.5)]
    images = [photo(60, 84), photo(64, 40, seed=1), photo(60, 84, seed=2)]
    masks = Predictor(network, preprocess, views, batch_size=2).predict(images)
    for image, mask in zip(images, masks, strict=True):
        height, width = image.shape[:2]
        mean = 0
        for view in views:
            x = pixels_of(preprocess, image) if view.scale == 1 else None
            if x is None:
                larger = Preprocess.from_dict(
                    {"size": {"height": round(height * 1.5), "width": round(width * 1.5)}}
                )
                x = pixels_of(larger, image)
            logits = network(pixel_values=x.flip(3) if view.flip else x).logits
            logits = logits.flip(3) if view.flip else logits
            mean = mean + F.interpolate(logits, (height, width), mode="bilinear").softmax(1)[0]
        best = mean.topk(2, dim=0).values
        sure = ((best[0] - best[1]) > 1e-4).numpy()
        assert np.array_equal(mask[sure], mean.argmax(0).numpy()[sure])


def test_a_size_that_a_network_fails_of_is_one_message(network):
    def fails(pixel_values):
        raise RuntimeError("shape mismatch\nmore")

    class Failing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        forward = staticmethod(fails)

    predictor = Predictor(Failing(), Preprocess.from_dict({"do_resize": False}), origin="X")
    with pytest.raises(DataError, match=r"X: the network fails of images of 84 × 60 pixels.*misma"):
        predictor.predict([photo(60, 84)])
