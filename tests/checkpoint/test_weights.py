"""Weights: what is new and what is kept, what is refused, and that transformers reads ours."""

import json
import shutil

import fsspec
import numpy as np
import pytest
import torch
import transformers
from cocoseg.checkpoint.folder import save_network
from cocoseg.checkpoint.layout import find_checkpoint
from cocoseg.checkpoint.network import load_network, start_network
from cocoseg.errors import ConfigError, DataError
from cocoseg.model.classes import label_settings
from cocoseg.model.config import ModelConfig
from cocoseg.model.preprocess import Preprocess
from cocoseg.model.registry import architecture, names
from cocoseg.taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    ConvNextConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    ViTConfig,
    ViTForImageClassification,
)

CLASSIFIER = {"decode_head.classifier.weight", "decode_head.classifier.bias"}
CURRENT_NAME = "segformer.stages.0.blocks.0.attention.q_proj.weight"
FILE_NAME = "segformer.encoder.block.0.0.attention.self.query.weight"


def taxonomy_of(*names):
    return Taxonomy(tuple(SemanticClass(name) for name in names))


FIVE = taxonomy_of("background", "cat", "dog", "fish", "bird")


def start(name, taxonomy=FIVE, seed=0, **settings):
    return start_network(ModelConfig(name=str(name), **settings), taxonomy, seed)[0]


def differing(a, b):
    """Names of the tensors that are not bit-equal; both have the same names."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return {k for k in a if a[k].shape != b[k].shape or not torch.equal(a[k], b[k])}


@pytest.fixture
def hub(make_network, tmp_path):
    """A folder of five classes as a hub would hold it: FIVE's names, no taxonomy of ours."""
    network = make_network(5)
    network.config.id2label = dict(enumerate(FIVE.names))
    network.config.label2id = {name: i for i, name in enumerate(FIVE.names)}
    network.save_pretrained(tmp_path / "hub")
    return tmp_path / "hub"


@pytest.fixture
def ours(make_network, tmp_path):
    """A checkpoint folder of ours."""
    network = make_network(5)
    network.config.id2label = dict(enumerate(FIVE.names))
    (tmp_path / "ours").mkdir()
    save_network(tmp_path / "ours", network, Preprocess(64), FIVE)
    return tmp_path / "ours"


def rewrite(folder, change):
    """Change the tensors of a saved folder."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


# --- what a training run starts from


def test_of_150_classes_to_81_only_the_classifier_is_new(ade_folder):
    before = SegformerForSemanticSegmentation.from_pretrained(ade_folder)
    after = start(ade_folder, coco_taxonomy())
    assert differing(before, after) == CLASSIFIER
    assert after.decode_head.classifier.weight.shape == (81, 16, 1, 1)
    assert after.decode_head.classifier.bias.shape == (81,)
    assert after.decode_head.classifier.weight.std().item() == pytest.approx(0.02, rel=0.2)
    assert not after.decode_head.classifier.bias.any()


def test_a_new_classifier_comes_with_its_labels_and_ignore_index(ade_folder):
    config = start(ade_folder, coco_taxonomy()).config
    assert config.num_labels == 81
    assert config.id2label == dict(enumerate(coco_taxonomy().names))
    assert config.label2id == {name: i for i, name in config.id2label.items()}
    assert (config.id2label[0], config.id2label[1]) == ("background", "person")
    assert config.semantic_loss_ignore_index == 255


def test_pretrained_weights_keep_their_normalization_and_take_our_size(ade_folder):
    config = ModelConfig(name=str(ade_folder), input_size=128, keep_ratio=True)
    preprocess = start_network(config, FIVE, 0)[1]
    assert preprocess == Preprocess(128, True, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_as_many_classes_of_other_names_get_a_new_classifier(hub):
    other = taxonomy_of("background", "cat", "dog", "fish", "horse")
    before = SegformerForSemanticSegmentation.from_pretrained(hub)
    assert differing(before, start(hub, other)) == CLASSIFIER


def test_the_same_classes_keep_their_classifier(hub):
    before = SegformerForSemanticSegmentation.from_pretrained(hub)
    assert differing(before, start(hub)) == set()


def test_the_order_of_id2label_in_the_file_means_nothing(make_network, tmp_path):
    names = ["background", *(f"class {i}" for i in range(1, 12))]  # "10" sorts before "2"
    network = make_network(12)
    network.config.id2label = dict(enumerate(names))
    network.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["id2label"] = dict(sorted(content["id2label"].items()))
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert differing(network, start(tmp_path, taxonomy_of(*names))) == set()
    assert load_network(str(tmp_path), ModelConfig()).taxonomy.names == tuple(names)


def test_the_new_classifier_follows_the_seed(ade_folder):
    one, same, other = (start(ade_folder, FIVE, seed) for seed in (1, 1, 2))
    assert differing(one, same) == set()
    assert differing(one, other) == {"decode_head.classifier.weight"}  # the bias starts at 0


def test_an_encoder_alone_gets_a_new_head(make_network, tmp_path):
    donor = make_network(5)
    encoder = SegformerForImageClassification(donor.config)
    encoder.segformer.load_state_dict(donor.segformer.state_dict())
    encoder.save_pretrained(tmp_path)
    network = start(tmp_path)
    assert differing(donor.segformer, network.segformer) == set()
    assert network.decode_head.classifier.weight.shape == (5, 16, 1, 1)
    assert differing(network, start(tmp_path)) == set()  # the head follows the seed


@pytest.mark.parametrize("key", ["decode_head.batch_norm.running_mean", FILE_NAME])
def test_a_missing_tensor_is_named(hub, ours, key):
    for folder, load in (
        (hub, lambda: start(hub)),
        (ours, lambda: load_network(str(ours), ModelConfig())),
    ):
        rewrite(folder, lambda weights: weights.pop(key))
        with pytest.raises(DataError, match=rf"1 missing \({CURRENT_OF.get(key, key)}\)"):
            load()


CURRENT_OF = {FILE_NAME: CURRENT_NAME}


def test_half_a_head_is_no_encoder(hub):
    rewrite(hub, lambda weights: [weights.pop(k) for k in list(weights) if "linear_c" in k])
    with pytest.raises(DataError, match="8 missing"):
        start(hub)


def test_a_tensor_left_over_is_named(hub, ours):
    for folder, load in (
        (hub, lambda: start(hub)),
        (ours, lambda: load_network(str(ours), ModelConfig())),
    ):
        rewrite(folder, lambda weights: weights.update({"auxiliary.weight": torch.zeros(3)}))
        with pytest.raises(DataError, match=r"1 left over \(auxiliary.weight\)"):
            load()


def test_a_tensor_of_another_shape_is_named(hub, ours):
    key = "decode_head.batch_norm.weight"
    for folder, load in (
        (hub, lambda: start(hub)),
        (ours, lambda: load_network(str(ours), ModelConfig())),
    ):
        rewrite(folder, lambda weights: weights.update({key: torch.zeros(3)}))
        with pytest.raises(DataError, match=rf"1 of another shape \({key}\)"):
            load()


def test_a_classifier_of_another_size_is_refused_for_inference(ours):
    wrong = {"decode_head.classifier.weight": torch.zeros(9, 16, 1, 1)}
    rewrite(ours, lambda weights: weights.update(wrong))
    with pytest.raises(DataError, match="of another shape"):
        load_network(str(ours), ModelConfig())


@pytest.mark.parametrize("size", [0, 4, 5000])
def test_damaged_weights_are_refused(ours, size):
    file = ours / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    for load in (lambda: start(ours), lambda: load_network(str(ours), ModelConfig())):
        with pytest.raises(DataError, match=r"ours: weights are damaged"):
            load()


def test_another_network_is_refused(tmp_path):
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path)
    for load in (lambda: start(tmp_path), lambda: load_network(str(tmp_path), ModelConfig())):
        with pytest.raises(ConfigError, match="is a vit, of which transformers has no"):
            load()


def test_an_unknown_name_of_the_hub_is_one_clear_error():
    for load in (
        lambda: start("nobody/knows-this"),
        lambda: load_network("nobody/knows-this", ModelConfig()),
    ):
        with pytest.raises(
            ConfigError,
            match=r"(?s)knows-this: is not a folder here, and cannot be loaded.*segformer",
        ):
            load()


def test_an_absent_folder_is_not_looked_up_on_the_hub(tmp_path):
    for load in (
        lambda: start(tmp_path / "absent"),
        lambda: load_network(str(tmp_path / "absent"), ModelConfig()),
    ):
        with pytest.raises(ConfigError, match="absent: no such folder"):
            load()


def test_a_folder_without_a_network_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"holds no config\.json"):
        load_network(str(tmp_path), ModelConfig())


@pytest.mark.parametrize(
    "name",
    [
        *("/runs/bets", "runs/one/best", "RUNN", "", "memory://runs/none", "w.pt"),
        *("here/none", "run/best", "run/last", "checkpoints/step-00000100"),
        *("run/model.safetensors", "./run", "../run"),
    ],
)
def test_a_mistyped_path_is_not_looked_up_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ConfigError, match=f"--checkpoint {name}: no such f"):
        find_checkpoint(name)
    if name.count("/") == 1 and not name.startswith("."):
        with pytest.raises(ConfigError, match=f"{name}: no such folder"):
            start(name)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="--checkpoint file: is a file"):
        find_checkpoint("file")


# --- random weights


def test_random_weights_follow_the_seed():
    one, same, other = (start("segformer-tiny", seed=seed) for seed in (3, 3, 4))
    assert differing(one, same) == set()
    assert differing(one, other) >= {"decode_head.classifier.weight", CURRENT_NAME}


@pytest.mark.parametrize(
    ("size", "millions"),
    # Parameters of the published ADE20K checkpoints (Xie et al. 2021, Table 1; b0 3.8, b1 13.7).
    [("b0", 3.8), ("b1", 13.7), ("b2", 27.5), ("b3", 47.3), ("b4", 64.1), ("b5", 84.7)],
)
def test_sizes_have_the_published_number_of_parameters(size, millions):
    labels = taxonomy_of(*(f"thing {i}" for i in range(150)))
    settings = architecture(f"segformer-{size}")
    settings.update(label_settings(labels))
    with torch.device("meta"):
        network = SegformerForSemanticSegmentation(settings)
    counted = sum(p.numel() for p in network.parameters()) / 1e6
    assert counted == pytest.approx(millions, abs=0.16)


def test_every_name_that_the_config_knows_can_be_built():
    assert len(names()) == 7
    with torch.device("meta"):
        for name in names():
            assert start(name).config.num_labels == 5


@pytest.mark.parametrize("model_type", ["evil", "segformer"])
@pytest.mark.parametrize("trained", [False, True])
def test_python_code_of_a_checkpoint_is_never_run(ours, monkeypatch, trained, model_type):
    def load():
        return start(ours, FIVE) if trained else load_network(str(ours), ModelConfig())

    config = json.loads((ours / "config.json").read_text())
    code = {name: f"evil.{name}" for name in ("AutoConfig", "AutoModelForSemanticSegmentation")}
    config |= {"model_type": model_type, "auto_map": code}
    (ours / "config.json").write_text(json.dumps(config))
    (ours / "evil.py").write_text(f"open({str(ours / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if model_type == "evil":
        with pytest.raises(ConfigError, match=r"Python code of its own .* never run"):
            load()
    else:  # transformers has it
        load()
    assert not (ours / "ran").exists()


def test_a_name_that_no_family_has_is_refused():
    for name in ("segformer-b6", "segformer-", "segformer-tiny-b0"):
        with pytest.raises(ValueError, match=r"knows segformer-tiny, segformer-b0, .*b5"):
            ModelConfig(name=name)


def test_tiny_is_small():
    assert 0.5e6 < sum(p.numel() for p in start("segformer-tiny").parameters()) < 0.54e6


# --- types of numbers


def types(network):
    return {str(v.dtype).removeprefix("torch.") for v in network.state_dict().values()}


def mixed(weights):
    """Cast each tensor to another type than the one before it; counters of batch norms too."""
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.float32)
    return {k: v.to(kinds[i % 4]) for i, (k, v) in enumerate(weights.items())}


CASTS = {
    "float16": lambda weights: {k: v.half() for k, v in weights.items()},  # counters, too
    "bfloat16": lambda w: {k: v.bfloat16() if v.is_floating_point() else v for k, v in w.items()},
    "float64": lambda w: {k: v.double() if v.is_floating_point() else v for k, v in w.items()},
    "mixed": mixed,
}


@pytest.mark.parametrize("kind", CASTS)
def test_weights_of_any_type_are_float32_in_memory(hub, make_network, tmp_path, kind):
    rewrite(hub, lambda weights: weights.update(CASTS[kind](weights)))
    stored = CASTS[kind](make_network(5).state_dict())
    torch.save({"model": stored}, tmp_path / "w.pt")
    config = ModelConfig(name=str(hub), num_classes=5)
    in_file = make_network(5)
    in_file.load_state_dict(stored)  # casts each tensor to the type of the network's own
    in_folder = SegformerForSemanticSegmentation.from_pretrained(hub, dtype=torch.float32)
    for network, expected in (
        (load_network(str(hub), ModelConfig()).network, in_folder),
        (start(hub), in_folder),
        (load_network(str(tmp_path / "w.pt"), config).network, in_file),
    ):
        assert types(network) == {"float32", "int64"}
        assert network.config.dtype == torch.float32
        assert differing(network, expected) == set()


@pytest.mark.parametrize(
    "stored", [{"dtype": "float16"}, {"torch_dtype": "bfloat16"}, {"dtype": "int8"}]
)
def test_the_type_in_a_config_rounds_no_weight(hub, make_network, stored):
    config = json.loads((hub / "config.json").read_text())
    config.pop("dtype")
    (hub / "config.json").write_text(json.dumps(config | stored))
    for network in (load_network(str(hub), ModelConfig()).network, start(hub)):
        assert types(network) == {"float32", "int64"}
        assert differing(network, make_network(5)) == set()


def test_a_backbone_with_a_config_of_its_own_is_float32_too(tmp_path):
    backbone = ConvNextConfig(
        hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], out_features=["stage3", "stage4"]
    )
    settings = UperNetConfig(
        backbone_config=backbone,
        num_labels=5,
        hidden_size=8,
        use_auxiliary_head=False,
        pool_scales=[1],
    )
    settings.id2label = dict(enumerate(FIVE.names))
    torch.manual_seed(0)
    network = AutoModelForSemanticSegmentation.from_config(settings)
    network.save_pretrained(tmp_path / "plain")
    network.half().save_pretrained(tmp_path / "half")
    told = json.loads((tmp_path / "half" / "config.json").read_text())
    told["backbone_config"]["dtype"] = "float16"
    for folder in ("plain", "half"):
        (tmp_path / folder / "config.json").write_text(json.dumps(told))
        loaded = load_network(str(tmp_path / folder), ModelConfig()).network
        assert types(loaded) == {"float32", "int64"}
        save_network(tmp_path / "saved", loaded, Preprocess(64), FIVE)
        saved = json.loads((tmp_path / "saved" / "config.json").read_text())
        assert saved["dtype"] == saved["backbone_config"]["dtype"] == "float32"
        weights = load_file(tmp_path / folder / "model.safetensors")
        for key, value in load_file(tmp_path / "saved" / "model.safetensors").items():
            assert torch.equal(value, weights[key].to(value.dtype))


def test_values_out_of_range_are_as_loaded(hub):
    key, values = "decode_head.classifier.bias", [torch.inf, -torch.inf, torch.nan, 65504.0, 6e-8]
    stored = torch.tensor(values, dtype=torch.float16)
    rewrite(hub, lambda weights: weights.update({key: stored}))
    for network in (load_network(str(hub), ModelConfig()).network, start(hub)):
        bias = network.decode_head.classifier.bias
        torch.testing.assert_close(bias.data, stored.float(), rtol=0, atol=0, equal_nan=True)


def test_a_new_classifier_of_half_precision_weights_is_drawn_in_float32(ade_folder, tmp_path):
    shutil.copytree(ade_folder, tmp_path / "half")
    rewrite(tmp_path / "half", lambda w: w.update(CASTS["bfloat16"](w)))
    expected = start(ade_folder).decode_head.classifier
    network = start(tmp_path / "half")
    assert types(network) == {"float32", "int64"}
    assert torch.equal(network.decode_head.classifier.weight, expected.weight)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_what_is_saved_is_float32_and_says_so(hub, tmp_path, half):
    network = AutoModelForSemanticSegmentation.from_pretrained(hub).to(half)
    network.save_pretrained(hub)
    assert json.loads((hub / "config.json").read_text())["dtype"] == str(half)[len("torch.") :]
    loaded = load_network(str(hub), ModelConfig())
    save_network(tmp_path, loaded.network, loaded.preprocess, loaded.taxonomy)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    theirs = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
    assert types(theirs) == {"float32", "int64"}
    assert differing(theirs, network.float()) == set()


def test_half_precision_that_transformers_returns_is_float32_too(ours, make_network, monkeypatch):
    """Buffers that a network makes by itself, say."""
    plain = AutoModelForSemanticSegmentation.from_pretrained

    def returns_half(*arguments, **options):
        network, report = plain(*arguments, **options)
        return network.half(), report

    monkeypatch.setattr(AutoModelForSemanticSegmentation, "from_pretrained", returns_half)
    for network in (load_network(str(ours), ModelConfig()).network, start(ours)):
        assert types(network) == {"float32", "int64"}
        assert differing(network, make_network(5).half().float()) == set()


def test_a_type_that_is_none_is_one_clear_error(hub):
    config = json.loads((hub / "config.json").read_text())
    (hub / "config.json").write_text(json.dumps(config | {"dtype": "auto"}))
    for load in (lambda: start(hub), lambda: load_network(str(hub), ModelConfig())):
        with pytest.raises(ConfigError, match=r"hub: cannot be loaded: .*auto"):
            load()


# --- the saved folder


def test_a_saved_network_comes_back_bit_equal(make_network, ours):
    loaded = load_network(str(ours), ModelConfig())
    assert differing(make_network(5), loaded.network) == set()
    assert (loaded.preprocess, loaded.taxonomy) == (Preprocess(64), FIVE)
    assert not loaded.network.training


def test_all_of_the_preprocessing_comes_back(ours):
    mine = Preprocess(96, True, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    save_network(ours, load_network(str(ours), ModelConfig()).network, mine, FIVE)
    assert load_network(str(ours), ModelConfig()).preprocess == mine


def test_category_ids_come_back(tmp_path):
    network, preprocess = start_network(
        ModelConfig(name="segformer-tiny", input_size=64), coco_taxonomy(), 0
    )
    save_network(tmp_path, network, preprocess, coco_taxonomy())
    assert load_network(str(tmp_path), ModelConfig()).taxonomy == coco_taxonomy()


def test_saved_weights_have_the_names_that_transformers_4_reads(ours):
    names = set(load_file(ours / "model.safetensors"))
    assert FILE_NAME in names
    assert "decode_head.linear_c.0.proj.weight" in names
    assert not any(".stages." in name for name in names)


def test_transformers_reads_a_saved_folder_by_itself(make_network, ours):
    network, report = AutoModelForSemanticSegmentation.from_pretrained(
        ours, output_loading_info=True
    )
    assert not any(report[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert network.config.id2label == dict(enumerate(FIVE.names))
    assert differing(network, make_network(5)) == set()


@pytest.mark.usefixtures("image_processor")
def test_transformers_reads_the_saved_image_processor(ours):
    processor = AutoImageProcessor.from_pretrained(ours)
    assert type(processor).__name__.startswith("SegformerImageProcessor")
    assert processor.do_reduce_labels is False
    assert (processor.size["height"], processor.size["width"]) == (64, 64)
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    assert processor(photo, return_tensors="pt")["pixel_values"].shape == (1, 3, 64, 64)


@pytest.mark.usefixtures("image_processor")
def test_the_pipeline_of_transformers_just_works(ours):
    photo = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    found = transformers.pipeline("image-segmentation", model=str(ours))(Image.fromarray(photo))
    assert len(found) > 1
    assert {entry["label"] for entry in found} <= set(FIVE.names)
    assert {entry["mask"].size for entry in found} == {(40, 30)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("taxonomy.json", "{broken"),
        ("taxonomy.json", "[]"),
        ("taxonomy.json", '{"classes": [{"train_id": 1, "name": "cat", "category_ids": []}]}'),
        ("preprocessor_config.json", "{broken"),
        ("taxonomy.json", "[" * 100_000),
        ("taxonomy.json", "5"),
        ("preprocessor_config.json", '{"size": "large"}'),
        ("preprocessor_config.json", '{"size": {"height": 0, "width": 0}}'),
        ("preprocessor_config.json", '{"size": -64}'),
        ("preprocessor_config.json", '{"size": true}'),
        ("preprocessor_config.json", "[" * 100_000),
        ("preprocessor_config.json", "[]"),
        ("preprocessor_config.json", '{"image_mean": ["a", "b", "c"]}'),
        ("preprocessor_config.json", '{"image_mean": [0.5, 0.5]}'),
        ("preprocessor_config.json", '{"image_mean": [NaN, 0, 0]}'),
        ("preprocessor_config.json", '{"image_std": [0.2, 0, 0.2]}'),
    ],
)
def test_a_broken_file_beside_the_weights_is_named(ours, name, content):
    (ours / name).write_text(content)
    with pytest.raises(DataError, match=name):
        load_network(str(ours), ModelConfig())


@pytest.mark.parametrize(
    "content",
    [
        *("5", "[]", "[" * 100_000, '{"model_type": 5}'),
        '{"model_type": "segformer", "id2label": 5}',
        '{"model_type": "segformer", "depths": "x"}',
        '{"model_type": "segformer", "hidden_sizes": [0, 0, 0, 0]}',
        '{"model_type": "segformer", "hidden_sizes": [-1, 2, 3, 4]}',
    ],
)
def test_a_broken_description_of_a_network_is_refused(ours, content):
    (ours / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_network(str(ours), ModelConfig())


def test_a_taxonomy_that_contradicts_the_network_is_refused(ours):
    (ours / "taxonomy.json").write_text(json.dumps(coco_taxonomy().to_dict()))
    with pytest.raises(DataError, match="has 81 classes, the network 5"):
        load_network(str(ours), ModelConfig())


def test_labels_and_defaults_stand_in_for_what_another_program_left_out(hub):
    loaded = load_network(str(hub), ModelConfig())
    assert loaded.taxonomy.names == FIVE.names
    assert loaded.preprocess == Preprocess(640)  # model.input_size


# --- runs


@pytest.fixture
def run(ours, tmp_path):
    """A run with two checkpoints, told apart by their input size; ``last`` is 96, ``best`` 64."""
    run = tmp_path / "run"
    for step, size in (("step-1", 64), ("step-2", 96)):
        folder = run / "checkpoints" / step
        shutil.copytree(ours, folder)
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"size": size}))
    (run / "best").symlink_to("checkpoints/step-1")
    (run / "last").symlink_to("checkpoints/step-2")
    return run


def loaded_size(checkpoint):
    return load_network(str(checkpoint), ModelConfig()).preprocess.input_size


def test_a_run_means_its_best_and_else_its_last_checkpoint(run):
    assert loaded_size(run) == 64
    (run / "best").unlink()
    assert loaded_size(run) == 96


def test_a_link_of_a_run_and_a_checkpoint_of_it_can_be_named_too(run):
    assert loaded_size(run / "last") == 96
    assert loaded_size(run / "checkpoints" / "step-1") == 64
    assert loaded_size(f"file://{run}/checkpoints/step-2") == 96
    assert loaded_size(f"file://{run}") == 64


def test_a_run_copied_from_an_object_store_has_pointer_files(run):
    (run / "best").unlink()
    (run / "best").write_text("checkpoints/step-2\n")
    assert loaded_size(run) == 96


def test_a_run_on_an_object_store(run):
    store = fsspec.filesystem("memory")
    for file in (run / "checkpoints").rglob("*.*"):
        store.pipe_file(f"/runs/one/{file.relative_to(run)}", file.read_bytes())
    store.pipe_file("/runs/one/last", b"checkpoints/step-2\n")
    assert loaded_size("memory://runs/one") == 96
    store.pipe_file("/runs/one/best", b"checkpoints/step-1\n")
    assert loaded_size("memory://runs/one") == 64
    assert loaded_size("memory://runs/one/checkpoints/step-2") == 96


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="without a finished checkpoint"):
        load_network(str(tmp_path), ModelConfig())


def test_what_is_no_run_stays_what_it_is(ours):
    assert find_checkpoint(str(ours)) == str(ours)
    assert find_checkpoint("nvidia/some-name") == "nvidia/some-name"


def test_loaded_weights_lie_in_memory_of_their_own(tmp_path):
    """As new ones do: a sum over tokens of another alignment differs in its last bits."""
    network, preprocess = start_network(
        ModelConfig(name="segformer-tiny", input_size=32), coco_taxonomy(), 0
    )
    save_network(tmp_path, network, preprocess, coco_taxonomy())
    loaded = load_network(str(tmp_path), ModelConfig()).network
    for tensor in (*loaded.parameters(), *loaded.buffers()):
        assert tensor.data_ptr() % 64 == 0
