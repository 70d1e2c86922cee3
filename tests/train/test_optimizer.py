"""Which parameters learn at which rate, with which decay, and what a resumed run keeps."""

import copy
from typing import Any

import pytest
import torch
from cocoseg.checkpoint.network import start_network
from cocoseg.model.config import ModelConfig
from cocoseg.model.switches import backbone_of
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train import optimizer as optimizer_module
from cocoseg.train.config import TrainConfig
from cocoseg.train.optimizer import (
    build_optimizer,
    parameter_groups,
    restore_optimizer,
    set_learning_rate,
)
from torch import nn


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return start_network(ModelConfig(name="segformer-tiny"), coco_taxonomy(), seed=0)[0]


def test_every_parameter_is_in_one_group_with_its_rate_and_decay(network: nn.Module) -> None:
    config = TrainConfig(learning_rate=1e-3, backbone_lr_ratio=0.1, weight_decay=0.05)
    groups = parameter_groups(network, backbone_of(network), config)
    placed = {id(p): group for group in groups for p in group["params"]}
    named = dict(network.named_parameters())
    assert len(placed) == len(named) == sum(len(group["params"]) for group in groups)
    for name, parameter in named.items():
        group = placed[id(parameter)]
        in_backbone = name.startswith("segformer.")
        assert group["part"] == ("backbone" if in_backbone else "head")
        assert group["peak_lr"] == pytest.approx(1e-4 if in_backbone else 1e-3)
        assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0.0), name


def test_patterns_name_further_parameters_without_decay(network: nn.Module) -> None:
    config = TrainConfig(weight_decay=0.05, no_weight_decay=("*.classifier.*", "*dwconv*"))
    groups = parameter_groups(network, backbone_of(network), config)
    spared = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    for name, parameter in network.named_parameters():
        named = ".classifier." in name or "dwconv" in name
        assert (id(parameter) in spared) == (named or parameter.ndim == 1), name


def test_a_network_without_a_backbone_is_all_head() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1, bias=False))
    groups = parameter_groups(network, None, TrainConfig())
    assert {group["part"] for group in groups} == {"head"}
    assert sum(len(group["params"]) for group in groups) == 3


def test_what_is_frozen_is_in_no_group() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1))
    network[0].requires_grad_(False)
    groups = parameter_groups(network, None, TrainConfig())
    assert sum(len(group["params"]) for group in groups) == 2


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_resumed_optimizer_keeps_its_state_and_takes_the_settings_of_now(name: Any) -> None:
    def built(**settings: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        network = nn.Linear(3, 2)
        return network, build_optimizer(network, None, TrainConfig(optimizer=name, **settings))

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        set_learning_rate(optimizer, 0.5)
        network(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    network, optimizer = built(learning_rate=1e-2, weight_decay=0.1)
    step(network, optimizer)
    other, resumed = built(learning_rate=1e-3, weight_decay=0.3, momentum=0.5)
    other.load_state_dict(network.state_dict())
    restore_optimizer(resumed, optimizer.state_dict())
    for key, value in optimizer.state_dict()["state"].items():
        for part, stored in value.items():
            assert torch.equal(
                torch.as_tensor(resumed.state_dict()["state"][key][part]), torch.as_tensor(stored)
            )
    set_learning_rate(resumed, 1.0)
    assert {group["lr"] for group in resumed.param_groups} == {1e-3}
    assert max(group["weight_decay"] for group in resumed.param_groups) == 0.3
    if name == "sgd":
        assert {group["momentum"] for group in resumed.param_groups} == {0.5}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("saved_fused", [True, False])
def test_a_checkpoint_serves_fused_and_other_optimizers(name: Any, saved_fused: bool) -> None:
    """As between a GPU, whose optimizers are fused, and a CPU; here all on a CPU."""

    def built(fused: bool) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        network = nn.Linear(3, 2)
        groups = parameter_groups(network, None, TrainConfig(optimizer=name))
        if name == "sgd":
            sgd = torch.optim.SGD(groups, lr=1e-2, momentum=0.9, fused=fused or None)
            return network, sgd
        return network, torch.optim.AdamW(groups, lr=1e-2, fused=fused or None)

    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        set_learning_rate(optimizer, 0.5)
        network(torch.arange(3.0)[None]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    network, optimizer = built(saved_fused)
    for _ in range(2):
        step(network, optimizer)
    other, resumed = built(not saved_fused)
    other.load_state_dict(network.state_dict())
    restore_optimizer(resumed, copy.deepcopy(optimizer.state_dict()))  # else they share buffers
    for group in resumed.param_groups:
        assert bool(group["fused"]) != saved_fused
    for _ in range(2):
        step(network, optimizer)
        step(other, resumed)
    for ours, theirs in zip(other.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fused_sgd_starts_from_no_momentum_even_if_the_first_step_overflows(
    momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fused one of a CPU stands in for a GPU's; memory of others is full of large numbers."""
    config = TrainConfig(optimizer="sgd", momentum=momentum)

    def weights(fused: bool) -> list[torch.Tensor]:
        torch.manual_seed(3)
        network = nn.Linear(3, 2)
        sgd = torch.optim.SGD
        with monkeypatch.context() as patched:
            as_on_gpu = lambda *args, **more: sgd(*args, **{**more, "fused": fused})  # noqa: E731
            patched.setattr(optimizer_module.torch.optim, "SGD", as_on_gpu)
            patched.setattr(optimizer_module, "_all_on_gpu", lambda groups: fused)
            optimizer = build_optimizer(network, None, config)
        set_learning_rate(optimizer, 1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        for overflows in (True, False, False):
            loss = network(torch.arange(3.0)[None]).square().sum()
            scaler.scale(loss).backward()
            if overflows:
                network.weight.grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return [one.detach() for one in network.parameters()]

    monkeypatch.setattr(torch, "empty_like", lambda like, **_: torch.full_like(like, 1e30))
    for ours, expected in zip(weights(fused=True), weights(fused=False), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


def test_a_fused_optimizer_finds_its_step_count_where_it_needs_it() -> None:
    """On the meta device, which stands in for a GPU: a CPU's count moves there and back."""
    network = nn.Linear(3, 2, device="meta")
    groups = parameter_groups(network, None, TrainConfig())
    on_gpu = torch.optim.AdamW(groups, lr=1e-2)
    for group in on_gpu.param_groups:
        group["fused"] = True
    host = nn.Linear(3, 2)
    on_cpu = build_optimizer(host, None, TrainConfig())
    host(torch.ones(1, 3)).sum().backward()
    on_cpu.step()
    restore_optimizer(on_gpu, on_cpu.state_dict())
    assert {one["step"].device.type for one in on_gpu.state.values()} == {"meta"}
    assert all(one["step"].device.type == "cpu" for one in on_cpu.state.values())
    assert not any(group["fused"] for group in on_cpu.param_groups)
