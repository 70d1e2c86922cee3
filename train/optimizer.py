"""Optimizers, and which parameters learn at which rate and with which decay."""

import fnmatch
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from .config import TrainConfig


def build_optimizer(
    network: nn.Module, backbone: nn.Module | None, config: TrainConfig
) -> torch.optim.Optimizer:
    """Return the optimizer of a run, over `parameter_groups`.

    On GPUs it is PyTorch's fused one: a few kernels in all, and no temporary copies.
    """
    groups = parameter_groups(network, backbone, config)
    fused = _all_on_gpu(groups) or None
    if config.optimizer == "sgd":
        sgd = torch.optim.SGD(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            fused=fused,
        )
        if fused and config.momentum:
            _start_momentum(sgd)
        return sgd
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)


def _all_on_gpu(groups: list[dict[str, Any]]) -> bool:
    return all(p.device.type == "cuda" for group in groups for p in group["params"])


def _start_momentum(sgd: torch.optim.SGD) -> None:
    """Start momentum at 0, so that the first step gives the gradient, as without a start.

    PyTorch's fused SGD takes uninitialized memory for it, and leaves it so where the first gradient
    overflows in float16 and the step is skipped.
    """
    for group in sgd.param_groups:
        for parameter in group["params"]:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def parameter_groups(
    network: nn.Module, backbone: nn.Module | None, config: TrainConfig
) -> list[dict[str, Any]]:
    """Split what is trained: backbone and head by learning rate; norms and biases without decay.

    Each group holds its peak rate under ``peak_lr`` and, under ``part``, whether it is of the
    backbone or the head. Parameters of one dimension are norms and biases.

    Raises
    ------
    ConfigError
        If a pattern of ``no_weight_decay`` names no parameter.
    """
    names = [name for name, _ in network.named_parameters()]
    for pattern in config.no_weight_decay:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"train.no_weight_decay: {pattern!r} names no parameter; there are {names[0]!r} … "
                f"{names[-1]!r}"
            )
    in_backbone = {id(parameter) for parameter in backbone.parameters()} if backbone else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            spared = any(fnmatch.fnmatch(name, pattern) for pattern in config.no_weight_decay)
            decays = parameter.ndim > 1 and not spared
            groups.setdefault((id(parameter) not in in_backbone, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "part": "head" if head else "backbone",
            "weight_decay": config.weight_decay if decays else 0.0,
            "peak_lr": config.learning_rate * (1.0 if head else config.backbone_lr_ratio),
        }
        for (head, decays), parameters in groups.items()
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to `factor` of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load a `state_dict`, but keep the rates and decays that `build_optimizer` set.

    PyTorch would bring back those of the run's start, whatever the settings say now; and by the
    settings it decides where the state lives: a fused optimizer counts its steps on the GPU, others
    on the CPU, so a checkpoint of either serves both.
    """
    groups = [
        {**saved, **{key: value for key, value in group.items() if key != "params"}}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
