"""An exponential moving average of the weights."""

import copy

import torch
from torch import Tensor, nn


class MovingAverage:
    """Weights averaged over the steps; buffers are those of the network.

    After step t (from 0) the average moves by 1 − d towards the weights, d = min(decay, (1 + t) /
    (10 + t)): the first steps are soon forgotten. Source: Tarvainen and Valpola, "Mean teachers are
    better role models" (2017); the growing decay is TensorFlow's ``num_updates``.

    Parameters
    ----------
    network
        With the weights that the average starts from; it is copied.
    decay
        Below 1.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).requires_grad_(False)
        """The averaged network, which is scored and saved."""

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        averaged: list[Tensor] = list(self.network.parameters())
        torch._foreach_lerp_(averaged, list[Tensor](network.parameters()), 1 - decay)
        if buffers := list(self.network.buffers()):
            torch._foreach_copy_(buffers, list(network.buffers()))
