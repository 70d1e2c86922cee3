"""Switches of training: each computes the same as without it, and holds what it promises."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from cocoseg.checkpoint.network import start_network
from cocoseg.errors import ConfigError
from cocoseg.model.config import ModelConfig
from cocoseg.model.switches import (
    backbone_of,
    checkpoint_activations,
    compiled,
    freeze_backbone,
    freeze_unused,
    keep_mlp_activations,
    to_channels_last,
    train_mode,
)
from cocoseg.taxonomy import coco_taxonomy
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@pytest.fixture
def network():
    config = ModelConfig(name="segformer-tiny", input_size=64)
    network = start_network(config, coco_taxonomy(), 0)[0]
    network.segformer.stages[1].blocks[0].mlp.dropout.p = 0.1  # to be drawn twice the same
    return network.train()


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def step(wrapped, network, pixels, dtype=None):
    """Return the logits and all gradients of one backward pass, by name."""
    network.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logits = wrapped(pixel_values=pixels).logits
    logits.float().square().mean().backward()
    return {"logits": logits.detach().float()} | {
        name: p.grad for name, p in network.named_parameters()
    }


def assert_close(expected, found, tolerance):
    for name, value in expected.items():
        assert (value is None) == (found[name] is None), name
        if value is not None:
            scale = value.abs().max().item() + 1e-6
            assert (found[name] - value).abs().max().item() <= tolerance * scale, name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_recomputed_activations_give_the_very_same(network, pixels, dtype):
    expected = step(network, network, pixels, dtype)
    checkpoint_activations(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint_activations(network)  # without a word
    found = step(network, network, pixels, dtype)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_wide_middle_that_is_kept_gives_the_very_same(network, pixels, dtype, dropout):
    network.segformer.stages[1].blocks[0].mlp.dropout.p = dropout  # without, one kernel less
    expected = step(network, network, pixels, dtype)
    keep_mlp_activations(network)
    found = step(network, network, pixels, dtype)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.usefixtures("one_process")
def test_recomputed_activations_work_under_ddp(network, pixels):
    expected = step(network, network, pixels)
    checkpoint_activations(network)
    wrapped = DistributedDataParallel(network)
    for _ in range(2):  # the reducer is rebuilt after the first
        assert_close(expected, step(wrapped, network, pixels), 1e-5)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_channels_last_gives_the_same(network, pixels, dtype):
    expected = step(network, network, pixels, dtype)
    to_channels_last(network)
    weight = network.segformer.stages[1].patch_embeddings.proj.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    found = step(network, network, pixels, dtype)
    assert_close(expected, found, 1e-4 if dtype is None else 0.1)


@pytest.mark.long
def test_a_compiled_network_gives_the_same_and_leaves_the_plain_one(network, pixels, monkeypatch):
    torch.compiler.reset()
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: plain(module, backend="eager"))
    network.segformer.stages[1].blocks[0].mlp.dropout.p = 0.0
    network.decode_head.dropout.p = 0.0
    expected = step(network, network, pixels)
    wrapped = compiled(network)
    assert_close(expected, step(wrapped, network, pixels), 1e-5)
    assert not hasattr(network, "_orig_mod")
    assert list(network.state_dict()) == list(copy.deepcopy(network).state_dict())


def test_a_network_that_ran_already_is_compiled_the_same(network, pixels, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    expected = step(network, network, pixels)  # installs transformers' hooks
    assert_close(expected, step(compiled(network), network, pixels), 0)


@pytest.mark.usefixtures("one_process")
def test_a_frozen_backbone_learns_nothing_and_stays_in_eval(network, pixels):
    freeze_backbone(network)
    backbone = backbone_of(network)
    assert backbone is network.segformer
    wrapped = DistributedDataParallel(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        train_mode(network, freeze_backbone=True)
        step(wrapped, network, pixels)
        optimizer.step()
        network.eval()  # validation
    train_mode(network, freeze_backbone=True)
    assert not any(module.training for module in backbone.modules())
    assert all(module.training for module in network.decode_head.modules())
    for name, value in network.state_dict().items():
        if "proj.bias" not in name:  # of the head: the batch norm takes it away again
            learnt = name.startswith("decode_head.")
            assert learnt != torch.equal(value, before[name]), name


def test_frozen_statistics_stay_while_scale_and_shift_learn(network, pixels):
    norm = network.decode_head.batch_norm
    train_mode(network, freeze_batch_norm=True)
    assert not norm.training
    assert network.segformer.training
    found = step(network, network, pixels)
    assert torch.equal(norm.running_mean, torch.zeros(128))
    assert torch.equal(norm.running_var, torch.ones(128))
    assert norm.num_batches_tracked == 0
    assert found["decode_head.batch_norm.weight"].any()
    train_mode(network)
    assert norm.training
    step(network, network, pixels)
    assert norm.running_mean.any()


def test_a_segformer_uses_all_it_has(network):
    assert freeze_unused(network, 64) == []
    assert all(p.requires_grad for p in network.parameters())


def test_what_has_no_backbone_says_so():
    assert backbone_of(nn.Conv2d(3, 3, 1)) is None
    with pytest.raises(ConfigError, match=r"freeze_backbone: .*Conv2d"):
        freeze_backbone(nn.Conv2d(3, 3, 1))
    with pytest.raises(ConfigError, match=r"activation_checkpointing: .*Conv2d"):
        checkpoint_activations(nn.Conv2d(3, 3, 1))
