"""The network as it is trained: what of it learns, where, in which precision, and its memory."""

import torch
from torch import nn

from ..distributed.group import Group
from ..model import switches
from ..model.memory import TrainingMemory, training_memory
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
    if config.channels_last:
        switches.to_channels_last(network)
    if group.device.type == "cuda" and group.world_size > 1 and config.sync_batchnorm:
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
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
    if not config.use_amp:
        return torch.float32
    if config.amp_dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    return torch.bfloat16 if config.amp_dtype == "bfloat16" else torch.float16


def memory_of(
    network: nn.Module, config: TrainConfig, input_size: int, device: torch.device
) -> TrainingMemory:
    """Estimate what a training step takes of a device's memory."""
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
