"""An exponential moving average of the weights."""

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


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
        self._averaged = AveragedModel(network)
        self._averaged.n_averaged.fill_(1)  # what it starts from counts: it is no mere copy

    @property
    def network(self) -> nn.Module:
        """The averaged network, which is scored and saved."""
        return self._averaged.module

    def update(self, network: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        self._averaged.multi_avg_fn = get_ema_multi_avg_fn(decay)
        self._averaged.update_parameters(network)
