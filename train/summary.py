"""The table that a run begins with."""

from collections.abc import Mapping

import torch

from ..figures import bytes_text
from ..model.config import ModelConfig
from ..model.memory import UnknownMemory
from ..model.precision import dtype_name
from ..shards.reader import ShardSet
from .config import TrainConfig
from .network import memory_of, precision
from .run_plan import RunPlan
from .step import TrainingStep


def introduction(
    config: TrainConfig, model: ModelConfig, plan: RunPlan, learn: TrainingStep
) -> str:
    """Return the table: what is trained on which data, where, how long, and what it takes."""
    layout, device = plan.layout, learn.group.device
    parameters = list(learn.network.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    total = sum(p.numel() for p in parameters)
    frozen = "" if trained == total else f", {trained / 1e6:.1f} M of them trained"
    shown, samples = plan.order.samples, len(plan.shards)
    repeated = "" if shown == samples else f"; {shown:,} shown an epoch"
    facts = {
        "data": f"{_size(plan.shards)}{repeated}",
        "validation": _size(plan.val_shards) if plan.val_shards else "none",
        "classes": str(plan.shards.taxonomy.num_classes),
        "model": f"{model.name}, {total / 1e6:.1f} M parameters{frozen}",
        "global batch": f"{layout.global_batch} = {layout.batch_size} images × "
        f"{layout.world_size} process{'es' * (layout.world_size > 1)} × "
        f"{layout.accumulation_steps} micro-batches, "
        f"{model.input_size}² each",
        "steps": f"{plan.total_steps:,} ({plan.epochs:,.4g} epochs)",
        "learning rate": ", ".join(f"{rate:.3g} {part}" for part, rate in plan.peak_rates.items()),
        "device": f"{_device(device)}, {dtype_name(precision(config, device))}",
        "memory": _memory(config, model, learn),
        "run": str(config.save_dir),
    }
    return table(facts)


def _size(shards: ShardSet) -> str:
    entries = [shard for manifest in shards.manifests for shard in manifest.shards]
    size = bytes_text(sum(shard.bytes for shard in entries))
    return f"{len(shards):,} samples in {len(entries):,} shards, {size}"


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return str(device)
    try:
        return torch.cuda.get_device_name(device)
    except (RuntimeError, AssertionError):  # of a driver that fails here; training may work
        return str(device)


def _memory(config: TrainConfig, model: ModelConfig, learn: TrainingStep) -> str:
    try:
        need = memory_of(learn.network, config, model.input_size, learn.group.device)
    except UnknownMemory as error:
        return f"unknown ({error})"
    parts = {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimizer": need.optimizer,
        "average": need.ema,
        "activations": need.activations,
        "loss": need.loss,
    }
    told = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items() if size)
    return f"about {bytes_text(need.total)} a process: {told}"


def table(facts: Mapping[str, str]) -> str:
    """Write facts below each other, their values aligned; a value's further lines are indented.

    Parameters
    ----------
    facts
        Name → value; what has no value is left out.
    """
    told = {name: value for name, value in facts.items() if value}
    width = max(map(len, told), default=0) + 2
    lines = []
    for name, value in told.items():
        first, *more = value.splitlines()
        lines.append(f"{name:<{width}}{first}")
        lines += [" " * width + line for line in more]
    return "\n".join(lines)
