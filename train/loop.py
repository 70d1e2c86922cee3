"""One training run, from shards to checkpoints.

plan → network, optimizer → (resume) → steps: micro-batches, loss, update → validation → checkpoint
"""

import contextlib
import logging
import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .. import storage
from ..config import to_yaml
from ..errors import CocosegError, ConfigError
from ..metrics import Scores
from ..model.config import ModelConfig
from ..model.preprocess import Preprocess, upsample
from ..model.score import predict_plain, score
from ..model.weights import load_network, start_network
from ..processes import keep_freed_memory
from ..shards.manifest import ShardEntry
from ..shards.plan import ORDER, BatchLayout, Plan, evaluation_batches, steps_for
from ..shards.reader import ShardSet
from .bad_samples import BadSamples
from .batches import MicroBatch, TrainingSamples, micro_batches
from .checkpoint import Checkpoint, load_newest, point, prune, save_checkpoint
from .config import AugmentConfig, TrainConfig
from .distributed import Group, process_group
from .journal import Journal
from .losses import LOSSES, step_counts
from .schedule import learning_rate_factor, parameter_groups

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Everything that is decided before the first step."""

    shards: ShardSet
    val_shards: ShardSet | None
    plan: Plan
    layout: BatchLayout
    total_steps: int
    end: int | None
    """Samples of the whole run; the last step's slots behind them are fillers. None: no fillers."""
    val_every: int
    checkpoint_every: int

    def identity(self, model: ModelConfig) -> dict[str, Any]:
        """Return what a resumed run must share with the one it goes on from."""
        return {
            "classes": list(self.shards.taxonomy.names),
            "shards": [
                shard.sha256 for manifest in self.shards.manifests for shard in manifest.shards
            ],
            "order": ORDER,
            "seed": self.plan.seed,
            "streams": self.plan.streams,
            "block_shards": self.plan.block_shards,
            "global_batch": self.layout.global_batch,
            "model.name": model.name,
            "model.input_size": model.input_size,
        }

    @property
    def fillers(self) -> int:
        """Slots of weight 0 in the last step."""
        slots = self.total_steps * self.layout.global_batch
        return 0 if self.end is None else slots - self.end

    @property
    def cache_bytes(self) -> int:
        """Bytes that a cache of remote shards should hold: each is then fetched once an epoch."""
        if self.shards.config.remote != "cache":
            return 0
        training = _remote_shards(self.shards)
        densest = max((shard.bytes / max(1, shard.samples) for shard in training), default=0)
        alive = min(sum(shard.bytes for shard in training), int(self.plan.samples_alive * densest))
        return alive + sum(shard.bytes for shard in _remote_shards(self.val_shards))

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run`` prints."""
        cached = self.cache_bytes
        return {
            "training_samples": len(self.shards),
            "validation_samples": len(self.val_shards) if self.val_shards else 0,
            "classes": self.shards.taxonomy.num_classes,
            "global_batch": self.layout.global_batch,
            "processes": self.layout.world_size,
            "accumulation_steps": self.layout.accumulation_steps,
            "steps": self.total_steps,
            "fillers": self.fillers,
            "epochs": round(self.total_steps * self.layout.global_batch / len(self.shards), 3),
            "val_every": self.val_every,
            "checkpoint_every": self.checkpoint_every,
            **({"cache_bytes_needed": cached} if cached else {}),
        }


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run ended."""

    save_dir: str
    step: int
    best_step: int | None
    best_miou: float | None
    bad_samples: int = 0
    """Left out; see ``train.max_bad``."""

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that the command prints."""
        return {
            "run": self.save_dir,
            "steps": self.step,
            "best_step": self.best_step,
            "best_val_mIoU": self.best_miou,
            "bad_samples": self.bad_samples,
            "checkpoint": storage.join(self.save_dir, "last" if self.best_step is None else "best"),
        }


def plan_run(train: TrainConfig, model: ModelConfig) -> RunPlan:
    """Read the manifests and decide steps and batches for the processes that torchrun started.

    Raises
    ------
    ConfigError
        If something is missing or does not fit together.
    DataError
        If shards have no manifest.
    """
    if train.save_dir is None:
        raise ConfigError("--output: give a folder for the run (train.save_dir)")
    if not train.shards:
        raise ConfigError("--shards: give at least one folder of training shards")
    shards = ShardSet(train.shards, config=train)
    val_shards = ShardSet(train.val_shards, config=train) if train.val_shards else None
    names = shards.taxonomy.names
    if val_shards is not None and val_shards.taxonomy.names != names:
        raise ConfigError("--shards and --val-shards were prepared with different classes")
    if model.num_classes not in (None, len(names)):
        raise ConfigError(f"model.num_classes is {model.num_classes}, the shards have {len(names)}")
    if len(shards) == 0:
        raise ConfigError("--shards: there is no sample in them")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    layout = BatchLayout(train.batch_size, world_size, train.accumulation_steps)
    total = train.max_steps or steps_for(train.epochs, len(shards), layout.global_batch)
    end = None if train.max_steps else max(1, math.ceil(train.epochs * len(shards)))
    val_every = train.val_every or steps_for(1, len(shards), layout.global_batch)
    plan = RunPlan(
        shards=shards,
        val_shards=val_shards,
        plan=Plan(shards.shard_sizes, train.seed, train.streams, train.block_shards),
        layout=layout,
        total_steps=total,
        end=end,
        val_every=val_every,
        checkpoint_every=train.checkpoint_every or val_every,
    )
    _check_cache(plan, train)
    return plan


def _check_cache(plan: RunPlan, train: TrainConfig) -> None:
    """Refuse a cache that cannot hold a shard, and warn of one that will hold too few."""
    remote = (*_remote_shards(plan.shards), *_remote_shards(plan.val_shards))
    largest = max((shard.bytes for shard in remote), default=0)
    if train.remote == "cache" and largest > train.cache_bytes:
        raise ConfigError(
            f"train.cache_bytes is {train.cache_bytes:,}, and there is a shard of {largest:,} "
            "bytes: raise it, or read ranges (train.remote: range)"
        )
    if plan.cache_bytes > train.cache_bytes and os.environ.get("RANK", "0") == "0":
        log.warning(
            "train.cache_bytes is %s, the order of samples wants %s at a time: shards will be "
            "fetched more than once an epoch",
            f"{train.cache_bytes:,}",
            f"{plan.cache_bytes:,}",
        )


def _remote_shards(shards: ShardSet | None) -> list[ShardEntry]:
    folders = zip(shards.folders, shards.manifests, strict=True) if shards else ()
    return [
        shard
        for folder, manifest in folders
        if storage.is_remote(folder)
        for shard in manifest.shards
    ]


def run(
    train: TrainConfig, model: ModelConfig, augment: AugmentConfig, progress: bool = False
) -> RunResult | None:
    """Train, or go on training, until the last step; the same call finds a finished run finished.

    Parameters
    ----------
    progress
        Show a bar on stderr (rank 0).

    Returns
    -------
    RunResult or None
        None on all ranks but the first.

    Raises
    ------
    ConfigError, DataError
        See `plan_run`; also if the run to resume was made with other data or another model.
    """
    plan = plan_run(train, model)
    with process_group(train.device) as group:
        if group.device.type == "cpu":
            keep_freed_memory()
        # Depth-wise convolutions, at every start: costs DDP a copy of 18 kB, means nothing else.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        trainer = _Trainer.start(train, model, augment, plan, group)
        try:
            trainer.train(progress and group.leads)
        finally:
            trainer.close()
        return trainer.result() if group.leads else None


@dataclass(slots=True)
class _Trainer:
    """The state of a run between two steps."""

    config: TrainConfig
    plan: RunPlan
    group: Group
    samples: TrainingSamples
    preprocess: Preprocess
    network: nn.Module
    """transformers' own module, which is saved and evaluated."""
    wrapped: nn.Module
    """The same under DDP, or itself."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    amp: torch.autocast
    identity: dict[str, Any]
    bad: BadSamples
    journal: Journal | None
    """None on all ranks but the first."""
    step: int = 0
    """Optimizer steps done."""
    best_miou: float | None = None
    best_step: int | None = None
    _loss: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        model: ModelConfig,
        augment: AugmentConfig,
        plan: RunPlan,
        group: Group,
    ) -> "_Trainer":
        run_folder = str(config.save_dir)
        checkpoint = _checkpoint_to_resume(config, run_folder)
        identity = plan.identity(model)
        if checkpoint is None:
            network, preprocess = start_network(model, plan.shards.taxonomy, config.seed)
        else:
            _refuse_other_run(run_folder, checkpoint.state["identity"], identity)
            loaded = load_network(checkpoint.local, model)
            network, preprocess = loaded.network, loaded.preprocess
        on_gpu = group.device.type == "cuda"
        if on_gpu and group.world_size > 1 and config.sync_batchnorm:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        network.to(group.device).train()
        wrapped: nn.Module = network
        if group.world_size > 1:
            devices = [group.device] if on_gpu else None
            wrapped = DistributedDataParallel(network, device_ids=devices)
        dtype = _amp_dtype(config, on_gpu)
        trainer = cls(
            config=config,
            plan=plan,
            group=group,
            samples=TrainingSamples(plan.shards, plan.plan, augment, model.input_size, plan.end),
            preprocess=preprocess,
            network=network,
            wrapped=wrapped,
            optimizer=torch.optim.AdamW(parameter_groups(network, config), lr=config.learning_rate),
            scaler=torch.amp.GradScaler(group.device.type, enabled=dtype == torch.float16),
            amp=torch.autocast(group.device.type, dtype, enabled=dtype != torch.float32),
            identity=identity,
            bad=BadSamples(run_folder, config.max_bad, group),
            journal=None,
        )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        if group.leads:
            sections = {"model": model, "augment": augment, "train": config}
            storage.make_folder(run_folder)
            storage.publish_bytes(
                storage.join(run_folder, "config.yaml"), to_yaml(sections).encode()
            )
            trainer.journal = Journal(run_folder, trainer.step)
            trainer.bad.publish()
            trainer.introduce(model)
        return trainer

    def introduce(self, model: ModelConfig) -> None:
        millions = sum(p.numel() for p in self.network.parameters()) / 1e6
        told = self.plan.to_dict()
        log.info(
            "%s, %.1f M parameters, on %s; %d training and %d validation samples, %d classes",
            model.name,
            millions,
            self.group.device,
            told["training_samples"],
            told["validation_samples"],
            told["classes"],
        )
        start = f"from step {self.step}" if self.step else "from the beginning"
        log.info(
            "global batch %d on %d processes, %d steps, %s",
            told["global_batch"],
            told["processes"],
            self.plan.total_steps,
            start,
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.step = state["step"]
        self.best_miou, self.best_step = state["best_miou"], state["best_step"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.bad.load_state_dict(state["bad_samples"])
        if self.group.leads and state["total_steps"] != self.plan.total_steps:
            log.warning(
                "planned for %d steps, now for %d: the learning rate follows the new plan",
                state["total_steps"],
                self.plan.total_steps,
            )
        if self.group.leads and self.best_step is not None:
            # Killed between the checkpoint and the link: the state knows better.
            point(str(self.config.save_dir), "best", self.best_step)

    def train(self, progress: bool) -> None:
        steps = micro_batches(
            self.samples,
            self.plan.layout,
            self.group.rank,
            self.step,
            self.plan.total_steps,
            self.config.workers,
            pin_memory=self.group.device.type == "cuda",
        )
        self._loss = self._loss.to(self.group.device)
        clock, logged = time.perf_counter(), self.step
        bar = tqdm(
            total=self.plan.total_steps, initial=self.step, unit="step", disable=not progress
        )
        with bar:
            for batches in steps:
                self._loss += self.update(batches)
                self.step += 1
                bar.update()
                last = self.step == self.plan.total_steps
                if self.step % self.config.log_every == 0 or last:
                    now = time.perf_counter()
                    self.log_loss(self.step - logged, now - clock)
                    clock, logged = now, self.step
                    bar.set_postfix(loss=f"{self.last_loss:.3f}", mIoU=self.best_miou)
                validates = self.step % self.plan.val_every == 0 or last
                if validates:
                    self.validate()
                if validates or self.step % self.plan.checkpoint_every == 0:
                    self.save()
                    clock, logged = time.perf_counter(), self.step

    last_loss: float = math.nan

    def update(self, batches: Sequence[MicroBatch]) -> Tensor:
        """Take one optimizer step; return this rank's part of the loss, float64 scalar."""
        config, device, world = self.config, self.group.device, self.group.world_size
        ignore_index = self.plan.shards.taxonomy.ignore_index
        factor = learning_rate_factor(
            self.step, self.plan.total_steps, config.warmup_steps, config.power
        )
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        # Dropout is a function of (seed, step, rank): there is no random state to save.
        words = np.random.SeedSequence((config.seed, self.step, self.group.rank)).generate_state(1)
        torch.manual_seed(int(words[0]))

        moved = [
            (
                batch.images.to(device, non_blocking=True),
                batch.masks.to(device, non_blocking=True).long(),
            )
            for batch in batches
        ]
        counts = torch.stack([step_counts(masks, ignore_index) for _, masks in moved]).sum(dim=0)
        bad = [one for batch in batches for one in batch.bad]
        failures = [batch.failure for batch in batches if batch.failure is not None]
        wrong = counts.new_tensor([len(bad) + len(failures)])
        pixels, images, wrong = self.group.sum(torch.cat((counts, wrong)))
        if wrong:
            self.group.stop_for(failures)
            self.bad.note(self.step, bad)
        total = torch.zeros((), dtype=torch.float64, device=device)
        for i, (photos, masks) in enumerate(moved):
            last = i == len(moved) - 1
            with contextlib.nullcontext() if last else self.no_sync():
                with self.amp:
                    logits = self.wrapped(pixel_values=self.preprocess.normalise(photos)).logits
                sums = LOSSES[config.loss_type](
                    upsample(logits, *masks.shape[1:]), masks, ignore_index
                )
                part = sums.mean(pixels, images)
                # DDP averages gradients over the ranks, whose parts are to be added.
                self.scaler.scale(part * world).backward()
            total += part.detach()
        if config.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self.wrapped, DistributedDataParallel):
            return self.wrapped.no_sync()
        return contextlib.nullcontext()

    def log_loss(self, steps: int, seconds: float) -> None:
        self.last_loss = float(self.group.sum(self._loss).item()) / steps
        self._loss.zero_()
        if not math.isfinite(self.last_loss):
            raise CocosegError(
                f"the loss is {self.last_loss} at step {self.step}: the newest checkpoint is kept; "
                "try a smaller train.learning_rate, or train.use_amp=false"
            )
        if self.journal is not None:
            self.journal.write(
                self.step,
                loss=self.last_loss,
                learning_rate=max(group["lr"] for group in self.optimizer.param_groups),
                epoch=self.step * self.plan.layout.global_batch / len(self.plan.shards),
                images_per_second=steps * self.plan.layout.global_batch / seconds,
            )

    def validate(self) -> None:
        """Score the validation shards as ``eval --no-tta`` does, each sample once."""
        shards = self.plan.val_shards
        if shards is None:
            return
        batches = evaluation_batches(
            len(shards), self.config.val_batch_size, self.group.world_size, self.group.rank
        )
        self.group.share_buffers(self.network)
        self.network.eval()
        matrix = None
        failures: list[CocosegError] = []
        try:
            matrix = score(
                lambda images: predict_plain(self.network, self.preprocess, images),
                shards,
                batches,
                self.config.workers,
            )
        except CocosegError as error:
            failures.append(error)
        self.group.stop_for(failures)
        assert matrix is not None
        self.network.train()
        summed = self.group.sum(torch.from_numpy(matrix).to(self.group.device))
        scores = Scores.from_confusion(summed.cpu().numpy())
        if not math.isnan(scores.miou) and scores.miou > (self.best_miou or -1.0):
            self.best_miou, self.best_step = scores.miou, self.step
        if self.journal is not None:
            told = scores.to_dict(shards.taxonomy.names)
            self.journal.write(
                self.step,
                val_mIoU=told["mIoU"],
                val_mIoU_foreground=told["mIoU_foreground"],
                val_pixel_accuracy=told["pixel_accuracy"],
                val_mean_accuracy=told["mean_accuracy"],
            )
            log.info(
                "step %d: val mIoU %.4f, best %.4f", self.step, scores.miou, self.best_miou or 0
            )

    def save(self) -> None:
        if self.group.leads:
            run_folder = str(self.config.save_dir)
            state = {
                "step": self.step,
                "best_miou": self.best_miou,
                "best_step": self.best_step,
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "bad_samples": self.bad.state_dict(),
                "total_steps": self.plan.total_steps,
                "identity": self.identity,
            }
            taxonomy = self.plan.shards.taxonomy
            save_checkpoint(run_folder, self.step, self.network, self.preprocess, taxonomy, state)
            if self.best_step == self.step:
                point(run_folder, "best", self.step)
            prune(run_folder, self.config.keep_last)
            assert self.journal is not None
            self.journal.publish()
        self.group.wait()

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def result(self) -> RunResult:
        return RunResult(
            str(self.config.save_dir), self.step, self.best_step, self.best_miou, len(self.bad)
        )


def _checkpoint_to_resume(config: TrainConfig, run_folder: str) -> Checkpoint | None:
    checkpoint = load_newest(run_folder)
    if checkpoint is not None and config.resume == "never":
        raise ConfigError(
            f"--output {run_folder}: holds a run already, and --resume never would overwrite it"
        )
    return checkpoint


def _refuse_other_run(run_folder: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    changed = []
    for key in here:
        old, new = there.get(key), here[key]
        if old != new:
            told = f"{old!r} there, {new!r} now" if key not in ("shards", "classes") else "differ"
            changed.append(f"  {key}: {told}")
    if changed:
        raise ConfigError(
            f"--output {run_folder}: holds a run of other data or settings, which cannot go on:\n"
            + "\n".join(changed)
            + "\nUse the settings it was started with, or another --output."
        )


def _amp_dtype(config: TrainConfig, on_gpu: bool) -> torch.dtype:
    if not (config.use_amp and on_gpu):
        return torch.float32
    if config.amp_dtype == "auto":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if config.amp_dtype == "bfloat16" else torch.float16
