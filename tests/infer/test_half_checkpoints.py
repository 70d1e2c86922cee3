"""Checkpoints in half precision: every command computes with their values in float32."""

import functools
import json
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from cocoseg.checkpoint.network import load_network, weights_digest
from cocoseg.infer.export.config import ExportConfig
from cocoseg.infer.export.graph import FORMATS, export_graph
from cocoseg.infer.export.network import Reference, trial_images
from cocoseg.infer.export.parity import TOLERANCE
from cocoseg.model.config import ModelConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSemanticSegmentation

SIDE = 32
FOLDER = [("float16", "folder"), ("bfloat16", "folder")]
ALL = [*FOLDER, ("float16", "file"), ("bfloat16", "file")]
of_each = pytest.mark.parametrize(("name", "form"), ALL)


def cast(weights, *dtypes):
    """Cast floating point tensors to one type after the other."""
    for dtype in dtypes:
        weights = {k: v.to(dtype) if v.is_floating_point() else v for k, v in weights.items()}
    return weights


def rewrite(folder, weights, **settings):
    """Replace the weights of a checkpoint folder, and the settings in its config."""
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if settings:
        config = json.loads((folder / "config.json").read_text())
        config.pop("dtype")
        (folder / "config.json").write_text(json.dumps(config | settings))


@pytest.fixture(scope="module")
def half(checkpoint, tmp_path_factory):
    """Make a checkpoint in half precision, and a float32 one of the same values.

    Returns the path of the first, the settings of the network that it needs, and the folder of the
    second.
    """

    @functools.cache
    def make(name, form):
        root, dtype = tmp_path_factory.mktemp("half"), getattr(torch, name)
        weights = load_file(checkpoint / "model.safetensors")
        for kind in ("rounded", "folder"):
            shutil.copytree(checkpoint, root / kind)
            file = root / kind / "preprocessor_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"size": SIDE}))
        rewrite(root / "rounded", cast(weights, dtype, torch.float32))
        key = "dtype" if name == "float16" else "torch_dtype"  # of transformers 5, of 4
        rewrite(root / "folder", cast(weights, dtype), **{key: name})
        if form == "folder":
            return root / "folder", {}, root / "rounded"
        stored = cast(weights, dtype)
        torch.save({"model": stored} if name == "float16" else stored, root / "w.pt")
        network = {"name": str(root / "folder"), "input_size": SIDE}
        return root / "w.pt", network, root / "rounded"

    return make


def flags(settings):
    return [f"--set=model.{key}={value}" for key, value in settings.items()]


@of_each
def test_masks_are_those_of_float32(run_cocoseg, half, golden, tmp_path, name, form):
    path, settings, rounded = half(name, form)
    for checkpoint, more, output in ((path, flags(settings), "half"), (rounded, [], "rounded")):
        ran = run_cocoseg(
            *("infer", "--checkpoint", checkpoint, "--input", golden.images("val")),
            *("--output", tmp_path / output, "--set=infer.device=cpu", *more),
        )
        assert ran.code == 0, ran.err
    masks = sorted((tmp_path / "half").glob("*.png"))
    assert len(masks) == 4
    for mask in masks:
        assert mask.read_bytes() == (tmp_path / "rounded" / mask.name).read_bytes()


@of_each
def test_scores_and_digest_are_those_of_float32(run_cocoseg, half, golden, tmp_path, name, form):
    path, settings, rounded = half(name, form)
    scores = {}
    for checkpoint, more, output in ((path, flags(settings), "half"), (rounded, [], "rounded")):
        ran = run_cocoseg(
            *("eval", "--checkpoint", checkpoint, "--shards", golden.shards("val"), "--no-tta"),
            *("--output", tmp_path / output, "--set=infer.device=cpu", *more),
        )
        assert ran.code == 0, ran.err
        scores[output] = json.loads((tmp_path / output / "metrics.json").read_text())
    one, other = (scores[output].pop("checkpoint") for output in ("half", "rounded"))
    assert one["digest"] == other["digest"]
    assert one["precision"] == other["precision"] == "float32"
    told = ("mIoU", "boundary_mIoU", "pixel_accuracy", "classes", "samples")
    assert [scores["half"].get(key) for key in told] == [scores["rounded"].get(key) for key in told]
    assert scores["half"]["mIoU"] > 0


@pytest.mark.parametrize(("name", "form"), FOLDER)
def test_a_training_starts_from_it_and_saves_float32(
    run_cocoseg, half, golden, tmp_path, name, form
):
    path, _, rounded = half(name, form)
    for network, output in ((path, "half"), (rounded, "rounded")):
        ran = run_cocoseg(
            *("train", "--shards", golden.shards("train"), "--output", tmp_path / output),
            *(f"--set=model.name={network}", f"--set=model.input_size={SIDE}"),
            *("--set=train.max_steps=1", "--set=train.workers=0", "--set=train.device=cpu"),
        )
        assert ran.code == 0, ran.err
    saved = load_file(tmp_path / "half" / "last" / "model.safetensors")
    expected = load_file(tmp_path / "rounded" / "last" / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in saved.items())
    assert_float32(tmp_path / "half" / "last")
    state = torch.load(tmp_path / "half" / "last" / "training_state.pt", weights_only=True)
    moments = [entry["exp_avg"].dtype for entry in state["optimizer"]["state"].values()]
    assert set(moments) == {torch.float32}


def assert_float32(folder):
    """Check that a folder holds float32, says so, and that transformers loads it so."""
    assert {str(v.dtype) for v in load_file(folder / "model.safetensors").values()} == {
        "torch.float32",
        "torch.int64",  # counters of batch norms
    }
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    network = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@of_each
def test_an_exported_folder_is_float32(run_cocoseg, half, tmp_path, name, form):
    path, settings, rounded = half(name, form)
    line = ("export", "hf", "--checkpoint", path, "--output", tmp_path / "model")
    ran = run_cocoseg(*line, *flags(settings))
    assert ran.code == 0, ran.err
    assert_float32(tmp_path / "model")
    saved = load_file(tmp_path / "model" / "model.safetensors")
    expected = load_file(rounded / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in saved.items())


@pytest.mark.long
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("name", "form"), ALL)
def test_an_exported_graph_computes_float32(half, tmp_path, kind, name, form):
    path, settings, rounded = half(name, form)
    output = tmp_path / f"m{FORMATS[kind].suffix}"
    config = ExportConfig(checkpoint=str(path), output=str(output))
    result = export_graph(FORMATS[kind], config, ModelConfig(**settings))
    assert result.parity.worst.relative < TOLERANCE
    loaded = load_network(str(rounded), ModelConfig())
    assert result.plan.description["weights"] == weights_digest(loaded.network)
    images = trial_images(2, SIDE, SIDE)
    expected = Reference(loaded).logits(images)
    if kind == "onnx":
        session = onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])
        (logits,) = map(torch.from_numpy, session.run(["logits"], {"image": images.numpy()}))
    else:
        program = torch.export.load(output)
        assert {value.dtype for value in program.parameters()} == {torch.float32}
        with torch.no_grad():
            logits = program.module()(images)
    assert logits.dtype == torch.float32
    assert float((logits - expected).abs().max()) < TOLERANCE * float(expected.abs().max())


def test_a_run_whose_weights_were_converted_predicts_and_is_not_resumed(
    run_cocoseg, half, golden, tmp_path
):
    """The digests of a checkpoint guard the resume; predictions need none."""
    _, _, rounded = half("float16", "folder")
    line = (
        *("train", "--shards", golden.shards("train"), "--output", tmp_path / "run"),
        *(f"--set=model.name={rounded}", f"--set=model.input_size={SIDE}"),
        *("--set=train.workers=0", "--set=train.device=cpu"),
    )
    assert run_cocoseg(*line, "--set=train.max_steps=1").code == 0
    weights = load_file(tmp_path / "run" / "last" / "model.safetensors")
    rewrite(tmp_path / "run" / "last", cast(weights, torch.float16))
    loaded = load_network(str(tmp_path / "run"), ModelConfig())
    stored = load_network(str(rounded), ModelConfig())
    shutil.copytree(rounded, tmp_path / "expected")
    rewrite(tmp_path / "expected", cast(weights, torch.float16, torch.float32))
    expected = load_network(str(tmp_path / "expected"), ModelConfig())
    assert weights_digest(loaded.network) == weights_digest(expected.network)
    assert weights_digest(loaded.network) != weights_digest(stored.network)
    for checkpoint in ("run", "expected"):
        ran = run_cocoseg(
            *("infer", "--checkpoint", tmp_path / checkpoint, "--input", golden.images("val")),
            *("--output", tmp_path / f"of {checkpoint}", "--no-tta", "--set=infer.device=cpu"),
        )
        assert ran.code == 0, ran.err
    for mask in (tmp_path / "of run").glob("*.png"):
        assert mask.read_bytes() == (tmp_path / "of expected" / mask.name).read_bytes()
    ran = run_cocoseg(*line, "--set=train.max_steps=2")
    assert ran.code == 3
    assert "model.safetensors differs from its digest" in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_half_precision_is_visible_in_the_masks(half, draw, checkpoint, name):
    """Else the comparisons above would compare nothing."""
    _, _, rounded = half(name, "folder")
    images = torch.from_numpy(np.stack([draw(SIDE, SIDE)]))
    of_rounded, of_float32 = (
        Reference(load_network(str(folder), ModelConfig())).logits(images)
        for folder in (rounded, checkpoint)
    )
    assert not torch.equal(of_rounded, of_float32)
