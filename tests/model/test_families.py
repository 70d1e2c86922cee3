"""Networks that are no SegFormers: kept and new weights, sizes, saved folders, what is unused."""

import json
import logging

import numpy as np
import pytest
import torch
from cocoseg.checkpoint.folder import save_network
from cocoseg.checkpoint.network import load_network, start_network
from cocoseg.errors import ConfigError, DataError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.predictor import load_predictor
from cocoseg.model.config import ModelConfig
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.switches import (
    backbone_of,
    checkpoint_activations,
    freeze_backbone,
    freeze_unused,
    train_mode,
)
from cocoseg.taxonomy import SemanticClass, Taxonomy
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    ConvNextConfig,
    Data2VecVisionConfig,
    DPTConfig,
    MobileNetV2Config,
    MobileViTConfig,
    UperNetConfig,
)

_TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 64,
    "patch_size": 16,
}
_BEIT = {"out_indices": [1, 2, 3, 4], "pool_scales": [1, 2], "auxiliary_channels": 8}

FAMILIES = {
    "beit": lambda n: BeitConfig(num_labels=n, **_TRANSFORMER, **_BEIT),
    "data2vec": lambda n: Data2VecVisionConfig(num_labels=n, **_TRANSFORMER, **_BEIT),
    "dpt": lambda n: DPTConfig(
        num_labels=n,
        **_TRANSFORMER,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 16, 16],
        fusion_hidden_size=16,
    ),
    "mobilenet_v2": lambda n: MobileNetV2Config(num_labels=n, depth_multiplier=0.25, min_depth=8),
    "mobilevit": lambda n: MobileViTConfig(
        num_labels=n,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 32],
        num_attention_heads=2,
        aspp_out_channels=16,
    ),
    "upernet": lambda n: UperNetConfig(
        num_labels=n,
        backbone_config=ConvNextConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 1, 1, 1],
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        hidden_size=16,
        auxiliary_channels=8,
        auxiliary_in_channels=16,
        pool_scales=[1, 2],
    ),
}

FIVE = Taxonomy(tuple(SemanticClass(name) for name in ("background", "cat", "dog", "fish", "bird")))
OTHER = Taxonomy(tuple(SemanticClass(name) for name in ("background", "a", "b", "c", "d")))
FEW = ("beit", "dpt", "upernet")
"""Two kinds of transformers and a convolutional network, each with an auxiliary head."""
CLASSIFIERS = {
    "beit": ("decode_head.classifier", "auxiliary_head.classifier"),
    "data2vec": ("decode_head.classifier", "auxiliary_head.classifier"),
    "dpt": ("head.head.4", "auxiliary_head.head.4"),
    "mobilenet_v2": ("segmentation_head.classifier.convolution",),
    "mobilevit": ("segmentation_head.classifier.convolution",),
    "upernet": ("decode_head.classifier", "auxiliary_head.classifier"),
}


def classifier_keys(family):
    return {f"{name}.{part}" for name in CLASSIFIERS[family] for part in ("weight", "bias")}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """Folders as a hub holds them, one a family and number of classes; named as FIVE if five."""
    root = tmp_path_factory.mktemp("hub")

    def folder(family, classes=7):
        place = root / f"{family}-{classes}"
        if not place.exists():
            torch.manual_seed(0)
            settings = FAMILIES[family](classes)
            if classes == 5:
                settings.id2label = dict(enumerate(FIVE.names))
            AutoModelForSemanticSegmentation.from_config(settings).save_pretrained(place)
        return place

    return folder


def start(folder, taxonomy=FIVE, seed=0, input_size=64):
    return start_network(ModelConfig(name=str(folder), input_size=input_size), taxonomy, seed)[0]


def differing(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return {k for k in a if a[k].shape != b[k].shape or not torch.equal(a[k], b[k])}


@pytest.mark.parametrize("family", FAMILIES)
def test_from_the_hub_to_a_checkpoint_and_back(family, hub, tmp_path, caplog):
    network = start(hub(family)).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits = network(pixel_values=pixels).logits
        assert logits.shape[:2] == (2, 5)
        save_network(tmp_path, network, Preprocess(64), FIVE)
        loaded = load_network(str(tmp_path), ModelConfig())
        assert differing(loaded.network, network) == set()
        again = loaded.network(pixel_values=pixels).logits
        torch.testing.assert_close(again, logits, rtol=1e-4, atol=1e-6 * logits.abs().max().item())
        theirs = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert differing(theirs, network) == set()
    assert loaded.taxonomy.names == FIVE.names
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["has no preprocessor_config.json" in record.getMessage() for record in warned] == [True]


@pytest.mark.parametrize("family", FAMILIES)
def test_other_classes_renew_all_classifiers_and_nothing_else(family, hub):
    before = AutoModelForSemanticSegmentation.from_pretrained(hub(family))
    after = start(hub(family))
    assert differing(before, after) == classifier_keys(family)
    by_another_seed = differing(after, start(hub(family), seed=1))
    assert by_another_seed
    assert by_another_seed <= classifier_keys(family)


@pytest.mark.parametrize("family", FEW)
def test_as_many_other_classes_do_not_slip_in(family, hub):
    before = AutoModelForSemanticSegmentation.from_pretrained(hub(family, 5))
    assert differing(before, start(hub(family, 5), FIVE)) == set()
    # Biases start at 0 in both.
    renewed = {key for key in classifier_keys(family) if key.endswith("weight")}
    changed = differing(before, start(hub(family, 5), OTHER))
    assert renewed <= changed <= classifier_keys(family)


@pytest.mark.parametrize("family", FEW)
def test_what_does_not_fit_is_named(family, hub, tmp_path):
    network = AutoModelForSemanticSegmentation.from_pretrained(hub(family, 5))
    network.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    weight = f"{CLASSIFIERS[family][0]}.weight"
    other = next(k for k, v in good.items() if v.ndim == 4 and k not in classifier_keys(family))
    wide = torch.zeros(good[weight].shape[0], good[weight].shape[1] + 1, 1, 1)
    for change, said in (
        ({other: None}, "1 missing"),
        ({"strange.weight": torch.zeros(2)}, "1 left over .strange.weight"),
        ({other: torch.zeros(3)}, "1 of another shape"),
        ({weight: wide}, "1 of another shape"),  # not by its number of classes
        ({weight: None}, "1 missing"),
    ):
        weights = {k: v for k, v in (good | change).items() if v is not None}
        save_file(weights, file, metadata={"format": "pt"})
        for load in (lambda: start(tmp_path), lambda: load_network(str(tmp_path), ModelConfig())):
            with pytest.raises(DataError, match=said):
                load()


@pytest.mark.parametrize("family", FEW)
def test_another_number_of_classes_is_refused_for_inference(family, hub, tmp_path):
    network = AutoModelForSemanticSegmentation.from_pretrained(hub(family, 5))
    network.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        (hub(family, 7) / "model.safetensors").read_bytes()
    )
    with pytest.raises(DataError, match="of another shape"):
        load_network(str(tmp_path), ModelConfig())


@pytest.mark.parametrize("family", ["beit", "mobilevit"])
def test_bare_weights_tell_their_classes(family, hub, tmp_path):
    folder = hub(family)
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, tmp_path / "w.pt")
    config = ModelConfig(name=str(folder), input_size=64)
    loaded = load_network(str(tmp_path / "w.pt"), config)
    assert loaded.taxonomy.num_classes == 7
    assert (
        differing(loaded.network, AutoModelForSemanticSegmentation.from_pretrained(folder)) == set()
    )


def test_a_size_that_a_network_cannot_take_is_refused_with_one_that_it_can(hub, tmp_path):
    with pytest.raises(ConfigError, match=r"model.input_size 96: .* data2vec-vision.*use 64$"):
        start(hub("data2vec"), input_size=96)
    network = start(hub("data2vec"))
    save_network(tmp_path, network, Preprocess(96), FIVE)
    with pytest.raises(ConfigError, match=r"model.input_size 96: .*use 64$"):
        load_network(str(tmp_path), ModelConfig())


def test_a_scale_that_a_network_cannot_take_is_refused_before_any_photograph(hub, tmp_path):
    save_network(tmp_path, start(hub("data2vec")), Preprocess(64), FIVE)
    config = InferConfig(checkpoint=str(tmp_path), device="cpu", tta_scales=(1.0, 1.5))
    with pytest.raises(ConfigError, match=r"infer.tta_scales 1.5, an input of 96: .*use 64$"):
        load_predictor(config, ModelConfig(), torch.device("cpu"))
    plain = config.model_copy(update={"tta_scales": (1.0,)})
    photograph = np.zeros((40, 50, 3), np.uint8)
    _, predictor = load_predictor(plain, ModelConfig(), torch.device("cpu"))
    assert predictor.predict([photograph])[0].shape == (40, 50)


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"data2vec"}))
def test_sizes_that_a_network_can_take_are_accepted(family, hub):
    assert (
        start(hub(family), input_size=96)(pixel_values=torch.randn(2, 3, 96, 96)).logits.ndim == 4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_logits_need_not_is_frozen_and_nothing_else(family, hub):
    network = start(hub(family)).train()
    names = set(freeze_unused(network, 64))
    assert names == {n for n, p in network.named_parameters() if not p.requires_grad}
    network.requires_grad_(True)
    network(pixel_values=torch.randn(2, 3, 64, 64)).logits.sum().backward()
    assert names == {n for n, p in network.named_parameters() if p.grad is None}
    auxiliary = {n for n, _ in network.named_parameters() if n.startswith("auxiliary_head.")}
    assert auxiliary <= names
    assert (
        freeze_unused(network.requires_grad_(True), 64)[:1]
        == sorted(names, key=[n for n, _ in network.named_parameters()].index)[:1]
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_the_backbone_is_told_from_the_head(family, hub):
    network = start(hub(family))
    backbone = backbone_of(network)
    assert backbone is not None
    inside = {id(p) for p in backbone.parameters()}
    assert len(inside) > 10
    for name, parameter in network.named_parameters():
        if name in classifier_keys(family):
            assert id(parameter) not in inside
    freeze_backbone(network)
    train_mode(network, freeze_backbone=True, freeze_batch_norm=True)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert network.training


def test_a_network_that_cannot_recompute_activations_says_so(hub):
    with pytest.raises(ConfigError, match=r"activation_checkpointing: .*MobileNetV2"):
        checkpoint_activations(start(hub("mobilenet_v2")))


# --- MobileViT's processor takes BGR


def test_a_processor_of_blue_first_is_followed_and_saved(hub, tmp_path):
    network = start(hub("mobilevit"))
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "feature_extractor_type": "MobileViTFeatureExtractor",
                "size": {"height": 64, "width": 64},
                "resample": 2,
                "do_center_crop": False,
            }
        )
    )
    preprocess = load_network(str(tmp_path), ModelConfig()).preprocess
    assert preprocess.blue_first
    image = torch.tensor([[[[255, 51, 0]]]], dtype=torch.uint8)
    assert preprocess.normalizer()(image).flatten().tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    told = preprocess.to_dict()
    assert told["image_processor_type"] == "MobileViTImageProcessor"
    assert told["do_flip_channel_order"]
    assert not told["do_center_crop"]
    config = ModelConfig(name=str(tmp_path), input_size=64)
    assert start_network(config, FIVE, 0)[1] == preprocess


@pytest.mark.parametrize(
    ("content", "mean"),
    [
        ({}, 0.485),
        ({"do_normalize": False}, 0.0),
        ({"do_normalize": None}, 0.0),
        ({"do_normalize": True, "image_mean": [0.5, 0.5, 0.5]}, 0.5),
        # It is MobileViT's processor that flips, and it never normalizes.
        ({"do_flip_channel_order": True}, 0.485),
        ({"image_processor_type": "MobileViTImageProcessor", "do_center_crop": False}, 0.0),
    ],
)
def test_normalization_is_what_the_processor_says(content, mean):
    assert Preprocess.from_dict(content).mean[0] == mean
