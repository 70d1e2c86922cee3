"""The estimate of a training step's memory against what autograd really holds."""

import pytest
import torch
import torch.distributed as dist
from cocoseg.checkpoint.network import start_network
from cocoseg.model.config import ModelConfig
from cocoseg.model.memory import UnknownMemory, training_memory
from cocoseg.model.switches import (
    checkpoint_activations,
    freeze_backbone,
    keep_mlp_activations,
    train_mode,
)
from cocoseg.model.sync_batchnorm import SyncBatchNorm2d, synchronize_batch_norms
from cocoseg.taxonomy import coco_taxonomy
from torch.testing._internal.distributed.fake_pg import FakeStore

AUTOCAST = {None: 0.0, torch.bfloat16: 0.01, torch.float16: 0.01}
"""Relative errors: fake kernels round the sizes of a few statistics otherwise under autocast."""


@pytest.fixture
def network():
    return start_network(ModelConfig(name="segformer-tiny", input_size=96), coco_taxonomy(), 0)[0]


def held(network, batch, size, amp):
    """Bytes of the storages that a real forward saves, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    saved = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", amp or torch.bfloat16, enabled=amp is not None),
    ):
        network(pixel_values=torch.randn(batch, 3, size, size))
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("amp", AUTOCAST)
@pytest.mark.parametrize("batch", [1, 3])
def test_activations_are_what_autograd_holds(network, batch, amp):
    network.train()
    told = training_memory(network, batch, 96, optimizer_states=2, ema=False, amp=amp)
    tolerance = AUTOCAST[amp]
    assert told.activations == pytest.approx(held(network, batch, 96, amp), rel=tolerance, abs=0)


def test_recomputed_and_frozen_layers_count_as_what_they_are(network):
    network.train()
    plain = training_memory(network, 2, 96, optimizer_states=2, ema=False)
    checkpoint_activations(network)
    recomputed = training_memory(network, 2, 96, optimizer_states=2, ema=False)
    assert recomputed.activations == held(network, 2, 96, None)
    assert recomputed.activations < 0.8 * plain.activations
    freeze_backbone(network)
    train_mode(network, freeze_backbone=True)
    frozen = training_memory(network, 2, 96, optimizer_states=2, ema=False)
    assert frozen.activations == held(network, 2, 96, None)
    head = sum(p.numel() for p in network.decode_head.parameters())
    assert (frozen.gradients, frozen.optimizer) == (4 * head, 8 * head)


def test_the_other_parts_are_sums_of_sizes(network):
    told = training_memory(network.train(), 2, 64, optimizer_states=1, ema=True)
    parameters = 4 * sum(p.numel() for p in network.parameters())
    buffers = 4 * (128 + 128) + 8  # of the one batch norm
    assert told.weights == told.ema == parameters + buffers
    assert told.gradients == told.optimizer == parameters
    assert told.loss == 2 * 4 * (2 * 81 * 16 * 16) + 2 * 4 * (81 * 64 * 64)
    assert told.total == sum(
        (told.weights, told.gradients, told.optimizer, told.ema, told.activations, told.loss)
    )


def test_nothing_is_changed_by_asking(network):
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    training_memory(network, 2, 64, optimizer_states=2, ema=True)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert not any(p.grad is not None for p in network.parameters())


def test_synchronized_batch_norms_are_estimated_as_plain_ones(network):
    network.train()
    plain = training_memory(network, 2, 64, optimizer_states=2, ema=False)
    synchronize_batch_norms(network)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    try:  # nobody answers a collective
        found = training_memory(network, 2, 64, optimizer_states=2, ema=False)
    finally:
        dist.destroy_process_group()
    assert found == plain
    assert type(network.decode_head.batch_norm) is SyncBatchNorm2d


def test_an_estimate_that_fails_says_why(network, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no such operator\nand more of it")

    monkeypatch.setattr(type(network), "forward", fails)
    with pytest.raises(UnknownMemory, match=r"RuntimeError: no such operator$"):
        training_memory(network, 2, 64, optimizer_states=2, ema=False)


def test_blocks_that_keep_their_wide_middle_count_as_that(network):
    network.train()
    recomputed = training_memory(network, 2, 96, optimizer_states=2, ema=False)
    keep_mlp_activations(network)
    kept = training_memory(network, 2, 96, optimizer_states=2, ema=False)
    assert kept.activations == held(network, 2, 96, None)
    assert recomputed.activations < 0.9 * kept.activations
