"""Learning rates: groups of parameters, and a pure function of the optimizer step."""

from typing import Any

from torch import nn

from .config import TrainConfig

_LARGEST_WARMUP = 0.1  # of all steps: a short run must still reach its peak


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, power: float) -> float:
    """Return the factor of the peak learning rate at optimizer step t = 0 … T − 1.

    Linear warmup over w = min(warmup_steps, T / 10) steps, then polynomial decay:

        (t + 1) / (w + 1)                     for t < w
        (1 − (t − w) / (T − w)) ^ power       from t = w on

    It is 1 at t = w and would reach 0 at t = T.
    """
    warmup = min(warmup_steps, int(total_steps * _LARGEST_WARMUP))
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return float(max(0.0, 1 - progress) ** power)


def parameter_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Split parameters: backbone and head by learning rate; norms and biases without decay.

    Each group holds its peak rate under ``peak_lr``.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            head, decays = not name.startswith("segformer."), parameter.ndim > 1
            groups.setdefault((head, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": config.weight_decay if decays else 0.0,
            "peak_lr": config.learning_rate * (1.0 if head else config.backbone_lr_ratio),
        }
        for (head, decays), parameters in groups.items()
    ]
