"""Layers of transformers whose forward is replaced by a faster one of the same parameters.

An instance changes its class and nothing else: names, saved files, copies and pickles stay.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import SegformerConfig, SegformerForSemanticSegmentation

log = logging.getLogger(__name__)

_TOLERANCE = 1e-9  # of float64 values near 1; rounding differs by 1e-15


ANY: tuple[type[nn.Module], ...] = ()
"""A child of whatever type, as it is called and no more."""


@dataclass(frozen=True, slots=True, eq=False)  # hashable: there is one of each
class Replacement:
    """One layer's faster forward, and how the layer must be built for it."""

    theirs: type[nn.Module]
    ours: type[nn.Module]
    """A subclass of `theirs` with another forward."""
    children: Mapping[str, tuple[type[nn.Module], ...]]
    """The types that each child may have, or `ANY`."""
    fits: Callable[[Any], bool] = lambda layer: True
    """Return whether shapes are those that the forward counts on."""

    def knows(self, layer: nn.Module) -> bool:
        """Return whether a layer is as transformers builds it: nothing added, nothing replaced."""
        children = dict(layer.named_children())
        return (
            type(layer) is self.theirs
            and "forward" not in vars(layer)
            and children.keys() == self.children.keys()
            and all(
                self.children[name] is ANY or type(child) in self.children[name]
                for name, child in children.items()
            )
            and self.fits(layer)
        )


def replace_layers(network: nn.Module, what: str, replacements: Iterable[Replacement]) -> bool:
    """Replace layers of a SegFormer, all of them or none.

    None are if one is not built as expected, or if transformers computes something else by now:
    a tiny network runs both ways first, once in a process (50 ms).

    Parameters
    ----------
    what
        Names the part in the warning.

    Returns
    -------
    bool
        Whether they were replaced.
    """
    if not isinstance(network, SegformerForSemanticSegmentation):
        return False
    replacements = tuple(replacements)
    theirs = {replacement.theirs: replacement for replacement in replacements}
    layers = [
        (layer, theirs[kind])
        for layer in network.modules()
        for kind in type(layer).__mro__
        if kind in theirs
    ]
    todo = [(layer, which) for layer, which in layers if type(layer) is not which.ours]
    if (
        not layers
        or not all(which.knows(layer) for layer, which in todo)
        or not _agree(replacements)
    ):
        _warn(what)
        return False
    for layer, which in todo:
        layer.__class__ = which.ours
    return True


@functools.cache
def _warn(what: str) -> None:
    log.warning(
        "transformers' %s is not the one that cocoseg knows: its own is used, which is slower", what
    )


@functools.cache
def _agree(replacements: tuple[Replacement, ...]) -> bool:
    """Run a tiny network both ways, in eval and in training mode, and compare."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.no_grad():
            torch.manual_seed(0)
            config = SegformerConfig(
                hidden_sizes=[4, 4, 8, 8],
                depths=[1, 1, 1, 2],
                num_attention_heads=[1, 1, 2, 2],
                decoder_hidden_size=8,
                num_labels=3,
                drop_path_rate=0.3,
            )
            network = SegformerForSemanticSegmentation(config).double()
            for tensor in network.state_dict().values():
                if tensor.is_floating_point():
                    tensor.uniform_(0.1, 0.9)  # statistics of batch norms too
            for module in network.modules():
                if isinstance(module, _BatchNorm):
                    module.momentum = 0.0
            pixels = torch.randn(2, 3, 65, 33, dtype=torch.float64)
            before = _outputs(network, pixels)
            for module in network.modules():
                for replacement in replacements:
                    if type(module) is replacement.theirs:
                        module.__class__ = replacement.ours
            after = _outputs(network, pixels)
    except Exception as error:  # whatever another version may do
        log.debug("the comparison failed: %s", error)
        return False
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE)
        for a, b in zip(before, after, strict=True)
    )


def _outputs(network: Any, pixels: Tensor) -> list[Tensor]:
    outputs: list[Tensor] = []
    for mode in (False, True):
        torch.manual_seed(1)
        one = network.train(mode)(pixel_values=pixels, output_hidden_states=True)
        outputs += [one.logits, *one.hidden_states]
    return outputs
