"""The moving average against PyTorch's own, bit for bit."""

import pytest
import torch
from cocoseg.train.ema import MovingAverage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


@pytest.mark.parametrize("decay", [0.15, 0.9])
def test_the_average_is_pytorchs_to_the_bit(decay: float) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1))
    theirs = AveragedModel(network)
    theirs.n_averaged.fill_(1)
    ours = MovingAverage(network, decay)
    for step in range(12):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            network(torch.randn(2, 3, 8, 8))  # statistics follow
        theirs.multi_avg_fn = get_ema_multi_avg_fn(min(decay, (1 + step) / (10 + step)))
        theirs.update_parameters(network)
        ours.update(network, step)
        found = ours.network.state_dict()
        for name, value in theirs.module.state_dict().items():
            assert torch.equal(found[name], value), (step, name)


def test_the_average_is_a_copy_that_learns_nothing() -> None:
    network = nn.Linear(2, 2)
    average = MovingAverage(network, 0.5)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert all(parameter.requires_grad for parameter in network.parameters())
    average.update(network, 0)
    assert torch.equal(average.network.weight, network.weight)
