"""What to tell, and to change, when a device has no memory left for training."""

from .config import TrainConfig


def advice(config: TrainConfig, accumulation_steps: int) -> str:
    """Return which settings to change, those that cost least first."""
    changes = []
    if not config.recompute_mlp:
        changes.append("train.recompute_mlp=true")
    if config.batch_size > 1:
        half = next(n for n in range(config.batch_size // 2, 0, -1) if config.batch_size % n == 0)
        more = accumulation_steps * config.batch_size // half
        changes.append(
            f"train.batch_size={half} train.accumulation_steps={more} (the global batch stays)"
        )
    if not config.activation_checkpointing:
        changes.append("train.activation_checkpointing=true")
    changes.append("a smaller model.input_size (in a new run)")
    return f"Try, in this order: {'; '.join(changes)}. See docs/how-to.md, 'Out of memory'"
