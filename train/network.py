"""The network as it is trained: what of it learns, where, in which precision, and its memory."""

import torch
from torch import nn

from ..distributed.group import Group
from ..model import switches
from ..model.memory import TrainingMemory, training_memory
from ..model.precision import resolve_precision
from ..model.sync_batchnorm import synchronize_batch_norms
from .config import TrainConfig


def prepare_network(
    network: nn.Module, config: TrainConfig, input_size: int, group: Group
) -> nn.Module:
    """Freeze what does not learn, and move the network to the group's device.

    Raises
    ------
    ConfigError
        If a setting is nothing for this network; see `model.switches`.
    """
    if config.freeze_backbone:
        switches.freeze_backbone(network)
    switches.freeze_unused(network, input_size)
    if config.activation_checkpointing:
        switches.checkpoint_activations(network)
    if not config.recompute_mlp:
        switches.keep_mlp_activations(network)
    if config.channels_last:
        switches.to_channels_last(network)
    if group.world_size > 1 and config.sync_batchnorm:
        synchronize_batch_norms(network)
    return network.to(group.device)


def train_mode(network: nn.Module, config: TrainConfig) -> None:
    """Put a network into training mode, after validation too: what is frozen stays in eval mode."""
    switches.train_mode(
        network,
        freeze_backbone=config.freeze_backbone,
        freeze_batch_norm=config.freeze_batch_norm,
    )


def precision(config: TrainConfig, device: torch.device) -> torch.dtype:
    """Return what the network computes in, as `TrainConfig.amp_dtype` says."""
    return resolve_precision(config.amp_dtype if config.use_amp else "float32", device)


def memory_of(
    network: nn.Module, config: TrainConfig, input_size: int, device: torch.device
) -> TrainingMemory:
    """Estimate what a training step takes of a device's memory.

    Raises
    ------
    UnknownMemory
        If it cannot be estimated.
    """
    dtype = precision(config, device)
    return training_memory(
        network,
        config.batch_size,
        input_size,
        optimizer_states=2 if config.optimizer == "adamw" else int(config.momentum > 0),
        ema=config.ema_decay > 0,
        amp=None if dtype == torch.float32 else dtype,
        device=device.type,
    )
