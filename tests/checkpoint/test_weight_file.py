"""Lone files of weights: where the weights are found in them, what is refused, what runs."""

import argparse
import collections
import io
import logging
import pathlib
import pickle
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from cocoseg.checkpoint.network import load_network, start_network
from cocoseg.checkpoint.weight_file import read_weights
from cocoseg.errors import ConfigError, DataError
from cocoseg.model.config import ModelConfig
from cocoseg.model.preprocess import Preprocess
from cocoseg.taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from safetensors.torch import load_file, save_file

CLASSIFIER = {"decode_head.classifier.weight", "decode_head.classifier.bias"}
CURRENT_NAME = "segformer.stages.0.blocks.0.attention.q_proj.weight"
FILE_NAME = "segformer.encoder.block.0.0.attention.self.query.weight"
FIVE = Taxonomy(tuple(SemanticClass(name) for name in ("background", "cat", "dog", "fish", "bird")))


def start(name, taxonomy=FIVE, seed=0, **settings):
    return start_network(ModelConfig(name=str(name), **settings), taxonomy, seed)[0]


def differing(a, b):
    """Names of the tensors that are not bit-equal; both have the same names."""
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    return {k for k in a if a[k].shape != b[k].shape or not torch.equal(a[k], b[k])}


def bare(make_network, folder, wrap=lambda weights: weights, names="current"):
    """Write a .pt of a five-class network and the architecture it needs; return both."""
    network = make_network(5)
    network.save_pretrained(folder / "architecture")
    weights = network.state_dict()
    if names == "file":
        weights = load_file(folder / "architecture" / "model.safetensors")
    (folder / "architecture" / "model.safetensors").unlink()
    torch.save(wrap(dict(weights)), folder / "weights.pt")
    config = ModelConfig(name=str(folder / "architecture"), num_classes=5, input_size=96)
    return network, folder / "weights.pt", config


def prefixed(prefix, weights):
    return {prefix + name: value for name, value in weights.items()}


LIGHTNING = {
    "epoch": 3,
    "global_step": 120,
    "pytorch-lightning_version": "2.5.1",
    "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 4}}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'val'}": {"best_model_score": torch.tensor(0.7)}},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}],
    "lr_schedulers": [],
    "hparams_name": "kwargs",
    "hyper_parameters": {"lr": 0.1, "out": pathlib.PosixPath("runs/a")},
}
WRAPPERS = {
    "raw": lambda w: w,
    "model": lambda w: {"model": w, "epoch": 3},
    "model_state_dict": lambda w: {"epoch": 3, "model_state_dict": w, "optimizer": {"lr": 0.1}},
    "state_dict": lambda w: {"state_dict": w},
    "module.": lambda w: prefixed("module.", w),
    "model, module.": lambda w: {"model": prefixed("module.", w)},
    "model is a configuration": lambda w: {"model": {"size": "b0"}, "state_dict": w},
    "beside counters": lambda w: {"epoch": 3, "best": torch.tensor(0.5), **w},
    "compiled": lambda w: prefixed("_orig_mod.", w),
    "compiled DDP": lambda w: {"state_dict": prefixed("module._orig_mod.", w)},
    "a part compiled": lambda w: {
        name.replace("segformer.", "segformer._orig_mod."): value for name, value in w.items()
    },
    "Lightning": lambda w: LIGHTNING | {"state_dict": prefixed("model.", w)},
    "Lightning, net": lambda w: LIGHTNING | {"state_dict": prefixed("net.", w)},
    "Lightning, nested": lambda w: (
        LIGHTNING
        | {
            "state_dict": {
                **prefixed("model.net._orig_mod.", w),
                "criterion.weight": torch.ones(5),
                "val_metrics.confmat": torch.ones(5, 5),
                "dice_loss.class_weights": torch.ones(5),
            }
        }
    ),
    "timm": lambda w: {
        "epoch": 7,
        "arch": "segformer_b0",
        "state_dict": w,
        "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []},
        "args": argparse.Namespace(lr=0.1, output=pathlib.PosixPath("out")),
        "version": 2,
        "metric": np.float64(71.3),
        "amp_scaler": {"scale": 65536.0},
    },
    "mmseg": lambda w: {
        "meta": {"epoch": 3, "iter": 8, "CLASSES": ("a", "b"), "PALETTE": [[1, 2, 3]]},
        "state_dict": w,
        "optimizer": {"state": {}, "param_groups": []},
    },
    "MMCV's EMA": lambda w: {
        "meta": {},
        "state_dict": w | {f"ema_{k.replace('.', '_')}": torch.zeros_like(v) for k, v in w.items()},
    },
    "MMEngine's EMA": lambda w: {
        "message_hub": {"log_scalars": {}},
        "state_dict": w,
        "ema_state_dict": prefixed("module.", zeros(w)) | {"steps": torch.tensor(3)},
    },
    "EMA of timm": lambda w: {"state_dict": zeros(w), "state_dict_ema": w},
    "EMA of torchvision": lambda w: {
        "model": zeros(w),
        "model_ema": prefixed("module.", w) | {"n_averaged": torch.tensor(9)},
        "args": argparse.Namespace(),
    },
    "EMA of RT-DETR": lambda w: {"model": zeros(w), "ema": {"module": w, "updates": 100}},
    "EMA beside the network": lambda w: {
        "state_dict": prefixed("model.", zeros(w)) | prefixed("ema.module.", w)
    },
    "EMA of ema_pytorch": lambda w: (
        prefixed("online_model.", zeros(w))
        | prefixed("ema_model.", w)
        | {"initted": torch.tensor(True), "step": torch.tensor(5)}
    ),
    "AveragedModel": lambda w: prefixed("module.", w) | {"n_averaged": torch.tensor(9)},
    "EMA without statistics": lambda w: {
        "state_dict": w,
        "state_dict_ema": {k: v for k, v in zeros(w).items() if "running" not in k},
    },
    "twice the same": lambda w: {"state_dict": prefixed("model.", w) | prefixed("net.", w)},
}
"""Each gives the weights that are passed to it; zeros are those that must not be read."""


def zeros(weights):
    return {name: torch.zeros_like(value) for name, value in weights.items()}


@pytest.mark.parametrize(
    ("wrapper", "names"), [*((wrapper, "current") for wrapper in WRAPPERS), ("model", "file")]
)
def test_a_bare_file_loads_however_it_was_wrapped(make_network, tmp_path, wrapper, names):
    network, path, config = bare(make_network, tmp_path, WRAPPERS[wrapper], names)
    assert (CURRENT_NAME if names == "current" else FILE_NAME) in read_weights(str(path))
    loaded = load_network(str(path), config)
    assert differing(network, loaded.network) == set()
    assert not loaded.network.training
    assert loaded.preprocess == Preprocess(96)
    assert loaded.taxonomy.names[:3] == ("background", "class 1", "class 2")


@pytest.mark.parametrize("wrapper", ["EMA of timm", "EMA beside the network", "EMA of RT-DETR"])
def test_the_choice_of_averaged_weights_is_logged(make_network, tmp_path, wrapper, caplog):
    caplog.set_level(logging.INFO)
    _, path, config = bare(make_network, tmp_path, WRAPPERS[wrapper])
    load_network(str(path), config)
    assert "contains plain and averaged weights (EMA): using the averaged ones" in caplog.text


def test_incomplete_averaged_weights_are_logged(make_network, tmp_path, caplog):
    _, path, config = bare(make_network, tmp_path, WRAPPERS["EMA without statistics"])
    load_network(str(path), config)
    assert "averaged weights (EMA) are incomplete: using the plain ones" in caplog.text


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pth", ".safetensors"])
@pytest.mark.parametrize("wrapper", ["raw", "Lightning, nested"])
def test_a_bare_file_may_have_any_usual_suffix(make_network, tmp_path, suffix, wrapper):
    network, path, config = bare(make_network, tmp_path, WRAPPERS[wrapper])
    if suffix == ".safetensors":
        content = WRAPPERS[wrapper](network.state_dict())
        content = content.get("state_dict", content)
        save_file({k: v.clone() for k, v in content.items()}, tmp_path / "w.safetensors")
    else:
        path.rename(tmp_path / f"w{suffix}")
    loaded = load_network(str(tmp_path / f"w{suffix}"), config)
    assert differing(network, loaded.network) == set()


@pytest.mark.parametrize("legacy", [False, True])
def test_the_format_before_pytorch_1_6_loads(make_network, tmp_path, legacy):
    network, path, config = bare(make_network, tmp_path)
    content = LIGHTNING | {"state_dict": network.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert differing(network, load_network(str(path), config).network) == set()


def test_with_the_default_name_the_shapes_say_which_network_it_is(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    network = start("segformer-tiny")
    torch.save(network.state_dict(), tmp_path / "w.pt")
    loaded = load_network(str(tmp_path / "w.pt"), ModelConfig(input_size=64))
    assert differing(network, loaded.network) == set()
    assert "loaded as segformer-tiny, according to the shapes of its weights" in caplog.text


def test_a_training_starts_from_a_lone_file(tmp_path):
    network = start("segformer-tiny", coco_taxonomy())
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    assert differing(network, start(tmp_path / "w.safetensors", coco_taxonomy())) == set()
    changed = differing(network, start(tmp_path / "w.safetensors"))
    assert changed == CLASSIFIER


def test_of_several_networks_none_is_chosen(make_network, tmp_path):
    def two(weights):
        return {"state_dict": prefixed("model.", zeros(weights)) | prefixed("net.", weights)}

    _, path, config = bare(make_network, tmp_path, two)
    with pytest.raises(DataError, match=r"contains several networks, under net\. and model\."):
        load_network(str(path), config)


def test_weights_of_another_module_are_left_over(make_network, tmp_path):
    def with_projection(weights):
        return {"state_dict": prefixed("model.", weights) | {"projector.weight": torch.ones(2)}}

    _, path, config = bare(make_network, tmp_path, with_projection)
    with pytest.raises(DataError, match=r"1 left over \(projector\.weight\)"):
        load_network(str(path), config)


def test_a_name_that_occurs_twice_is_refused(make_network, tmp_path):
    name = "decode_head.classifier.bias"
    both = lambda w: w | {f"module.{name}": torch.zeros(5)}  # noqa: E731
    _, path, config = bare(make_network, tmp_path, both)
    with pytest.raises(DataError, match=rf"contains {name} twice"):
        load_network(str(path), config)


def test_a_bare_file_of_81_classes_means_coco(tmp_path):
    network = start("segformer-tiny", coco_taxonomy())
    torch.save(network.state_dict(), tmp_path / "w.pth")
    loaded = load_network(str(tmp_path / "w.pth"), ModelConfig(name="segformer-tiny"))
    assert loaded.taxonomy == coco_taxonomy()
    assert differing(network, loaded.network) == set()


def test_a_bare_file_may_lie_on_an_object_store(make_network, tmp_path):
    network, path, config = bare(make_network, tmp_path)
    fsspec.filesystem("memory").pipe_file("/weights-test/w.pt", path.read_bytes())
    loaded = load_network("memory://weights-test/w.pt", config)
    assert differing(network, loaded.network) == set()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("decode_head.batch_norm.weight"), "1 missing .decode_head.batch_norm.w"),
        (lambda w: w.update(strange=torch.zeros(1)), "1 left over .strange"),
        (
            lambda w: w.update({"decode_head.batch_norm.weight": torch.zeros(3)}),
            "1 of another shape .decode_head.batch_norm.weight",
        ),
        (
            lambda w: w.update({"decode_head.classifier.bias": torch.zeros(3)}),
            "1 of another shape .decode_head.classifier.bias",
        ),
        (lambda w: [w.pop(k) for k in CLASSIFIER], "2 missing"),
    ],
)
def test_a_bare_file_that_does_not_fit_is_refused(make_network, tmp_path, change, said):
    _, path, config = bare(make_network, tmp_path, lambda w: [change(w), w][1])
    with pytest.raises(DataError, match=said):
        load_network(str(path), config)


def test_a_bare_file_of_another_size_is_refused(make_network, tmp_path):
    _, path, _ = bare(make_network, tmp_path)
    with pytest.raises(DataError, match=r"weights\.pt as segformer-tiny: weights do not fit"):
        load_network(str(path), ModelConfig(name="segformer-tiny", num_classes=5))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, form):
    content = {"model": {"decode_head.classifier.bias": Hostile(tmp_path / "ran")}}
    if form == "torch":
        torch.save(content, tmp_path / "w.pt")
    else:
        (tmp_path / "w.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(
        DataError,
        match=r"w\.pt: (contains an object of getattr|is not a file that torch.save wrote: Unsupp)",
    ):
        load_network(str(tmp_path / "w.pt"), ModelConfig(name="segformer-tiny"))
    assert not (tmp_path / "ran").exists()


HARMLESS = {
    "Namespace": argparse.Namespace(inner=argparse.Namespace(a=1)),
    "path": pathlib.PurePosixPath("a/b"),
    "path of Windows": pathlib.PureWindowsPath("C:/a"),
    "scalar": np.float32(0.5),
    "integer": np.int64(5),
    "bool": np.bool_(True),
    "ordered": collections.OrderedDict(a=1),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_harmless_classes_are_no_obstacle(tmp_path, kind):
    file = tmp_path / "w.pt"
    torch.save({"model": {"a.b": torch.ones(2)}, "x": HARMLESS[kind]}, file)
    assert read_weights(str(file))["a.b"].tolist() == [1, 1]


def test_what_stands_for_a_harmless_class_keeps_and_runs_nothing(tmp_path):
    """A dtype that NumPy itself would fail of, and a path of another operating system."""
    broken = b"\x80\x02}(X\x01\x00\x00\x00xcnumpy\ndtype\n(K\x01K\x02K\x03tR(K\x07tb"
    broken += b"X\x01\x00\x00\x00ycpathlib\nWindowsPath\n(tRu."
    zip_of(tmp_path / "w.pt", broken)
    with pytest.raises(DataError, match="contains no weights"):
        read_weights(str(tmp_path / "w.pt"))


class Strange:
    pass


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (Strange(), r"[\w.]*Strange"),
        (np.ones(3), r"numpy\.[\w.]*_reconstruct"),
        (collections.deque(), r"collections\.deque"),
        (torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
        (print, "print"),
    ],
)
@pytest.mark.parametrize("legacy", [False, True])
def test_another_class_is_refused_by_its_name(tmp_path, content, name, legacy):
    file = tmp_path / "w.ckpt"
    torch.save(
        {"hyper_parameters": {"x": content}, "state_dict": {"a.b": torch.ones(2)}},
        file,
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(DataError, match=rf"w\.ckpt: contains an object of {name}, .*torch\.save"):
        read_weights(str(file))


def test_deep_nesting_and_cycles_end(tmp_path):
    nested = b"\x80\x02" + b"}X\x05\x00\x00\x00model" * 50_000 + b"}" + b"s" * 50_000 + b"."
    itself = b"\x80\x02}q\x00(X\x05\x00\x00\x00modelh\x00X\x03\x00\x00\x00emah\x00u."
    for content in (nested, itself):
        zip_of(tmp_path / "w.pt", content)
        with pytest.raises(DataError, match="contains no weights"):
            read_weights(str(tmp_path / "w.pt"))


def zip_of(file, pickled):
    """Write a file as `torch.save` does, with a pickle of our own."""
    torch.save({}, file)
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([1.0, 2.0], "a.b is of type list, not a tensor"),
        ("text", "a.b is of type str, not a tensor"),
        (None, "a.b is of type NoneType, not a tensor"),
        (torch.ones(2, 2).to_sparse(), "a.b is not a dense tensor"),
        (torch.ones(2, dtype=torch.complex64), "a.b is not a dense tensor"),
        (torch.empty(2, device="meta"), "a.b is not a dense tensor"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_value_that_is_no_dense_tensor_is_refused(tmp_path, value, said):
    torch.save({"state_dict": {"c.d": torch.ones(2), "a.b": value}}, tmp_path / "w.pt")
    with pytest.raises(DataError, match=rf"w\.pt: {said}"):
        read_weights(str(tmp_path / "w.pt"))


@pytest.mark.parametrize(
    "content", [b"", b"\x10", b"PK\x03\x04", b"\x08" + b"\x00" * 7 + b"{broken!"]
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.safetensors: is not a safetensors file"):
        read_weights(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut", b"\x80\x02}q"])
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(DataError, match=r"w\.pt: is not a file that torch.save wrote"):
        read_weights(str(tmp_path / "w.pt"))


@pytest.mark.parametrize("content", [[1, 2], {"model": {"lr": 0.1}}, {"epoch": 3}, 7])
def test_other_content_than_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(DataError, match="contains no weights: expected tensors by name"):
        read_weights(str(tmp_path / "w.pt"))


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"w\.pt: no such file"):
        load_network(str(tmp_path / "w.pt"), ModelConfig(name="segformer-tiny"))


def test_the_training_state_of_a_checkpoint_is_no_file_of_weights(tmp_path):
    buffer = io.BytesIO()
    torch.save({"step": 7, "optimizer": {"state": {}}}, buffer)
    (tmp_path / "training_state.pt").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="contains no weights"):
        read_weights(str(tmp_path / "training_state.pt"))


def test_averaged_weights_beside_plain_ones_in_one_state(make_network, tmp_path, caplog):
    """As Lightning saves a module that holds PyTorch's AveragedModel, with its counter."""

    def wrap(weights):
        averaged = {
            name: value + 1 if value.is_floating_point() else value
            for name, value in weights.items()
        }
        counter = {"ema_model.n_averaged": torch.tensor(7)}
        both = prefixed("model.", weights) | prefixed("ema_model.module.", averaged) | counter
        return {**LIGHTNING, "state_dict": both}

    network, path, config = bare(make_network, tmp_path, wrap)
    with caplog.at_level(logging.WARNING):
        loaded = load_network(str(path), config)
    own, found = network.state_dict(), loaded.network.state_dict()
    changed = [k for k in own if own[k].is_floating_point() and torch.equal(found[k], own[k] + 1)]
    assert len(changed) == sum(value.is_floating_point() for value in own.values())
    assert "resized to model.input_size 96" in caplog.text
