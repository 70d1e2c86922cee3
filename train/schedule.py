"""The learning rate: a pure function of the optimizer step."""

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
