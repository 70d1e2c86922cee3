"""How a network is trained: what stays as it is, what is recomputed, what is compiled.

Each switch changes speed, memory or what is learnt, and never what the network computes.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import PreTrainedModel

from ..errors import ConfigError
from .encoder import MixMLP
from .meta import meta_copy


def backbone_of(network: nn.Module) -> nn.Module | None:
    """Return the pretrained encoder of one of transformers' networks; the rest is its head.

    None where transformers does not tell the two apart.
    """
    prefix = getattr(network, "base_model_prefix", "")
    for name in (prefix, "backbone"):
        module = getattr(network, name, None) if name else None
        if isinstance(module, nn.Module) and module is not network:
            return module
    return None


def freeze_backbone(network: nn.Module) -> None:
    """Exclude the backbone from training; call it before DDP wraps the network.

    Its mode is another matter: see `train_mode`.

    Raises
    ------
    ConfigError
        If the network has no backbone that could be told from its head.
    """
    backbone = backbone_of(network)
    if backbone is None:
        raise ConfigError(
            f"train.freeze_backbone: transformers names no backbone of {type(network).__name__}"
        )
    backbone.requires_grad_(False)


def freeze_unused(network: nn.Module, input_size: int) -> list[str]:
    """Exclude from training what the logits do not depend on, such as auxiliary heads.

    DDP waits for a gradient of every parameter that asks for one. Found by a forward and backward
    pass on the meta device; a SegFormer uses all of its parameters.

    Parameters
    ----------
    input_size
        Side of the square inputs [pixels].

    Returns
    -------
    list of str
        Names of the parameters that no longer ask for a gradient.
    """
    model: Any = network
    if model.config.model_type == "segformer":
        return []
    probe: Any = meta_copy(network).train()
    named = [(name, p) for name, p in probe.named_parameters() if p.requires_grad]
    # Two images: a batch norm over pooled pixels refuses a single one.
    pixels = torch.empty(2, 3, input_size, input_size, device="meta")
    logits = probe(pixel_values=pixels).logits
    gradients = torch.autograd.grad(
        logits, [p for _, p in named], torch.empty_like(logits), allow_unused=True
    )
    unused = [name for (name, _), g in zip(named, gradients, strict=True) if g is None]
    for name in unused:
        network.get_parameter(name).requires_grad_(False)
    return unused


def train_mode(
    network: nn.Module, *, freeze_backbone: bool = False, freeze_batch_norm: bool = False
) -> None:
    """Put a network into training mode, after validation too; replaces ``network.train()``.

    Parameters
    ----------
    freeze_backbone
        The backbone stays in eval mode: no dropout, no drop-path, no statistics.
    freeze_batch_norm
        Every batch norm stays in eval mode and keeps its statistics; its scale and shift learn.
    """
    network.train()
    backbone = backbone_of(network)
    if freeze_backbone and backbone is not None:
        backbone.eval()
    if freeze_batch_norm:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def checkpoint_activations(network: nn.Module) -> None:
    """Recompute activations in the backward pass instead of keeping them.

    Not re-entrant: that works under DDP, with a frozen backbone, and restores dropout.

    Raises
    ------
    ConfigError
        If transformers cannot do that for this network.
    """
    model: Any = network
    if not getattr(network, "supports_gradient_checkpointing", False):
        raise ConfigError(
            "train.activation_checkpointing: transformers has none for "
            f"{type(network).__name__}; switch it off"
        )
    # The older of the two names warns from transformers 5.20 or so on; before, it is the only one.
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:
        enable = model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def keep_mlp_activations(network: nn.Module) -> None:
    """Keep the wide middle of a SegFormer's blocks in memory instead of computing it again.

    Other networks stay as they are.
    """
    for module in network.modules():
        if isinstance(module, MixMLP):
            module.recompute = False


def to_channels_last(network: nn.Module) -> None:
    """Lay out the weights of convolutions with channels last, as a GPU's kernels want them."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def compiled(network: nn.Module) -> nn.Module:
    """Return a module that runs compiled, for DDP to wrap.

    It shares the parameters; the network itself stays as it is, for validation and saving.

    The graph is whole. PyTorch's optimizer of DDP graphs, which would cut it into buckets, is
    switched off for the process: it refuses functions with a backward pass of their own, as
    SegFormer's blocks have.
    """
    _install_hooks(network)
    torch._dynamo.config.optimize_ddp = False
    return torch.compile(network)  # type: ignore[return-value]


def _install_hooks(network: nn.Module) -> None:
    """Install transformers' hooks, which the first forward does by a lock that cannot be traced.

    That of a model installs those of the models in it once more, where they have some already, and
    each output would be captured twice.
    """
    try:
        from transformers.utils.output_capturing import maybe_install_capturing_hooks
    except ImportError:  # of a version that has none
        return
    for module in network.modules():
        if isinstance(module, PreTrainedModel) and not any(map(_has_hooks, module.modules())):
            maybe_install_capturing_hooks(module)


def _has_hooks(module: nn.Module) -> bool:
    return getattr(module, "_output_capturing_hooks_installed", False)
