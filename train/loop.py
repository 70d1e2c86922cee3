"""One training run, from shards to checkpoints.

newest checkpoint → plan → network, optimizer → steps → validation → checkpoint
"""

import contextlib
import dataclasses
import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from .. import storage
from ..config import to_yaml
from ..errors import CocosegError, ConfigError, Interrupted
from ..metrics import Scores
from ..model import switches
from ..model.config import ModelConfig
from ..model.score import predict_plain
from ..model.weights import load_network, start_network
from ..processes import available_cores, end_with_launcher, keep_freed_memory
from .augment import check_extra
from .bad_samples import BadSamples
from .batches import MicroBatch, TrainingSamples, micro_batches
from .checkpoint import (
    Checkpoint,
    agree_on_newest,
    point,
    prune,
    restore_pointers,
    run_lock,
    save_checkpoint,
)
from .config import AugmentConfig, TrainConfig
from .distributed import Group, process_group
from .ema import MovingAverage
from .interrupt import Interrupts
from .journal import Journal
from .losses.step import StepLoss
from .network import prepare_network
from .optimizer import restore_optimizer, set_learning_rate
from .pace import Pace
from .pictures import chosen, triptych
from .run_plan import RunPlan, plan_run
from .schedule import learning_rate_factor
from .step import StepResult, TrainingStep
from .summary import introduction
from .validation import validate

log = logging.getLogger(__name__)

_KEYS_TOLD = 8  # samples that a skipped step's warning names


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a run ended."""

    save_dir: str
    step: int
    best_step: int | None
    best_score: float | None
    monitor: str
    bad_samples: int = 0
    """Left out; see ``train.max_bad``."""
    skipped_steps: int = 0
    """Whose loss was no finite number; see ``train.max_skipped``."""
    early: bool = False
    """Whether ``train.patience`` ended it."""

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that the command prints."""
        return {
            "run": self.save_dir,
            "steps": self.step,
            "ended_early": self.early,
            "best_step": self.best_step,
            f"best_{self.monitor}": self.best_score,
            "bad_samples": self.bad_samples,
            "skipped_steps": self.skipped_steps,
            "checkpoint": storage.join(self.save_dir, "last" if self.best_step is None else "best"),
        }


def run(
    train: TrainConfig, model: ModelConfig, augment: AugmentConfig, progress: bool = False
) -> RunResult | None:
    """Train, or go on training, until the last step; the same call finds a finished run finished.

    Ctrl-C and SIGTERM save what was reached first.

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
        See `plan_run`; also if another training is at work in the folder, or no checkpoint of the
        run to go on with is whole.
    Interrupted
        After Ctrl-C or SIGTERM, on every process.
    """
    if train.save_dir is None:
        raise ConfigError("--output: give a folder for the run (train.save_dir)")
    end_with_launcher()
    with (
        Interrupts() as interrupts,
        process_group(train.device) as group,
        run_lock(train.save_dir, group),
    ):
        if group.device.type == "cpu":
            keep_freed_memory()
        # Depth-wise convolutions, at every start: costs DDP a copy of 18 kB, means nothing else.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        with agree_on_newest(train.save_dir, group) as checkpoint:
            trainer = _Trainer.start(train, model, augment, group, interrupts, checkpoint)
        del checkpoint  # and with it a second copy of the optimizer's state
        try:
            trainer.train(progress and group.leads)
        finally:
            trainer.close()
        return trainer.result() if group.leads else None


def forecast(train: TrainConfig, model: ModelConfig, augment: AugmentConfig) -> dict[str, Any]:
    """Return what ``--dry-run`` prints: the plan, and where a run that is there would go on.

    Raises
    ------
    ConfigError, DataError
        As `run`, as far as it can be known beforehand.
    """
    if train.save_dir is None:
        raise ConfigError("--output: give a folder for the run (train.save_dir)")
    alone = Group(0, 1, torch.device("cpu"))
    with agree_on_newest(train.save_dir, alone) as checkpoint:
        state = None if checkpoint is None else checkpoint.state
    plan = plan_run(train, model, state and state["identity"])
    check_extra(augment)
    StepLoss.of(train, plan.shards.taxonomy, plan.class_weights)
    return {"from_step": 0 if state is None else state["progress"]["step"], **plan.to_dict()}


@dataclass(slots=True)
class _Progress:
    """Where a run stands; a checkpoint holds all of it."""

    step: int = 0
    """Optimizer steps done."""
    validated: int = 0
    """The step after which validation was done last."""
    best_score: float | None = None
    best_step: int | None = None
    stale: int = 0
    """Validations since the best."""
    skipped: int = 0
    skipped_in_a_row: int = 0
    overflows: int = 0
    loss_sum: float = 0.0
    """Of the steps since the last line of the journal, skipped ones left out."""
    loss_steps: int = 0


@dataclass(slots=True)
class _Trainer:
    """The state of a run between two steps."""

    config: TrainConfig
    plan: RunPlan
    group: Group
    interrupts: Interrupts
    samples: TrainingSamples
    learn: TrainingStep
    average: MovingAverage | None
    bad: BadSamples
    now: _Progress
    saved: int
    """The step of the newest checkpoint."""
    pace: Pace = field(default_factory=Pace)
    journal: Journal | None = None
    """None on all ranks but the first."""

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        model: ModelConfig,
        augment: AugmentConfig,
        group: Group,
        interrupts: Interrupts,
        checkpoint: Checkpoint | None,
    ) -> "_Trainer":
        if checkpoint is not None and config.resume == "never":
            raise ConfigError(
                f"--output {config.save_dir}: holds a run already, and --resume never would "
                "overwrite it"
            )
        begun = None if checkpoint is None else checkpoint.state["identity"]
        plan = plan_run(config, model, begun)
        if checkpoint is None:
            network, preprocess = start_network(model, plan.shards.taxonomy, config.seed)
        else:
            loaded = load_network(checkpoint.local, model)
            network, preprocess = loaded.network, loaded.preprocess
        network = prepare_network(network, config, model.input_size, group)
        average = MovingAverage(network, config.ema_decay) if config.ema_decay else None
        if checkpoint is not None and "raw_weights" in checkpoint.state:
            # The folder holds the average, in which `average` now starts.
            network.load_state_dict(checkpoint.state["raw_weights"])
        loss = StepLoss.of(config, plan.shards.taxonomy, plan.class_weights)
        learn = TrainingStep.of(network, preprocess, loss, config, group)
        trainer = cls(
            config=config,
            plan=plan,
            group=group,
            interrupts=interrupts,
            samples=TrainingSamples(
                plan.shards,
                plan.plan,
                augment,
                model.input_size,
                plan.end,
                loss.denominators.of,
                plan.repeats,
            ),
            learn=learn,
            average=average,
            bad=BadSamples(str(config.save_dir), config.max_bad, group),
            now=_Progress(),
            saved=0,
        )
        if checkpoint is not None:
            trainer.restore(checkpoint)
        if group.leads:
            trainer.open(model, augment)
        return trainer

    def open(self, model: ModelConfig, augment: AugmentConfig) -> None:
        """Begin what rank 0 writes and says."""
        run_folder = str(self.config.save_dir)
        sections = {"model": model, "augment": augment, "train": self.config}
        storage.make_folder(run_folder)
        storage.publish_bytes(storage.join(run_folder, "config.yaml"), to_yaml(sections).encode())
        self.journal = Journal(run_folder, self.now.step)
        self.bad.publish()
        log.info("%s", introduction(self.config, model, self.plan, self.learn))
        if self.now.step:
            log.info("goes on from step %d", self.now.step)

    def restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.now = _Progress(**state["progress"])
        self.saved = self.now.step
        restore_optimizer(self.learn.optimizer, state["optimizer"])
        self.learn.scaler.load_state_dict(state["scaler"])
        self.bad.load_state_dict(state["bad_samples"])
        if not self.group.leads:
            return
        for key, (there, here) in _changed(state["config"], self.config).items():
            log.info("train.%s was %r, is %r from now on", key, there, here)
        if state["total_steps"] != self.plan.total_steps:
            log.warning(
                "planned for %d steps, now for %d: the learning rate follows the new plan",
                state["total_steps"],
                self.plan.total_steps,
            )
        restore_pointers(str(self.config.save_dir), self.now.step, self.now.best_step)

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and saved: the average where there is one."""
        return self.learn.network if self.average is None else self.average.network

    @property
    def patience_ended(self) -> bool:
        return 0 < self.config.patience <= self.now.stale

    def train(self, progress: bool) -> None:
        steps = micro_batches(
            self.samples,
            self.plan.layout,
            self.group.rank,
            self.now.step,
            self.plan.total_steps,
            self.config.workers,
            pin_memory=self.group.device.type == "cuda",
        )
        self.interrupts.postponed = True
        if self.plan.validates_after(self.now.step) and self.now.validated < self.now.step:
            self.validate()  # the run was ended meanwhile
            self.save()
        if self.patience_ended:
            return
        self.train_mode()
        bar = tqdm(
            total=self.plan.total_steps, initial=self.now.step, unit="step", disable=not progress
        )
        with bar, contextlib.closing(steps):
            for batches, pixels, images in self.pace.waited(self.agreed(steps)):
                result = self.step(batches, pixels, images)
                bar.update()
                last = self.now.step == self.plan.total_steps
                if self.now.step % self.config.log_every == 0 or last:
                    bar.set_postfix(self.log_window(result))
                validates = self.plan.validates_after(self.now.step)
                if validates:
                    self.validate()
                if validates or last or self.now.step % self.plan.checkpoint_every == 0:
                    self.save()
                    self.pace.restart()
                if self.patience_ended:
                    break
        if self.patience_ended and self.group.leads:
            log.info(
                "no better %s in %d validations: ends after step %d",
                self.config.monitor,
                self.now.stale,
                self.now.step,
            )

    def train_mode(self) -> None:
        switches.train_mode(
            self.learn.network,
            freeze_backbone=self.config.freeze_backbone,
            freeze_batch_norm=self.config.freeze_batch_norm,
        )

    def agreed(
        self, steps: Iterable[Sequence[MicroBatch]]
    ) -> Iterator[tuple[Sequence[MicroBatch], float, float]]:
        """Hear what all processes hold for each step; yield it with the divisors of its loss.

        Who waits here waits for another process's loader.

        Raises
        ------
        CocosegError
            On every process: what failed on any, or `Interrupted` once the steps done are saved.
        """
        for batches in steps:
            bad = [one for batch in batches for one in batch.bad]
            failures = [batch.failure for batch in batches if batch.failure is not None]
            divisors = [sum(batch.denominators[i] for batch in batches) for i in range(2)]
            told = [*divisors, len(bad), len(failures), self.interrupts.came]
            summed = self.group.sum(torch.tensor(told, dtype=torch.float64)).tolist()
            pixels, images, any_bad, any_failure, interrupted = summed
            if any_failure:
                self.group.stop_for(failures)
            if any_bad:
                self.bad.note(self.now.step, bad)
            if interrupted:
                self.end_interrupted()
            yield batches, pixels, images

    def step(self, batches: Sequence[MicroBatch], pixels: float, images: float) -> StepResult:
        """Take one optimizer step and note what came of it."""
        now = self.now
        factor = learning_rate_factor(
            now.step, self.plan.total_steps, self.config.warmup_steps, self.config.power
        )
        set_learning_rate(self.learn.optimizer, factor)
        result = self.learn(now.step, batches, pixels, images)
        now.step += 1
        now.overflows += result.overflowed
        now.skipped += result.skipped
        now.skipped_in_a_row = now.skipped_in_a_row + 1 if result.skipped else 0
        if result.skipped:
            self.note_skipped(result)
        else:
            now.loss_sum += result.loss
            now.loss_steps += 1
        if self.average is not None and not (result.skipped or result.overflowed):
            self.average.update(self.learn.network, now.step - 1)
        return result

    def note_skipped(self, result: StepResult) -> None:
        keys = [key for part in self.group.gather(result.suspects) for key in part]
        told = ", ".join(keys[:_KEYS_TOLD]) + (" …" if len(keys) > _KEYS_TOLD else "")
        what = (
            f"the loss is {result.loss}"
            if not math.isfinite(result.loss)
            else f"the gradient's norm is {result.grad_norm}"
        )
        if self.group.leads:
            log.warning("step %d: %s: skipped; samples %s", self.now.step, what, told)
        if self.now.skipped_in_a_row > self.config.max_skipped:
            error = CocosegError(
                f"step {self.now.step}: {what}, as in the {self.config.max_skipped} steps before; "
                f"the checkpoint of step {self.saved} is kept. Try a smaller train.learning_rate, "
                "train.clip_grad_norm=1, or train.use_amp=false; docs/how-to.md, 'NaN'"
            )
            self.group.stop_for([error] if self.group.leads else [])

    def log_window(self, result: StepResult) -> dict[str, Any]:
        """Write a line of the journal; return what the bar shows."""
        now, window = self.now, self.pace.window(self.plan.layout.global_batch)
        loss = now.loss_sum / now.loss_steps if now.loss_steps else math.nan
        now.loss_sum, now.loss_steps = 0.0, 0
        starved = self.pace.starved(window, self.config.workers, available_cores())
        if self.journal is not None:
            if starved:
                log.warning("%s", starved)
            rates = {group["part"]: group["lr"] for group in self.learn.optimizer.param_groups}
            self.journal.write(
                now.step,
                loss=loss,
                learning_rate=rates,
                epoch=now.step * self.plan.layout.global_batch / self.plan.plan.samples,
                images_per_second=window.images_per_second,
                data_wait=window.data_wait,
                grad_norm=result.grad_norm,
                skipped_steps=now.skipped,
                **({"scaler_overflows": now.overflows} if self.learn.scaler.is_enabled() else {}),
            )
        return {
            "loss": f"{loss:.3f}",
            "mIoU": "-" if now.best_score is None else f"{now.best_score:.3f}",
            "img/s": f"{window.images_per_second:.1f}",
            "wait": f"{window.data_wait:.0%}",
        }

    def validate(self) -> None:
        """Score the validation shards, and tell whether this is the best."""
        shards = self.plan.val_shards
        assert shards is not None
        try:
            scores = validate(
                self.scored,
                self.learn.preprocess,
                shards,
                self.group,
                batch_size=self.config.val_batch_size,
                workers=self.config.workers,
                check=self.stop_if_interrupted,
            )
        except Interrupted:
            self.end_interrupted()
        now = self.now
        now.validated = now.step
        score = scores.miou if self.config.monitor == "val_mIoU" else scores.miou_foreground
        if not math.isnan(score) and (now.best_score is None or score > now.best_score):
            now.best_score, now.best_step, now.stale = score, now.step, 0
        else:
            now.stale += 1
        if self.journal is not None:
            self.write_scores(self.journal, scores)  # its pictures want the eval mode, too
        self.train_mode()

    def write_scores(self, journal: Journal, scores: Scores) -> None:
        shards = self.plan.val_shards
        assert shards is not None
        now, names = self.now, shards.taxonomy.names
        told = scores.to_dict(names)
        absent = [entry["name"] for entry in told["classes"] if entry["IoU"] is None]
        journal.write(
            now.step,
            val_mIoU=told["mIoU"],
            val_mIoU_foreground=told["mIoU_foreground"],
            val_pixel_accuracy=told["pixel_accuracy"],
            val_mean_accuracy=told["mean_accuracy"],
            val_absent_classes=absent,
        )
        log.info(
            "step %d: val mIoU %.4f (without background %.4f), best %s %.4f; %s",
            now.step,
            scores.miou,
            scores.miou_foreground,
            self.config.monitor,
            now.best_score or math.nan,
            f"{len(absent)} classes neither there nor predicted" if absent else "all classes",
        )
        for number in chosen(len(shards), self.config.pictures):
            sample = shards.read(number)
            (mask,) = predict_plain(self.scored, self.learn.preprocess, [sample.image])
            picture = triptych(sample.image, sample.mask, mask, shards.taxonomy)
            journal.picture(now.step, f"validation/{sample.key}", picture)

    def stop_if_interrupted(self) -> None:
        if self.interrupts.came:
            raise Interrupted("interrupted")

    def end_interrupted(self) -> None:
        """Save the steps done; raise `Interrupted`; all processes call it together."""
        if self.now.step > self.saved:
            self.save()
        reached = f"after step {self.now.step}, which is saved" if self.now.step else "at its start"
        error = Interrupted(f"interrupted {reached}: run the same command again to go on")
        self.group.stop_for([error] if self.group.leads else [])

    def save(self) -> None:
        """Write a checkpoint, by rank 0; what fails there ends every process."""
        failures: list[CocosegError] = []
        if self.group.leads:
            try:
                self.write_checkpoint()
            except CocosegError as error:
                failures.append(error)
        self.group.stop_for(failures)
        self.saved = self.now.step

    def write_checkpoint(self) -> None:
        assert self.journal is not None
        run_folder, step = str(self.config.save_dir), self.now.step
        state: dict[str, Any] = {
            "progress": dataclasses.asdict(self.now),
            "optimizer": self.learn.optimizer.state_dict(),
            "scaler": self.learn.scaler.state_dict(),
            "bad_samples": self.bad.state_dict(),
            "total_steps": self.plan.total_steps,
            "identity": self.plan.identity,
            "config": self.config.model_dump(mode="json"),
        }
        if self.average is not None:
            state["raw_weights"] = self.learn.network.state_dict()
        taxonomy = self.plan.shards.taxonomy
        save_checkpoint(run_folder, step, self.scored, self.learn.preprocess, taxonomy, state)
        if self.now.best_step == step:
            point(run_folder, "best", step)
        prune(run_folder, self.config.keep_last)
        self.journal.publish()

    def close(self) -> None:
        if self.journal is not None:
            self.journal.close()

    def result(self) -> RunResult:
        now = self.now
        return RunResult(
            str(self.config.save_dir),
            now.step,
            now.best_step,
            now.best_score,
            self.config.monitor,
            len(self.bad),
            now.skipped,
            self.patience_ended,
        )


def _changed(there: Mapping[str, Any], here: TrainConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from those of the checkpoint, places left out."""
    now = here.model_dump(mode="json")
    places = {"shards", "val_shards", "save_dir", "cache_dir"}
    return {
        key: (there.get(key), now[key])
        for key in now
        if key not in places and there.get(key) != now[key]
    }
