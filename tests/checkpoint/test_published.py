"""Published layouts of SegFormer: what is converted computes the same, what cannot is refused."""

import pytest
import torch
from cocoseg.checkpoint.network import load_network, start_network
from cocoseg.checkpoint.published import published_name, to_transformers
from cocoseg.errors import ConfigError, DataError
from cocoseg.model.config import ModelConfig
from cocoseg.model.registry import architecture, names
from cocoseg.taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from safetensors.torch import save_file
from transformers import SegformerForSemanticSegmentation

from .published import Mmseg, MmsegBackbone, Nvlabs, NvlabsBackbone, randomized

PIXELS = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(7))
SEVEN = Taxonomy(tuple(SemanticClass(f"c{i}") for i in range(7)))


def write(folder, weights, name="w.pth"):
    file = folder / name
    if name.endswith(".safetensors"):
        save_file({key: value.contiguous() for key, value in weights.items()}, file)
    else:
        torch.save(weights, file)
    return str(file)


def start(path, taxonomy=SEVEN):
    return start_network(ModelConfig(name=path, input_size=64), taxonomy, 0)[0].eval()


def levels_of(network, pixels):
    found = network.segformer(pixel_values=pixels, output_hidden_states=True)
    return [level for level in found.hidden_states if level.ndim == 4][-4:]


def assert_close(got, expected):
    """Within what ε = 1e-5 instead of 1e-6 in layer norms and float32 explain."""
    assert got.shape == expected.shape
    assert expected.std() > 0.05
    assert (got - expected).abs().max() < 2e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_a_segformer_of_nvlabs_gives_its_own_logits(tmp_path, file):
    theirs = randomized(Nvlabs(7))
    loaded = load_network(write(tmp_path, theirs.state_dict(), file), ModelConfig(input_size=64))
    assert_close(loaded.network(pixel_values=PIXELS).logits, theirs(PIXELS))
    assert loaded.taxonomy.num_classes == 7


@torch.no_grad()
def test_blocks_beyond_the_first_keep_their_order(tmp_path):
    theirs = randomized(Nvlabs(7, depths=(2, 1, 3, 2)))
    settings = architecture("segformer-tiny")
    settings.depths = [2, 1, 3, 2]
    settings.save_pretrained(tmp_path)
    path = write(tmp_path, theirs.state_dict())
    loaded = load_network(path, ModelConfig(name=str(tmp_path), input_size=64))
    assert_close(loaded.network(pixel_values=PIXELS).logits, theirs(PIXELS))


@torch.no_grad()
@pytest.mark.parametrize("kind", [NvlabsBackbone, MmsegBackbone])
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_an_encoder_alone_starts_a_training(tmp_path, kind, prefix):
    theirs = randomized(kind((1, 1, 1, 1)))
    weights = {prefix + name: value for name, value in theirs.state_dict().items()}
    network = start(write(tmp_path, weights))
    for got, expected in zip(levels_of(network, PIXELS), theirs(PIXELS), strict=True):
        assert_close(got, expected)
    assert network.decode_head.classifier.weight.shape[0] == 7


@torch.no_grad()
def test_the_classifier_of_imagenet_is_left_out(tmp_path):
    theirs = randomized(NvlabsBackbone((1, 1, 1, 1), classes=1000))
    network = start(write(tmp_path, theirs.state_dict(), "mit_b0.pth"))
    for got, expected in zip(levels_of(network, PIXELS), theirs(PIXELS), strict=True):
        assert_close(got, expected)


@torch.no_grad()
def test_of_a_segformer_of_mmsegmentation_the_encoder_starts_a_training(tmp_path, caplog):
    theirs = randomized(Mmseg(7))
    path = write(tmp_path, {"meta": {"epoch": 3}, "state_dict": theirs.state_dict()})
    network = start(path)
    for got, expected in zip(levels_of(network, PIXELS), theirs.backbone(PIXELS), strict=True):
        assert_close(got, expected)
    assert "using the encoder only" in caplog.text
    with pytest.raises(DataError, match="is a SegFormer of mmsegmentation, whose decode head"):
        load_network(path, ModelConfig())


@torch.no_grad()
def test_a_segformer_of_nvlabs_keeps_all_but_the_classifier_in_a_training(tmp_path):
    theirs = randomized(Nvlabs(7))
    path = write(tmp_path, theirs.state_dict())
    network, loaded = start(path), load_network(path, ModelConfig(input_size=64)).network
    before, after = loaded.state_dict(), network.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decode_head.classifier.weight", "decode_head.classifier.bias"}


@torch.no_grad()
def test_weights_of_cocos_classes_keep_their_classifier(tmp_path):
    theirs = randomized(Nvlabs(81))
    network = start(write(tmp_path, theirs.state_dict()), coco_taxonomy())
    assert_close(network(pixel_values=PIXELS).logits, theirs(PIXELS))


def test_an_encoder_alone_predicts_nothing(tmp_path):
    for kind in (NvlabsBackbone, MmsegBackbone):
        path = write(tmp_path, kind((1, 1, 1, 1)).state_dict())
        with pytest.raises(DataError, match="an encoder without a decode head: it can start"):
            load_network(path, ModelConfig())


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("current", [False, True])
def test_every_published_size_is_known_by_its_shapes(name, current):
    with torch.device("meta"):
        network = SegformerForSemanticSegmentation(architecture(name))
        weights = network.state_dict()
        if not current:
            weights = {nvlabs_name(key): value for key, value in weights.items()}
    assert published_name(to_transformers("", weights, encoder_suffices=False)) == name


def nvlabs_name(key):
    """NVlabs' name of what sizes are read from; other weights keep theirs."""
    root, _, *parts = key.split(".")
    if root != "segformer":
        return key
    stage, *module, parameter = parts
    if module == ["patch_embeddings", "proj"]:
        return f"backbone.patch_embed{int(stage) + 1}.proj.{parameter}"
    if module[0] == "blocks":
        return f"backbone.block{int(stage) + 1}.{module[1]}.{'.'.join(module[2:])}.{parameter}"
    return key


def test_other_widths_and_depths_are_no_published_size(tmp_path):
    weights = Nvlabs(7, depths=(1, 2, 1, 1)).state_dict()
    path = write(tmp_path, weights)
    assert published_name(to_transformers(path, weights, encoder_suffices=False)) is None
    with pytest.raises(ConfigError, match=r"not those of a published SegFormer \(segformer-tiny"):
        start(path)


def test_a_name_that_contradicts_the_shapes_is_refused(tmp_path):
    path = write(tmp_path, Nvlabs(7).state_dict())
    with pytest.raises(ConfigError, match=r"is a segformer-tiny .* set model\.name=segformer-tiny"):
        load_network(path, ModelConfig(name="segformer-b0"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("backbone.block2.0.attn.q.bias"), "1 missing"),
        (lambda w: w.update({"backbone.block2.0.attn.extra": torch.zeros(2)}), "1 left over"),
        (lambda w: w.update({"backbone.block2.0.attn.kv.bias": torch.zeros(63)}), "left over"),
        (lambda w: w.update({"backbone.block2.0.attn.kv.bias": torch.tensor(1.0)}), "left over"),
        (lambda w: w.update({"backbone.block2.0.attn.kv.bias": torch.zeros(66)}), "another shape"),
        (lambda w: w.update({"backbone.norm1.bias": torch.zeros(17)}), "1 of another shape"),
        (lambda w: w.update({"decode_head.linear_pred.bias": torch.zeros(9)}), "another shape"),
        (lambda w: w.update({"backbone.block2.99999.attn.q.bias": torch.zeros(2)}), "1 left over"),
        (lambda w: w.update({"norm1.bias": torch.zeros(16)}), r"layer_norm\.0\.bias twice"),
        (lambda w: w.update({"decode_head.linear_pred.weight": torch.tensor(1.0)}), "shape"),
    ],
)
def test_what_does_not_fit_is_one_message(tmp_path, change, said):
    weights = dict(Nvlabs(7).state_dict())
    change(weights)
    with pytest.raises(DataError, match=said):
        load_network(write(tmp_path, weights), ModelConfig(name="segformer-tiny", num_classes=7))
