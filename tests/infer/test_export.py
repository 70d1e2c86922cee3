"""`cocoseg export`: what other programs run is what transformers' own network computes."""

import contextlib
import dataclasses
import gc
import hashlib
import importlib.util
import json
import logging
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
import yaml
from cocoseg.checkpoint.folder import save_network
from cocoseg.checkpoint.network import load_network, weights_digest
from cocoseg.errors import CocosegError, ConfigError, DataError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.export import graph
from cocoseg.infer.export.config import ExportConfig
from cocoseg.infer.export.folder import export_folder, plan_folder
from cocoseg.infer.export.graph import FORMATS, export_graph
from cocoseg.infer.export.network import ExportedNetwork, Reference, trial_images, trial_shapes
from cocoseg.infer.export.parity import TOLERANCE, ParityCheck, compare
from cocoseg.infer.export.program import capture, write_program
from cocoseg.infer.export.publish import scratch_beside
from cocoseg.infer.predictor import load_predictor
from cocoseg.model.config import ModelConfig
from cocoseg.model.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, resize_logits
from cocoseg.storage import LocalPath, locate
from cocoseg.storage.output import explained
from cocoseg.taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from PIL import Image
from torch.export.graph_signature import InputKind
from torch.export.passes import move_to_device_pass
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForSemanticSegmentation,
    BeitConfig,
    Data2VecVisionConfig,
    MobileNetV2Config,
)

SIDE = 64
SIZES = [(64, 64), (64, 160), (97, 131)]


@pytest.fixture(scope="session")
def exported(checkpoint, tmp_path_factory):
    """The folder that the examples of the page start from, and the facts of each export."""
    folder = tmp_path_factory.mktemp("exported")
    facts = {}
    for name in FORMATS:
        output = folder / f"coco{FORMATS[name].suffix}"
        config = ExportConfig(checkpoint=str(checkpoint), output=str(output))
        facts[name] = export_graph(FORMATS[name], config, ModelConfig()).to_dict()
    config = ExportConfig(checkpoint=str(checkpoint), output=str(folder / "coco"))
    facts["hf"] = export_folder(config, ModelConfig()).to_dict()
    return folder, facts


@pytest.fixture
def theirs(checkpoint):
    """Logits of transformers, normalized by hand: nothing of ours."""
    network = AutoModelForSemanticSegmentation.from_pretrained(checkpoint).eval()

    def logits(images):
        pixels = (images / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
        with torch.no_grad():
            values = torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
            return network(pixel_values=values).logits.numpy()

    return logits


def close(ours, expected):
    return ours.shape == expected.shape and np.abs(ours - expected).max() < 1e-5 * max(
        1, np.abs(expected).max()
    )


# --- graphs


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_an_onnx_computes_what_transformers_does_at_any_size(exported, theirs, draw, batch, size):
    session = onnxruntime.InferenceSession(exported[0] / "coco.onnx")
    images = np.stack([draw(*size, seed) for seed in range(batch)])
    (logits,) = session.run(["logits"], {"image": images})
    assert close(logits, theirs(images))


@pytest.fixture(scope="module")
def program(exported):
    return FORMATS["program"].run(exported[0] / "coco.pt2")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_a_program_computes_what_transformers_does_at_any_size(program, theirs, draw, batch, size):
    images = np.stack([draw(*size, seed) for seed in range(batch)])
    assert close(program(torch.from_numpy(images)).numpy(), theirs(images))


def test_an_onnx_names_its_axes_and_says_what_it_is(exported):
    folder, facts = exported
    model = onnx.load(folder / "coco.onnx")
    axes = {
        value.name: [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes["image"] == ["batch", "height", "width", 3]
    assert axes["logits"][:2] == ["batch", 81]
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [entry.version for entry in model.opset_import if not entry.domain] == [18]
    assert facts["onnx"]["opset"] == 18
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["class_names"]) == list(coco_taxonomy().names)
    assert (told["ignore_index"], told["input_size"], told["opset"]) == ("255", "64", "18")
    assert json.loads(told["mean"]) == list(IMAGENET_MEAN)
    assert json.loads(told["std"]) == list(IMAGENET_STD)
    assert told["normalization"] == "in the graph"
    assert json.loads(told["dynamic"]) == ["batch", "height", "width"]


@pytest.mark.parametrize("name", ["onnx", "program", "hf"])
def test_the_comparison_is_told(exported, name):
    parity = exported[1][name]["parity"]
    assert 0 <= parity["largest_relative_difference"] < TOLERANCE
    assert {batch for batch, _, _ in parity["shapes"]} == {1, 2}
    assert len({tuple(size) for _, *size in parity["shapes"]}) == 3


def test_no_file_tells_of_the_computer_that_made_it(exported, checkpoint):
    folder, _ = exported
    content = (folder / "coco.onnx").read_bytes()
    with zipfile.ZipFile(folder / "coco.pt2") as archive:
        content += b"".join(archive.read(name) for name in archive.namelist())
    content += b"".join(path.read_bytes() for path in (folder / "coco").iterdir())
    for path in (Path(graph.__file__).parents[2], checkpoint.parent, Path(torch.__file__).parent):
        assert str(path).encode() not in content
    assert b"stack_trace" not in content


@pytest.fixture(scope="module")
def masks_of_normalized(checkpoint, tmp_path_factory):
    output = tmp_path_factory.mktemp("masks") / "m.pt2"
    settings = {"input_type": "float32", "output_type": "mask"}
    config = ExportConfig(checkpoint=str(checkpoint), output=str(output), **settings)
    return output, export_graph(FORMATS["program"], config, ModelConfig())


@pytest.mark.long
def test_normalized_input_and_masks(masks_of_normalized, theirs, draw):
    output, result = masks_of_normalized
    assert result.plan.to_dict()["input"] == "pixel_values: float32 (batch, 3, height, width)"
    images = draw(90, 120)[None]
    mask = FORMATS["program"].run(output)(Preprocess(SIDE).normalizer()(torch.tensor(images)))
    expected = F.interpolate(torch.from_numpy(theirs(images)), (90, 120), mode="bilinear").argmax(1)
    assert mask.dtype == torch.uint8
    assert len(mask.unique()) > 3
    assert float((mask != expected).float().mean()) < 1e-3


DEEPLAB = Taxonomy(tuple(SemanticClass(name) for name in ("background", "cat", "dog")))


@pytest.mark.long
def test_a_network_of_one_size_is_exported_so_and_that_is_said(tmp_path, caplog):
    torch.manual_seed(0)
    settings = MobileNetV2Config(num_labels=3, depth_multiplier=0.25, min_depth=8)
    network = AutoModelForSemanticSegmentation.from_config(settings)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    save_network(tmp_path / "deeplab", network, Preprocess(SIDE), DEEPLAB)
    config = ExportConfig(checkpoint=str(tmp_path / "deeplab"), output=str(tmp_path / "d.onnx"))
    with caplog.at_level(logging.WARNING, "cocoseg"):
        result = export_graph(FORMATS["onnx"], config, ModelConfig())
    assert result.dynamic == ("batch",)
    assert "height and width are fixed at 64: a mobilenet_v2" in caplog.text
    assert result.parity.worst.largest_logit > 1e-3
    (given,) = onnxruntime.InferenceSession(tmp_path / "d.onnx").get_inputs()
    assert given.shape == ["batch", 64, 64, 3]


# --- devices: tried on the meta device, which computes nothing, but is not the CPU


def devices_in(program):
    """What of a program is bound to a device: operators, and constants, which never move."""
    found = []
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            values = tree_leaves((node.args, node.kwargs))
            named = any(isinstance(v, str) and v in ("cpu", "cuda", "meta") for v in values)
            if named or "device" in node.kwargs or any(isinstance(v, torch.device) for v in values):
                found.append(str(node.target))
    specs = program.graph_signature.input_specs
    return found + [s.target for s in specs if s.kind is InputKind.CONSTANT_TENSOR]


class Elsewhere(TorchDispatchMode):
    """Lists operators that get a tensor on another device than meta; a copy may."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
        if any(tensor.device.type != "meta" for tensor in tensors):
            self.found += [] if func is torch.ops.aten._to_copy.default else [str(func)]
        return func(*args, **(kwargs or {}))


def run_elsewhere(module, example):
    """Move a module to the meta device and run it; return its output, and what stayed behind."""
    module.to("meta")
    with torch.no_grad(), Elsewhere() as elsewhere:
        out = module(example.to("meta"))
    return out, elsewhere.found


_TRANSFORMER = {
    "num_labels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 16,
    "out_indices": [1, 2, 3, 4],
    "pool_scales": [1, 2],
    "auxiliary_channels": 8,
}
FAMILIES = {
    "beit": lambda: BeitConfig(**_TRANSFORMER),  # makes tensors by itself
    "data2vec": lambda: Data2VecVisionConfig(**_TRANSFORMER),  # views of what its attention returns
    "mobilenet_v2": lambda: MobileNetV2Config(num_labels=3, depth_multiplier=0.25, min_depth=8),
}
OF_ONE_SIZE = {  # network, takes uint8, gives masks
    "uint8, mask, one size": ("segformer", True, True),
    "float32, logits, one size": ("segformer", False, False),
    **{family: (family, True, False) for family in FAMILIES},
}
OF_ANY_SIZE = ("uint8, logits, any size", "float32, mask, any size")
LONG = (OF_ANY_SIZE[1], "float32, logits, one size", "mobilenet_v2", "beit")
VARIANTS = [
    pytest.param(name, marks=[pytest.mark.long] * (name in LONG))
    for name in (*OF_ANY_SIZE, *OF_ONE_SIZE)
]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, loaded, three_classes, tmp_path_factory):
    """The network that was traced, and its program as it is read back."""
    if request.param == OF_ANY_SIZE[0]:
        folder, _ = request.getfixturevalue("exported")
        network = ExportedNetwork(loaded, normalizes=True, to_mask=False)
        return network, torch.export.load(folder / "coco.pt2")
    if request.param == OF_ANY_SIZE[1]:
        path, _ = request.getfixturevalue("masks_of_normalized")
        network = ExportedNetwork(loaded, normalizes=False, to_mask=True)
        return network, torch.export.load(path)
    family, normalizes, to_mask = OF_ONE_SIZE[request.param]
    folder = three_classes
    if family != "segformer":
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        plain = AutoModelForSemanticSegmentation.from_config(FAMILIES[family]())
        save_network(folder, plain, Preprocess(SIDE), DEEPLAB)
    one = load_network(str(folder), ModelConfig())
    network = ExportedNetwork(one, normalizes=normalizes, to_mask=to_mask).eval()
    program = capture(network, SIDE, any_size=False)
    assert devices_in(program)  # as it is traced
    path = tmp_path_factory.mktemp("program") / "m.pt2"
    write_program(program, {}, path)
    return network, torch.export.load(path)


def example_for(network):
    images = trial_images(3, SIDE, SIDE)
    return images if network.normalize is not None else images.permute(0, 3, 1, 2) / 255 - 0.5


def test_no_device_is_in_a_program(variant):
    assert devices_in(variant[1]) == []


def test_a_program_runs_where_it_is_moved_to(variant):
    network, program = variant
    example = example_for(network)
    with torch.no_grad():
        expected = network(example)
    out, left_behind = run_elsewhere(program.module(), example)
    assert left_behind == []
    assert (out.device.type, out.shape, out.dtype) == ("meta", expected.shape, expected.dtype)


@pytest.mark.parametrize("kernel", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_a_program_runs_whatever_layout_attention_returns(variant, kernel):
    """The two kernels return different ones, as those of other devices do."""
    network, program = variant
    example = example_for(network)
    with torch.no_grad(), sdpa_kernel(kernel):
        ours, expected = program.module()(example), network(example)
    if network.ids is None:
        assert close(ours.numpy(), expected.numpy())
    else:
        assert float((ours != expected).float().mean()) < 1e-3


class Planted(torch.nn.Module):
    """Every way to be bound to a device that is known."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.table = torch.tensor([1.0, 2.0, 3.0, 4.0])  # neither a parameter nor a buffer

    def forward(self, image):
        x, n = self.layer(image) + self.table, image.shape[0]
        x = x + torch.arange(n, device=x.device)[:, None] + torch.linspace(0, 1, 4)
        x = x + torch.zeros(n, 4).add_(x) + torch.full((), 2.0) + torch.scalar_tensor(2.0)
        x = x @ torch.eye(4, device=x.device) + torch.tril(torch.ones(n, 4))
        x = x + torch.ones_like(x, device="cpu") + x.new_zeros(4, device="cpu")
        x = x.to("cpu") + x.to("cpu", torch.float64) + x.to(device="cpu")
        return x.to(torch.float32) * torch.tensor(3.0) + torch.tensor([1.0, 2.0, 3.0, 4.0])


def traced(network):
    axes = ({0: torch.export.Dim.DYNAMIC(min=1)},)
    with torch.no_grad():
        return torch.export.export(network, (torch.randn(2, 4),), dynamic_shapes=axes, strict=False)


def test_planted_devices_are_found_and_removed(tmp_path):
    network = Planted().eval()
    program = traced(network)
    operators = "arange linspace zeros full scalar_tensor eye ones ones_like new_zeros to"
    assert {name.split(".")[1] for name in devices_in(program) if name.startswith("aten.")} == {
        *operators.split(),
        "_assert_tensor_metadata",
    }
    assert {"table", "lifted_tensor_0", "lifted_tensor_1"} <= set(devices_in(program))
    example = torch.randn(5, 4)
    with pytest.raises(RuntimeError, match="not on the expected device"):
        run_elsewhere(program.module(), example)
    write_program(program, {}, tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2")
    assert devices_in(program) == []
    with torch.no_grad():
        assert torch.equal(program.module()(example), network(example))
    out, left_behind = run_elsewhere(program.module(), example)
    assert (out.device.type, left_behind) == ("meta", [])
    moved = move_to_device_pass(program, "meta").module()  # as compilation for a device requires
    assert run_elsewhere(moved, example)[1] == []


class Region(torch.nn.Module):
    def forward(self, image):
        with torch.autocast("cpu", enabled=False):
            return image @ image.mT


def test_a_program_that_stays_bound_is_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "cocoseg"):
        write_program(traced(Region()), {}, tmp_path / "m.pt2")
    assert "runs on the CPU only (wrap_with_autocast" in caplog.text


# --- comparisons


def test_a_difference_from_nothing_but_zeros_is_infinite():
    assert ParityCheck(1, 64, 64, 1e-9, 0.0).relative == float("inf")
    assert ParityCheck(1, 64, 64, 0.0, 0.0).relative == 0


# --- comparisons that find bugs


def _swapped(images, network):
    return network(images.flip(3))


def _without_mean(images, network):
    return network.network(pixel_values=images.permute(0, 3, 1, 2) / 255).logits


def _one_class_off(images, network):
    return network(images).roll(1, 1)


def _transposed(images, network):
    return network(images).mT


def _slightly(images, network):
    return network(images) * 1.001


def _not_a_number(images, network):
    return network(images).log()


BUGS = [_swapped, _without_mean, _one_class_off, _transposed, _slightly, _not_a_number]


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_network(str(checkpoint), ModelConfig())


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_logits_is_found(loaded, bug):
    network = ExportedNetwork(loaded, normalizes=True, to_mask=False)
    shapes = trial_shapes(SIDE, any_size=True)
    reference = Reference(loaded)
    with torch.inference_mode():
        right = compare(network, reference, shapes)
        wrong = compare(lambda images: bug(images, network), reference, shapes)
    assert right.worst.relative < TOLERANCE / 10
    assert wrong.worst.relative > TOLERANCE


def test_a_bug_in_masks_is_found(loaded):
    network = ExportedNetwork(loaded, normalizes=True, to_mask=True)
    plain = ExportedNetwork(loaded, normalizes=True, to_mask=False)

    def cornered(images):
        size = images.shape[1:3]
        logits = F.interpolate(plain(images), size, mode="bilinear", align_corners=True)
        return logits.argmax(1)

    def nearest(images):
        return F.interpolate(plain(images), images.shape[1:3], mode="nearest").argmax(1)

    bugs = [cornered, nearest, lambda images: network(images) + 1]
    with torch.inference_mode():
        shapes = trial_shapes(SIDE, any_size=True)
        reference = Reference(loaded)
        assert compare(network, reference, shapes, of_masks=True).worst.relative < TOLERANCE / 10
        for bug in bugs:
            assert compare(bug, reference, shapes, of_masks=True).worst.relative > TOLERANCE
        flipped = compare(
            lambda images: network(images).mT, reference, [(1, 64, 64)], of_masks=True
        )
    assert flipped.worst.relative > TOLERANCE


def test_the_reference_is_transformers_own_network(loaded, theirs):
    own = Reference(loaded)
    ours = {type(module).__module__ for module in loaded.network.modules()}
    plain = {type(module).__module__ for module in own._network.modules()}
    assert any(name.startswith("cocoseg.") for name in ours)
    assert not any(name.startswith("cocoseg.") for name in plain)
    images = trial_images(2, 64, 96)
    assert close(own.logits(images).numpy(), theirs(images.numpy()))


@pytest.fixture
def faked(monkeypatch):
    """A format whose file is a few bytes, quick to write, and that runs as it is told to."""

    def fake(run=None, write=lambda program, description, path: path.write_bytes(b"x")):
        loads = {}

        def capture(network, input_size, *, any_size):
            loads["network"] = network

        def plain(path):
            return lambda images: run(images, loads["network"])

        monkeypatch.setattr(graph, "capture", capture)
        changed = dataclasses.replace(FORMATS["program"], write=write, run=plain)
        monkeypatch.setitem(FORMATS, "program", changed)

    return fake


@pytest.mark.parametrize("bug", [_swapped, _slightly])
def test_what_computes_something_else_is_refused_and_nothing_is_published(
    run_cocoseg, faked, checkpoint, tmp_path, bug
):
    faked(torch.no_grad()(bug))
    output = tmp_path / "out" / "m.pt2"
    ran = run_cocoseg("export", "program", "--checkpoint", checkpoint, "--output", output)
    assert (ran.code, ran.out) == (1, "")
    assert "does not compute what the network does" in ran.err
    assert "tolerance 0.0001" in ran.err
    assert list(output.parent.iterdir()) == []


def test_what_is_ended_while_it_writes_leaves_nothing(run_cocoseg, faked, checkpoint, tmp_path):
    def half(program, description, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    faked(write=half)
    output = tmp_path / "out" / "m.pt2"
    ran = run_cocoseg("export", "program", "--checkpoint", checkpoint, "--output", output)
    assert ran.code == 130
    assert list(output.parent.iterdir()) == []


_DIES = """
import os, signal, sys
from cocoseg.infer.export.publish import scratch_beside
from cocoseg.storage import locate
with scratch_beside(locate(sys.argv[1])) as scratch:
    (scratch / "export.onnx").write_bytes(b"half")
    print(scratch, flush=True)
    if len(sys.argv) > 2:
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_export_left_goes_with_the_next_and_no_other(tmp_path):
    output = tmp_path / "m.onnx"
    command = [sys.executable, "-c", _DIES, str(output)]
    other = tmp_path / ".tmp-1-prepare"
    other.mkdir()
    (other / "file").write_bytes(b"of another command")
    with subprocess.Popen(
        [*command, "stay"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as at_work:
        busy = Path(at_work.stdout.readline().strip())
        killed = subprocess.run(command, check=False, capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL
        left = Path(killed.stdout.strip())
        assert (left / "export.onnx").exists()
        with scratch_beside(locate(output)) as ours:
            assert not left.exists()
            assert set(tmp_path.iterdir()) == {other, busy, ours}
        at_work.kill()
    with scratch_beside(locate(output)) as ours:
        assert set(tmp_path.iterdir()) == {other, ours}


def test_what_cannot_be_exported_says_so(run_cocoseg, faked, checkpoint, tmp_path):
    def fails(program, description, path):
        raise NotImplementedError("no operator\nand pages more")

    faked(write=fails)
    output = tmp_path / "m.pt2"
    ran = run_cocoseg("export", "program", "--checkpoint", checkpoint, "--output", output)
    assert ran.code == 1
    assert "a segformer cannot be exported as program: no operator. 'cocoseg export hf'" in ran.err
    assert not output.exists()


def test_logits_that_are_no_numbers_are_a_broken_checkpoint(loaded):
    broken = load_network(loaded.origin, ModelConfig())
    with torch.no_grad():
        broken.network.decode_head.classifier.bias[0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        compare(lambda images: images, Reference(broken), [(1, 64, 64)])


# --- outputs that are there


def test_the_same_again_is_kept_and_another_is_refused(run_cocoseg, exported, checkpoint):
    folder, _ = exported
    for name in ("coco.onnx", "coco.pt2"):
        kind = {"coco.onnx": "onnx", "coco.pt2": "program"}[name]
        line = ("export", kind, "--checkpoint", checkpoint, "--output", folder / name)
        before = (folder / name).stat().st_mtime_ns
        ran = run_cocoseg(*line, "--json")
        told = json.loads(ran.out)
        assert (ran.code, told["state"]) == (0, "kept, it is there already")
        assert told["dynamic"] == ["batch", "height", "width"]
        for more in (("--output-type", "mask"), ("--output-type", "mask", "--dry-run")):
            ran = run_cocoseg(*line, *more)
            assert ran.code == 2
            assert "is there already" in ran.err
            assert "--overwrite" in ran.err
        assert (folder / name).stat().st_mtime_ns == before
    line = ("export", "hf", "--checkpoint", checkpoint, "--output", folder / "coco")
    assert json.loads(run_cocoseg(*line, "--json").out)["state"] == "kept, it is there already"


def test_an_export_of_an_earlier_format_is_not_kept(exported, checkpoint):
    for kind in FORMATS.values():
        output = str(exported[0] / f"coco{kind.suffix}")
        config = ExportConfig(checkpoint=str(checkpoint), output=output)
        assert graph.plan_graph(kind, config, ModelConfig()).kept
        assert int(kind.describe(locate(output))["format_version"]) == kind.version
        later = dataclasses.replace(kind, version=kind.version + 1)
        with pytest.raises(ConfigError, match="is there already, and is of other weights"):
            graph.plan_graph(later, config, ModelConfig())
    assert FORMATS["program"].version == 2  # programs of 1 are bound to the CPU


def test_overwrite_replaces(run_cocoseg, faked, checkpoint, tmp_path):
    faked(torch.no_grad()(lambda images, network: network(images)))
    output = tmp_path / "m.pt2"
    output.write_bytes(b"something else")
    line = ("export", "program", "--checkpoint", checkpoint, "--output", output)
    assert run_cocoseg(*line).code == 2
    assert output.read_bytes() == b"something else"
    assert run_cocoseg(*line, "--overwrite").code == 0
    assert output.read_bytes() == b"x"


@pytest.mark.long
def test_overwrite_replaces_what_is_its_own_too(run_cocoseg, exported, checkpoint, tmp_path):
    """It may be damaged where no description of it is."""
    output = tmp_path / "coco.pt2"
    shutil.copy(exported[0] / "coco.pt2", output)
    line = ("export", "program", "--checkpoint", checkpoint, "--output", output, "--json")
    assert json.loads(run_cocoseg(*line).out)["state"] == "kept, it is there already"
    assert json.loads(run_cocoseg(*line, "--overwrite").out)["state"] == "written"


def test_a_folder_is_replaced_only_if_an_export_made_it(run_cocoseg, three_classes, tmp_path):
    output = tmp_path / "model"
    line = ("export", "hf", "--checkpoint", three_classes, "--output", output)
    assert run_cocoseg(*line).code == 0
    (output / "config.json").write_text("{}")
    ran = run_cocoseg(*line)
    assert ran.code == 2
    assert "is there already, and differs" in ran.err
    (output / "training_state.pt").write_bytes(b"")
    ran = run_cocoseg(*line, "--overwrite")
    assert ran.code == 2
    assert "holds other files (training_state.pt)" in ran.err
    assert (output / "config.json").read_text() == "{}"
    (output / "training_state.pt").unlink()
    assert run_cocoseg(*line, "--overwrite").code == 0
    assert json.loads((output / "config.json").read_text())["model_type"] == "segformer"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_link_stays_and_what_it_names_is_written(run_cocoseg, three_classes, tmp_path):
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    line = ("export", "hf", "--checkpoint", three_classes, "--output", tmp_path / "link")
    assert run_cocoseg(*line).code == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "disk" / "model" / "config.json").is_file()


def test_a_folder_that_holds_a_readme_alone_is_no_export(run_cocoseg, three_classes, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    line = ("export", "hf", "--checkpoint", three_classes, "--output", tmp_path / "mine")
    ran = run_cocoseg(*line, "--overwrite")
    assert (ran.code, "holds other files (README.md)" in ran.err) == (2, True)
    assert (tmp_path / "mine" / "README.md").read_text() == "mine"


def test_the_working_folder_is_not_replaced(run_cocoseg, three_classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = run_cocoseg("export", "hf", "--checkpoint", three_classes, "--output", ".")
    assert (ran.code, "is the working folder" in ran.err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(run_cocoseg, three_classes, tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, os.strerror(13), str(tmp_path / "ro"))

    monkeypatch.setattr(LocalPath, "scratch_folder", denied)
    line = ("export", "hf", "--checkpoint", three_classes, "--output", tmp_path / "ro" / "x")
    ran = run_cocoseg(*line)
    assert ran.code == 1
    assert ran.err == (
        f"error: --output {tmp_path / 'ro' / 'x'}: cannot be written: Permission denied "
        f"({tmp_path / 'ro'}); nothing is changed there; make it writable, then run the same "
        "command again\n"
    )


def test_an_object_store_is_given_whole_exports(
    run_cocoseg, faked, three_classes, tmp_path, memory
):
    faked(torch.no_grad()(lambda images, network: network(images)))
    line = ("export", "program", "--checkpoint", three_classes, "--output", f"{memory}/m.pt2")
    assert run_cocoseg(*line).code == 0
    line = ("export", "hf", "--checkpoint", three_classes, "--output", f"{memory}/model")
    assert json.loads(run_cocoseg(*line, "--json").out)["state"] == "written"
    assert json.loads(run_cocoseg(*line, "--json").out)["state"] == "kept, it is there already"
    names = fsspec.filesystem("memory").find(memory)
    assert {name.rpartition("/")[2] for name in names} == {
        *("m.pt2", "README.md", "config.json", "model.safetensors"),
        *("preprocessor_config.json", "taxonomy.json"),
    }


@pytest.fixture
def memory():
    yield "memory://exports"
    fsspec.filesystem("memory").rm("/exports", recursive=True)


def test_a_folder_that_differs_from_the_network_is_refused(three_classes, tmp_path, monkeypatch):
    def nudged(folder, network, preprocess, taxonomy):
        network.decode_head.classifier.weight.data *= 1.01
        save_network(folder, network, preprocess, taxonomy)
        network.decode_head.classifier.weight.data /= 1.01

    monkeypatch.setattr("cocoseg.infer.export.folder.save_network", nudged)
    config = ExportConfig(checkpoint=str(three_classes), output=str(tmp_path / "model"))
    with pytest.raises(CocosegError, match="does not compute what the network does"):
        export_folder(config, ModelConfig())
    assert list(tmp_path.iterdir()) == []


# --- command line


def test_without_the_packages_the_error_says_what_to_install(
    run_cocoseg, checkpoint, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *more: None if name.startswith("onnx") else find(name, *more),
    )
    ran = run_cocoseg(
        *("export", "onnx", "--checkpoint", checkpoint, "--output", tmp_path / "m.onnx")
    )
    assert ran.code == 2
    assert "not installed: onnx, onnxscript, onnxruntime" in ran.err
    assert "pip install 'cocoseg[export]'" in ran.err


BAD = {
    "no checkpoint": ("onnx --output {t}/m.onnx", "--checkpoint: give a run"),
    "no output": ("onnx --checkpoint {c}", "--output: give a file, NAME.onnx"),
    "no folder": ("hf --checkpoint {c}", "--output: give a folder"),
    "another suffix": ("program --checkpoint {c} --output {t}/m.pt", "NAME.pt2"),
    "a folder for a file": ("onnx --checkpoint {c} --output {t}/d.onnx", "NAME.onnx"),
    "a file for a folder": ("hf --checkpoint {c} --output {t}/file", "is a file"),
    "no such checkpoint": ("hf --checkpoint {t}/absent --output {t}/m", "no such folder"),
    "an opset too old": ("onnx --checkpoint {c} --output {t}/m.onnx --opset 11", "--opset"),
    "no such scores": ("hf --checkpoint {c} --output {t}/m --metrics {t}/no", "no such file"),
}


@pytest.mark.parametrize(("line", "message"), BAD.values(), ids=BAD)
def test_bad_usage(run_cocoseg, three_classes, tmp_path, line, message):
    (tmp_path / "d.onnx").mkdir()
    (tmp_path / "file").write_text("")
    words = line.format(t=tmp_path, c=three_classes).split()
    ran = run_cocoseg("export", *words)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.onnx", "file"]


@pytest.mark.parametrize(
    ("name", "output"), [("onnx", "m.onnx"), ("program", "m.pt2"), ("hf", "m")]
)
def test_a_dry_run_tells_the_plan_and_writes_nothing(
    run_cocoseg, three_classes, tmp_path, name, output
):
    line = ("export", name, "--checkpoint", three_classes, "--output", tmp_path / output)
    ran = run_cocoseg(*line, "--dry-run", "--json")
    plan = json.loads(ran.out)
    assert (ran.code, plan["format"], plan["classes"]) == (0, name, 3)
    assert list(tmp_path.iterdir()) == []


# --- the folder


def front_matter(folder):
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_transformers_loads_the_folder_by_itself(exported, theirs, draw, image_processor):
    folder = exported[0] / "coco"
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors"),
        *("preprocessor_config.json", "taxonomy.json"),
    }
    network = AutoModelForSemanticSegmentation.from_pretrained(folder).eval()
    images = draw(64, 64)[None]
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        logits = network(**processor(Image.fromarray(images[0]), return_tensors="pt")).logits
    assert close(logits.numpy(), theirs(images))
    assert network.config.id2label[17] == coco_taxonomy().names[17]
    assert network.config.semantic_loss_ignore_index == 255
    segments = transformers.pipeline("image-segmentation", model=str(folder))(
        Image.fromarray(images[0])
    )
    assert {one["label"] for one in segments} <= set(coco_taxonomy().names)


def test_the_label_reduction_of_ade20k_never_sneaks_in(three_classes, tmp_path):
    folder = tmp_path / "ade"
    folder.mkdir()
    for path in three_classes.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    told = json.loads((folder / "preprocessor_config.json").read_text())
    told |= {"do_reduce_labels": True, "reduce_labels": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    config = ExportConfig(checkpoint=str(folder), output=str(tmp_path / "model"))
    export_folder(config, ModelConfig())
    told = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert told["do_reduce_labels"] is False
    assert "reduce_labels" not in told


ORIGINS = {
    "random": ("segformer-tiny", None, None, "trained from random ones"),
    "nvlabs": ("nvidia/mit-b0", "other", "nvidia/mit-b0", "research and evaluation only"),
    "another": (
        "someone/segformer",
        "unknown",
        "someone/segformer",
        "research and evaluation only",
    ),
    "a folder": ("/disk/me/weights", "unknown", None, "research and evaluation only"),
}


@pytest.mark.parametrize(("name", "expected", "base", "note"), ORIGINS.values(), ids=ORIGINS)
def test_the_card_tells_origin_data_license(three_classes, tmp_path, name, expected, base, note):
    folder = tmp_path / "step-00000007"
    folder.mkdir()
    for path in three_classes.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    state = {"optimizer": {}, "scaler": {}, "bad_samples": [], "total_steps": 9}
    state |= {"settings": {"model.name": name}, "identity": {"shards": ["aa", "bb"]}}
    state |= {"progress": {"step": 7}, "step": 7}
    torch.save(state, folder / "training_state.pt")
    config = ExportConfig(checkpoint=str(folder), output=str(tmp_path / "my-model"))
    export_folder(config, ModelConfig())
    front, text = front_matter(tmp_path / "my-model")
    assert front["library_name"] == "transformers"
    assert front["pipeline_tag"] == "image-segmentation"
    assert (front.get("license"), front.get("base_model")) == (expected, base)
    assert note in text
    assert ("NVlabs" in text) == (name != "segformer-tiny")
    assert (
        f"2 training shards, 7 optimizer steps. Digest of the data: `{digest('aa', 'bb')}`" in text
    )
    assert "| 1 | cat |" in text
    assert "/disk/me" not in text
    assert not (tmp_path / "my-model" / "training_state.pt").exists()


def digest(*shards):
    return hashlib.sha256("\n".join(shards).encode()).hexdigest()


def test_an_unknown_origin_is_said(exported):
    front, text = front_matter(exported[0] / "coco")
    assert front["license"] == "unknown"
    assert "research and evaluation only" in text
    assert "is not recorded in the checkpoint" in text


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "cannot be read"),
        ({"step": 7}, "does not contain 'progress'; another version of cocoseg wrote it"),
    ],
)
def test_a_training_state_that_tells_nothing_is_bad_data(three_classes, tmp_path, state, message):
    for path in three_classes.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "training_state.pt").write_bytes(b"broken")
    if state is not None:
        torch.save(state, tmp_path / "training_state.pt")
    with pytest.raises(DataError, match=rf"training_state\.pt:? {message}"):
        plan_folder(
            ExportConfig(checkpoint=str(tmp_path), output=str(tmp_path / "m")), ModelConfig()
        )


def test_a_run_is_exported_with_its_data_and_scores(run_cocoseg, golden, tmp_path):
    tiny = ("--set=model.name=segformer-tiny", "--set=model.input_size=32")
    ran = run_cocoseg(
        *("train", "--shards", golden.shards("train"), "--output", tmp_path / "run", *tiny),
        *("--set=train.max_steps=1", "--set=train.workers=0", "--set=train.device=cpu"),
    )
    assert ran.code == 0, ran.err
    ran = run_cocoseg(
        *("eval", "--checkpoint", tmp_path / "run", "--shards", golden.shards("val"), "--no-tta"),
        *("--output", tmp_path / "scores", "--set=infer.device=cpu"),
    )
    assert ran.code == 0, ran.err
    metrics = tmp_path / "scores" / "metrics.json"
    line = ("export", "hf", "--checkpoint", tmp_path / "run", "--output", tmp_path / "model")
    ran = run_cocoseg(*line, "--metrics", metrics, "--json")
    assert ran.code == 0, ran.err
    manifest = json.loads((golden.shards("train") / "manifest.json").read_text())
    data = digest(*(shard["sha256"] for shard in manifest["shards"]))
    assert json.loads(ran.out)["data_digest"] == data
    front, text = front_matter(tmp_path / "model")
    scored = json.loads(metrics.read_text())
    ((result,),) = [entry["results"] for entry in front["model-index"]]
    assert result["metrics"][0]["value"] == scored["mIoU"]
    assert f"| mean IoU | {scored['mIoU']:.4f} |" in text
    assert data in text
    assert str(tmp_path) not in (tmp_path / "model" / "README.md").read_text()
    scored["checkpoint"]["digest"] = "0" * 32
    metrics.write_text(json.dumps(scored))
    ran = run_cocoseg(*line, "--metrics", metrics, "--overwrite")
    assert ran.code == 2
    assert "are not scores of these weights" in ran.err


def test_scores_that_are_none_are_bad_data(three_classes, tmp_path):
    (tmp_path / "m.json").write_text("[]")
    config = ExportConfig(
        checkpoint=str(three_classes), output=str(tmp_path / "m"), metrics=str(tmp_path / "m.json")
    )
    with pytest.raises(DataError, match="has no mIoU"):
        plan_folder(config, ModelConfig())


def test_a_file_of_weights_is_exported_with_its_architecture(three_classes, tmp_path):
    network = AutoModelForSemanticSegmentation.from_pretrained(three_classes)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    config = ExportConfig(checkpoint=str(tmp_path / "w.pt"), output=str(tmp_path / "m"))
    model = ModelConfig(name=str(three_classes), input_size=SIDE)
    assert export_folder(config, model).parity.worst.relative < TOLERANCE
    with pytest.raises(ConfigError, match=r"NAME\.onnx"):
        export_graph(FORMATS["onnx"], config, model)


# --- the page


def blocks(root):
    return re.findall(r"```python\n(.*?)```", (root / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(3), ids=["onnx", "program", "hf"])
def test_the_examples_of_the_page_run_and_give_the_masks_of_infer(
    root, exported, checkpoint, draw, monkeypatch, image_processor, number
):
    folder, _ = exported
    photo = draw(150, 200)
    Image.fromarray(photo).save(folder / "photo.png")
    monkeypatch.chdir(folder)
    plain = Image.open
    monkeypatch.setattr(Image, "open", lambda path: plain(str(path).replace(".jpg", ".png")))
    page = blocks(root)
    assert len(page) == 3
    found = {}
    exec(compile(page[number], "docs/export.md", "exec"), found)
    mask = torch.as_tensor(found["mask"])
    config = InferConfig(checkpoint=str(checkpoint), use_tta=False, device="cpu")
    ready, predictor = load_predictor(config, ModelConfig(), torch.device("cpu"))
    (expected,) = map(torch.from_numpy, predictor.predict([photo]))
    if number == 0:  # at the resolution of the logits
        resized = torch.tensor(Preprocess(SIDE).resize(photo))[None]
        expected = Reference(ready).logits(resized)[0].argmax(0)
    assert mask.shape == expected.shape
    assert len(mask.unique()) > 3
    assert float((mask != expected).float().mean()) < 1e-3


def test_the_facts_that_the_page_lists_are_in_the_files(root, exported):
    folder, _ = exported
    page = (root / "docs" / "export.md").read_text()
    listed = set(
        re.findall(r"`(\w+)`", page.split("**Facts in the file.**")[1].split("**Opset")[0])
    )
    told = dict(FORMATS["onnx"].describe(locate(folder / "coco.onnx")))
    assert set(told) == listed - {"metadata_props"}
    described = FORMATS["program"].describe(locate(folder / "coco.pt2"))
    assert set(described) == set(told) - {"opset"}
    loaded = load_network(str(folder / "coco"), ModelConfig())
    assert told["weights"] == described["weights"] == weights_digest(loaded.network)


def test_upsampling_is_that_of_inference(loaded, theirs):
    images = trial_images(1, 70, 90)
    network = ExportedNetwork(loaded, normalizes=True, to_mask=True)
    with torch.inference_mode():
        mask = network(images)
    expected = resize_logits(torch.from_numpy(theirs(images.numpy())), 70, 90).argmax(1)
    assert float((mask != expected).float().mean()) < 1e-3


def test_a_folder_of_adapters_in_an_object_store_is_no_export_that_was_cut_short(
    run_cocoseg, three_classes, memory
):
    fs = fsspec.filesystem("memory")
    theirs = ("adapter_model.safetensors", "adapter_config.json", "README.md")
    for name in theirs:
        fs.pipe_file(f"{memory}/adapter/{name}", b"theirs")
    line = ("export", "hf", "--checkpoint", three_classes, "--output", f"{memory}/adapter")
    for more in ((), ("--overwrite",)):
        ran = run_cocoseg(*line, *more)
        assert (ran.code, "holds other files" in ran.err) == (2, True)
    for name in theirs:
        assert fs.cat_file(f"{memory}/adapter/{name}") == b"theirs"


# ---- disks


@contextlib.contextmanager
def small_files(size):
    """Let no file grow beyond a size [bytes], as on a disk that is full then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def check_told(ran, output, reason):
    assert ran.code == 1, ran.err
    (told,) = [one for one in ran.err.splitlines() if one.startswith("error: ")]
    assert f"--output {output}: cannot be written: {reason}" in told
    assert "nothing is changed there" in told
    assert "Traceback" not in ran.err
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("size", [0, 100, 200_000])
def test_a_disk_that_is_full_ends_an_export_of_a_folder_in_one_message(
    run_cocoseg, checkpoint, tmp_path, size
):
    output = tmp_path / "out" / "m"
    output.parent.mkdir()
    with small_files(size):
        ran = run_cocoseg("export", "hf", "--checkpoint", checkpoint, "--output", output)
    check_told(ran, output, "File too large")


def test_a_disk_that_is_full_ends_an_export_of_a_file_in_one_message(
    run_cocoseg, faked, checkpoint, tmp_path
):
    def write(program, description, path):
        with small_files(100):
            path.write_bytes(bytes(1000))

    faked(torch.no_grad()(lambda images, network: network(images)), write=write)
    output = tmp_path / "out" / "m.pt2"
    output.parent.mkdir()
    ran = run_cocoseg("export", "program", "--checkpoint", checkpoint, "--output", output)
    check_told(ran, output, "File too large")


def test_torch_says_of_a_full_disk_what_the_disk_said(tmp_path):
    program = torch.export.export(torch.nn.Linear(100, 100), (torch.zeros(1, 100),))
    told = "cannot be written: File too large"
    with small_files(1000), pytest.raises(CocosegError, match=told), explained(locate(tmp_path)):
        write_program(program, {}, tmp_path / "m.pt2")
    gc.collect()  # torch's own writer ended the process here
