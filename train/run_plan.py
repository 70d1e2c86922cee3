"""What a run is going to do, decided before its first step: data, order, batches, steps."""

import difflib
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..distributed.group import Group
from ..errors import ConfigError
from ..model.config import ModelConfig
from ..printable import redacted
from ..processes import Launch
from ..shards.census import Census
from ..shards.manifest import ShardEntry
from ..shards.order import ORDER, BatchLayout, SampleOrder, steps_for
from ..shards.reader import ShardSet
from ..shards.repeats import Repeats
from ..storage import locate
from .class_weights import class_weights
from .config import AugmentConfig, TrainConfig

log = logging.getLogger(__name__)

_MOST_VALIDATIONS = 50  # of a run, where train.val_every does not say how often
_TOLD = 5  # classes or shards that a refusal names
_OF_A_MACHINE = {
    "shards",
    "val_shards",
    "save_dir",
    "cache_dir",
    "cache_bytes",
    "workers",
    "device",
}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that is decided before the first step."""

    shards: ShardSet
    val_shards: ShardSet | None
    repeats: Repeats
    """How often an epoch shows each sample."""
    order: SampleOrder
    """The order of what is shown: sample numbers of `repeats`."""
    layout: BatchLayout
    total_steps: int
    end: int | None
    """Samples of the whole run; the last step's slots behind them are fillers. None: no fillers."""
    val_every: int
    checkpoint_every: int
    class_weights: tuple[float, ...] | None
    """By train id; None where all count the same."""
    identity: dict[str, Any]
    """What a run must share with the one that it resumes."""
    settings: dict[str, Any]
    """``section.key`` → value of what decides the run; places and machines' own are left out."""

    @property
    def fillers(self) -> int:
        """Slots of weight 0 in the last step."""
        slots = self.total_steps * self.layout.global_batch
        return 0 if self.end is None else slots - self.end

    @property
    def epochs(self) -> float:
        """Passes through the training shards."""
        return self.epochs_after(self.total_steps)

    def epochs_after(self, step: int) -> float:
        """Return the passes that `step` optimizer steps make up; fillers are none of them."""
        slots = step * self.layout.global_batch
        return (slots if self.end is None else min(slots, self.end)) / self.order.samples

    @property
    def peak_rates(self) -> dict[str, float]:
        """Largest learning rate of head and backbone."""
        head = float(self.settings["train.learning_rate"])
        return {"head": head, "backbone": head * self.settings["train.backbone_lr_ratio"]}

    @property
    def scored_on(self) -> str | None:
        """What stands for the validation shards: scores on others cannot be compared."""
        return _digest(self.val_shards) if self.val_shards else None

    @property
    def cache_bytes(self) -> int:
        """Bytes that a cache of remote shards should hold: each is then fetched once an epoch."""
        if self.shards.config.remote != "cache":
            return 0
        training = [shard.bytes * far for shard, far in _shards(self.shards)]
        shown = zip(training, self.repeats.shard_sizes, strict=True)
        densest = max((size / max(1, showings) for size, showings in shown), default=0)
        alive = min(sum(training), int(self.order.samples_alive * densest))
        return alive + sum(shard.bytes * far for shard, far in _shards(self.val_shards))

    def validates_after(self, step: int) -> bool:
        """Return whether validation follows `step` optimizer steps."""
        return self.val_shards is not None and (
            step == self.total_steps or (step > 0 and step % self.val_every == 0)
        )

    def warnings(self) -> list[str]:
        """Return what of the masks makes training learn less than expected, or nothing."""
        found = []
        for name, shards in (("training", self.shards), ("validation", self.val_shards)):
            if shards is not None:
                census = Census.of(shards.indices, shards.taxonomy.num_classes)
                warnings = census.warnings(
                    shards.taxonomy, shards.indices, absent_classes=shards is self.shards
                )
                found += [f"{name} shards: {warning}" for warning in warnings]
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run`` prints."""
        cached = self.cache_bytes
        shown = self.order.samples
        return {
            "training_samples": len(self.shards),
            **({"shown_an_epoch": shown} if shown != len(self.shards) else {}),
            "validation_samples": len(self.val_shards) if self.val_shards else 0,
            "classes": self.shards.taxonomy.num_classes,
            "global_batch": self.layout.global_batch,
            "processes": self.layout.world_size,
            "accumulation_steps": self.layout.accumulation_steps,
            "steps": self.total_steps,
            "fillers": self.fillers,
            "epochs": round(self.epochs, 3),
            "learning_rate": self.peak_rates,
            **({"val_every": self.val_every} if self.val_shards else {}),
            "checkpoint_every": self.checkpoint_every,
            **({"cache_bytes_needed": cached} if cached else {}),
            "warnings": self.warnings(),
        }


def plan_run(
    train: TrainConfig,
    model: ModelConfig,
    augment: AugmentConfig,
    begun: Mapping[str, Any] | None = None,
) -> RunPlan:
    """Read the manifests and decide steps and batches for the processes that torchrun started.

    Parameters
    ----------
    begun
        `RunPlan.identity` of the run to resume: its global batch is kept.

    Raises
    ------
    ConfigError
        If something is missing or does not fit together, or `begun` was of other data or settings.
    DataError
        If shards have no manifest.
    """
    if not train.shards:
        raise ConfigError("--shards: give at least one folder of training shards")
    if train.patience and not train.val_shards:
        raise ConfigError("train.patience: without --val-shards there is no score to wait for")
    shards = ShardSet(train.shards, config=train)
    val_shards = ShardSet(train.val_shards, config=train) if train.val_shards else None
    names = shards.taxonomy.names
    if val_shards is not None and val_shards.taxonomy.names != names:
        raise ConfigError("--shards and --val-shards were prepared with different classes")
    if model.num_classes not in (None, len(names)):
        raise ConfigError(f"model.num_classes is {model.num_classes}, the shards have {len(names)}")
    if len(shards) == 0:
        raise ConfigError("--shards: there is no sample in them")
    layout = _layout(train, begun)
    weights = class_weights(train.class_weights, shards.manifests, len(names))
    identity = {
        "classes": list(names),
        "shards": [shard.sha256 for manifest in shards.manifests for shard in manifest.shards],
        "order": ORDER,
        "global_batch": layout.global_batch,
        **{f"train.{key}": getattr(train, key) for key in train.fixed_keys},
        **{f"model.{key}": getattr(model, key) for key in model.fixed_keys},
        "model.name": redacted(model.name),
        "train.class_weights": weights and list(weights),  # what 'auto' came to
        "model.num_classes": len(names),
    }
    if begun is not None:
        _refuse_other_run(str(train.save_dir), begun, identity)
    repeats = Repeats.of(shards, train.rare_class_sampling, train.seed)
    shown = len(repeats)
    total_steps = train.max_steps or steps_for(train.epochs, shown, layout.global_batch)
    once_an_epoch = steps_for(1, shown, layout.global_batch)
    val_every = train.val_every or max(once_an_epoch, -(-total_steps // _MOST_VALIDATIONS))
    plan = RunPlan(
        shards=shards,
        val_shards=val_shards,
        repeats=repeats,
        order=SampleOrder(repeats.shard_sizes, train.seed, train.streams, train.block_shards),
        layout=layout,
        total_steps=total_steps,
        end=None if train.max_steps else max(1, math.ceil(train.epochs * shown)),
        val_every=val_every,
        checkpoint_every=train.checkpoint_every or val_every,
        class_weights=weights,
        identity=identity,
        settings={
            f"{section}.{key}": redacted(value) if isinstance(value, str) else value
            for section, config in (("train", train), ("model", model), ("augment", augment))
            for key, value in config.model_dump(mode="json").items()
            if key not in _OF_A_MACHINE
        },
    )
    _check_cache(plan, train)
    return plan


def agree_on_plan(plan: RunPlan, group: Group) -> None:
    """Find out whether all processes plan the same; they call it together.

    Raises
    ------
    ConfigError
        On every process, if one was started with other settings or sees other shards.
    """
    own = {
        **plan.settings,
        "training shards": _digest(plan.shards),
        "validation shards": plan.scored_on,
    }
    first, *others = group.gather(own)
    for rank, other in enumerate(others, 1):
        differing = [key for key in first if other[key] != first[key]]
        if differing:
            lines = [
                f"  {key}: {first[key]!r} there, {other[key]!r} on rank {rank}" for key in differing
            ]
            error = ConfigError(
                "the processes were started with different settings or shards than rank 0:\n"
                + "\n".join(lines)
            )
            group.stop(error)


def changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ, each with what it was and what it is."""
    return {key: (there.get(key), value) for key, value in here.items() if there.get(key) != value}


def _digest(shards: ShardSet) -> str:
    digests = [shard.sha256 for manifest in shards.manifests for shard in manifest.shards]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()[:16]


def _layout(train: TrainConfig, begun: Mapping[str, Any] | None) -> BatchLayout:
    """Deal the global batch to the processes at hand; that of a run once begun stays."""
    world_size = Launch.from_environment().world_size
    asked = BatchLayout(train.batch_size, world_size, train.accumulation_steps)
    if begun is None or asked.global_batch == begun["global_batch"]:
        return asked
    kept, together = int(begun["global_batch"]), train.batch_size * world_size
    if kept % together:
        fitting = [
            size for size in range(1, kept // world_size + 1) if kept % (size * world_size) == 0
        ]
        way_out = (
            f"a train.batch_size that fits is {', '.join(map(str, fitting))}"
            if fitting
            else f"no train.batch_size does; numbers of processes that fit are "
            f"{', '.join(str(n) for n in range(1, kept + 1) if kept % n == 0)}"
        )
        raise ConfigError(
            f"the run was begun with a global batch of {kept}, which {world_size} processes of "
            f"batch_size {train.batch_size} cannot make up: {way_out}"
        )
    layout = BatchLayout(train.batch_size, world_size, kept // together)
    if Launch.from_environment().leads:
        log.info(
            "accumulation_steps %d instead of %d, so that the global batch stays %d",
            layout.accumulation_steps,
            train.accumulation_steps,
            kept,
        )
    return layout


def _refuse_other_run(run: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    changed = [
        f"  {key}: {_difference(key, *values)}" for key, values in changes(there, here).items()
    ]
    if changed:
        raise ConfigError(
            f"--output {run}: holds a run of other data or settings, which cannot be resumed:\n"
            + "\n".join(changed)
            + "\nUse the settings it was started with, or another --output."
        )


def _difference(key: str, there: Any, here: Any) -> str:
    if key not in ("classes", "shards"):
        return f"{there!r} there, {here!r} now"
    if key == "shards":
        gone, new = Counter(there) - Counter(here), Counter(here) - Counter(there)
        if not gone and not new:
            return "the same, in another order"
        return (
            f"{gone.total()} of {len(there)} there are gone or changed, {new.total()} now are new"
        )
    lines = [
        line
        for line in difflib.ndiff(there, here)
        if line[:1] in "+-"  # names alone: no hints, no common lines
    ]
    more = f" … ({len(lines)} differ)" if len(lines) > _TOLD else ""
    return ", ".join(lines[:_TOLD]) + more


def _check_cache(plan: RunPlan, train: TrainConfig) -> None:
    """Refuse a cache that cannot hold a shard, and warn of one that will hold too few."""
    every = (*_shards(plan.shards), *_shards(plan.val_shards))
    largest = max((shard.bytes for shard, far in every if far), default=0)
    if train.remote == "cache" and largest > train.cache_bytes:
        raise ConfigError(
            f"train.cache_bytes is {train.cache_bytes:,}, and there is a shard of {largest:,} "
            "bytes: raise it, or read ranges (train.remote: range)"
        )
    if plan.cache_bytes > train.cache_bytes and Launch.from_environment().leads:
        log.warning(
            "train.cache_bytes is %s, the order of samples needs %s at a time: shards will be "
            "fetched more than once an epoch",
            f"{train.cache_bytes:,}",
            f"{plan.cache_bytes:,}",
        )


def _shards(shards: ShardSet | None) -> list[tuple[ShardEntry, bool]]:
    """Return all shards, in their order, and whether each is in an object store."""
    folders = zip(shards.folders, shards.manifests, strict=True) if shards else ()
    return [
        (shard, locate(folder).remote) for folder, manifest in folders for shard in manifest.shards
    ]
