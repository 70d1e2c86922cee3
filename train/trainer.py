"""The training loop and all of its state, from shards to checkpoints.

newest checkpoint → plan → network, optimizer → steps → validation → checkpoint
"""

import contextlib
import dataclasses
import functools
import logging
import math
import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from ..checkpoint.layout import checkpoint_name
from ..checkpoint.network import load_network, start_network
from ..checkpoint.save import NotStored, explained, point, restore_pointers, save_checkpoint
from ..checkpoint.state import TrainingProgress, TrainingState
from ..checkpoint.verified import Checkpoint
from ..config import to_yaml
from ..distributed.group import Group
from ..errors import CocosegError, ExitCode, Interrupted, StoreError, StoreRefusal, first_line
from ..meter import Meter, ShowProgress
from ..metrics import Scores
from ..model.config import ModelConfig
from ..model.memory import explained_out_of_memory, is_out_of_memory
from ..model.precision import resolve_precision
from ..model.predictor import Predictor
from ..processes import available_cores
from ..storage import Location, locate
from .bad_samples import BadSamples
from .batches import MicroBatch, TrainingSamples, micro_batches, on_device
from .config import AugmentConfig, TrainConfig
from .ema import MovingAverage
from .interrupt import Interrupts
from .losses.step import StepLoss
from .network import prepare_network, train_mode
from .optimizer import restore_optimizer, set_learning_rate
from .out_of_memory import advice
from .pace import Pace
from .pictures import chosen, side_by_side
from .pruning import Pruning
from .run_log import RunLog
from .run_plan import RunPlan, agree_on_plan, changes, plan_run
from .schedule import learning_rate_factor
from .step import StepResult, TrainingStep
from .summary import introduction
from .validation import Validated, validate

log = logging.getLogger(__name__)

_KEYS_TOLD = 8  # samples that a skipped step's warning names
_RESCUE = "rescue"
"""Claimed by the rank that saves when one runs out of memory, and what it publishes."""
_RESCUED_WITHIN = 900.0  # seconds that other ranks wait for it: a checkpoint on a slow store


@dataclass(slots=True)
class Trainer:
    """The state of a run between two steps."""

    config: TrainConfig
    plan: RunPlan
    group: Group
    scoring_precision: torch.dtype
    """What the network computes in when it is validated."""
    interrupts: Interrupts
    samples: TrainingSamples
    learn: TrainingStep
    average: MovingAverage | None
    bad: BadSamples
    now: TrainingProgress
    saved: int
    """The step of the newest checkpoint."""
    progress: ShowProgress = False
    """Whether it is shown how far the run is; see `Meter`."""
    pace: Pace = field(default_factory=Pace)
    run_log: RunLog | None = None
    """None on all ranks but the first."""
    unwritten: list[CocosegError] = field(default_factory=list)
    """What failed on this rank alone, until the next step tells the others."""
    pruning: Pruning = field(default_factory=Pruning)
    check_output: Callable[[], None] = lambda: None
    """See `Hold.check`."""
    _kept_copy: str | None = None
    """Local copy of the newest checkpoint, while the object store lacks it."""

    @classmethod
    def start(
        cls,
        config: TrainConfig,
        model: ModelConfig,
        augment: AugmentConfig,
        group: Group,
        interrupts: Interrupts,
        checkpoint: Checkpoint | None,
    ) -> "Trainer":
        """Make all of it ready, from nothing or from a checkpoint; all processes call it together.

        Raises
        ------
        ConfigError, DataError
            See `plan_run` and `agree_on_plan`; on every process, if it fails on any.
        """
        with group.together():
            begun = None if checkpoint is None else checkpoint.state.identity
            plan = plan_run(config, model, augment, begun)
        agree_on_plan(plan, group)
        explains = functools.partial(
            explained_out_of_memory,
            f"{group.device}: out of memory while the network is loaded",
            advice(config, plan.layout.accumulation_steps),
        )
        with group.together(), explains():
            if checkpoint is None:
                network, preprocess = start_network(model, plan.shards.taxonomy, config.seed)
            else:
                loaded = load_network(checkpoint.local, model)
                network, preprocess = loaded.network, loaded.preprocess
            network = prepare_network(network, config, model.input_size, group)
            train_mode(network, config)
            average = MovingAverage(network, config.ema_decay) if config.ema_decay else None
            if checkpoint is not None and checkpoint.state.raw_weights is not None:
                # The folder holds the average, in which `average` now starts.
                network.load_state_dict(checkpoint.state.raw_weights)
            loss = StepLoss.of(config, plan.shards.taxonomy, plan.class_weights)
            samples = TrainingSamples(
                plan.shards,
                plan.order,
                augment,
                model.input_size,
                plan.end,
                loss.denominators.of,
                plan.repeats,
            )
            learn = TrainingStep.of(network, preprocess, loss, config, group)
        with explains():
            learn.connect()
        trainer = cls(
            config=config,
            plan=plan,
            group=group,
            scoring_precision=resolve_precision(model.inference_precision, group.device),
            interrupts=interrupts,
            samples=samples,
            learn=learn,
            average=average,
            bad=BadSamples(locate(str(config.save_dir)), config.max_bad, group),
            now=TrainingProgress(),
            saved=0,
        )
        if checkpoint is not None:
            with explains():
                trainer._restore(checkpoint)
        return trainer

    def _restore(self, checkpoint: Checkpoint) -> None:
        state = checkpoint.state
        self.now = now = dataclasses.replace(state.progress)
        self.saved = now.step
        restore_optimizer(self.learn.optimizer, state.optimizer)
        if state.scaler:
            self.learn.scaler.load_state_dict(state.scaler)
        self.bad.load_state_dict(state.bad_samples)
        whole = True
        with self.group.together():
            if self.group.leads:
                self._tell_changes(state)
                whole = restore_pointers(self.run, now.step, now.best_step)
        other = self.plan.scored_on is not None and now.scored_on != self.plan.scored_on
        lost = now.best_step is not None and not self.group.gather(whole)[0]
        if other or lost:
            now.best_score, now.best_step, now.stale = None, None, 0

    def _tell_changes(self, state: TrainingState) -> None:
        for key, (there, here) in changes(state.settings, self.plan.settings).items():
            log.info("%s was %r, is %r from now on", key, there, here)
        if state.total_steps != self.plan.total_steps:
            log.warning(
                "planned for %d steps, now for %d: the learning rate follows the new plan",
                state.total_steps,
                self.plan.total_steps,
            )
        if self.now.scored_on and self.plan.scored_on not in (None, self.now.scored_on):
            log.warning("the validation shards are others now: the next score is the best")

    def open(self, model: ModelConfig, augment: AugmentConfig) -> None:
        """Begin what rank 0 writes and says."""
        sections = {"model": model, "augment": augment, "train": self.config}
        with self.group.together():
            if self.group.leads:
                settings = to_yaml(sections)
                with explained(self.run):
                    (self.run / "config.yaml").publish_bytes(settings.encode())
                self.run_log = RunLog(self.run, self.now.step, self.now.validated)
                self.run_log.settings(self.now.step, settings)
                self.bad.publish()
                log.info("%s", introduction(self.config, model, self.plan, self.learn))
                for warning in self.plan.warnings():
                    log.warning("warning: %s", warning)
                if self.now.step:
                    log.info("resuming from step %d", self.now.step)

    @property
    def run(self) -> Location:
        """The folder of the run."""
        return locate(str(self.config.save_dir))

    @property
    def scored(self) -> nn.Module:
        """The network that is validated and saved: the average where there is one."""
        return self.learn.network if self.average is None else self.average.network

    @property
    def patience_ended(self) -> bool:
        """Whether the score has not become better for long enough."""
        return 0 < self.config.patience <= self.now.stale

    @property
    def owes_validation(self) -> bool:
        """Whether the run was ended between a step and its validation."""
        return self.plan.validates_after(self.now.step) and self.now.validated < self.now.step

    @property
    def ended(self) -> str:
        """Why there is nothing left to do; empty where there is."""
        now, total = self.now, self.plan.total_steps
        if self.owes_validation:
            return ""
        if self.patience_ended:
            return (
                f"no better {self.config.monitor} in {now.stale} validations: ended at step "
                f"{now.step} (train.patience)"
            )
        if now.step > total:
            return f"step {now.step} is reached, and the plan is for {total}: nothing is left to do"
        return f"finished at step {now.step}" if now.step == total else ""

    def train(self, progress: ShowProgress) -> None:
        """Take the steps that are left, and validate and save in between.

        Raises
        ------
        CocosegError
            Also where this rank runs out of memory, once the steps done are saved.
        SystemExit
            Where another rank did so and tells of it.
        """
        self.progress = progress
        try:
            self._train()
        except Exception as error:
            failure = self._rescued_failure(error)
            if failure is None:
                raise
        else:
            return
        # Out of the handler, which held the tensors of the step that failed.
        self._rescue(*failure)

    def _train(self) -> None:
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
        if self.owes_validation:
            self.validate()
            self.save(final=bool(self.ended))
        if self.patience_ended:
            return
        steps = on_device(steps, self.group.device)
        meter = Meter("train", self.plan.total_steps, "step", self.progress, initial=self.now.step)
        with meter, contextlib.closing(steps):
            for batches, pixels, images in self.pace.waited(self.agreed(steps)):
                result = self.step(batches, pixels, images)
                last = self.now.step == self.plan.total_steps
                if self.now.step % self.config.log_every == 0 or last:
                    meter.note(**self.log_window(result))
                meter.update()
                validates = self.plan.validates_after(self.now.step)
                if validates:
                    self.validate()
                if validates or last or self.now.step % self.plan.checkpoint_every == 0:
                    self.save(final=last or self.patience_ended)
                    self.pace.restart()
                if self.patience_ended:
                    break

    def agreed(
        self, steps: Iterable[Sequence[MicroBatch]]
    ) -> Iterator[tuple[Sequence[MicroBatch], float, float]]:
        """Hear what all processes hold for each step; yield it with the divisors of its loss.

        Who waits here waits for another process's loader.

        Raises
        ------
        CocosegError
            On every process: what failed on any, or `Interrupted`, once the steps done are saved.
        """
        coming = iter(steps)
        while True:
            failures = list(self.unwritten)
            batches: Sequence[MicroBatch] | None = ()
            try:
                batches = next(coming, None)
            except Exception as error:  # a process of the loader is gone, or our own bug
                failures.append(self._of_loader(error))
            if batches is None:
                return
            bad = [one for batch in batches for one in batch.bad]
            failures += [batch.failure for batch in batches if batch.failure is not None]
            divisors = [sum(batch.denominators[i] for batch in batches) for i in range(2)]
            told = [*divisors, len(bad), len(failures), self.interrupts.came]
            summed = self.group.sum(torch.tensor(told, dtype=torch.float64)).tolist()
            pixels, images, any_bad, any_failure, interrupted = summed
            try:
                if any_failure:
                    self.group.stop_for(failures)
                if any_bad:
                    self.bad.note(self.now.step, bad)
                if interrupted:
                    self._stop_interrupted()
            except CocosegError:
                self.keep()
                raise
            yield batches, pixels, images

    def _of_loader(self, error: Exception) -> CocosegError:
        rank = f"rank {self.group.rank}: " if self.group.world_size > 1 else ""
        if is_out_of_memory(error):
            return CocosegError(self._out_of_memory(error))
        return CocosegError(
            f"{rank}the loader failed: {error}; if one of its processes was killed: "
            "docs/how-to.md, 'Out of memory'\n" + "".join(traceback.format_exception(error))
        )

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
            self._note_skipped(result)
        elif pixels or images:  # else every pixel is ignored
            now.loss_sum += result.loss
            now.loss_steps += 1
        if self.average is not None and not (result.skipped or result.overflowed):
            self.learn.updating = True
            self.average.update(self.learn.network, now.step - 1)
            self.learn.updating = False
        return result

    def _note_skipped(self, result: StepResult) -> None:
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
            before = self.config.max_skipped
            kept = (
                f"the checkpoint of step {self.saved} is kept"
                if self.saved
                else "there is no checkpoint yet"
            )
            error = CocosegError(
                f"step {self.now.step}: {what}{f', as in the {before} steps before' * (before > 0)}"
                f"; {kept}. Try a smaller train.learning_rate, train.clip_grad_norm=1, or "
                "train.use_amp=false; docs/how-to.md, 'NaN'"
            )
            self.group.stop(error)

    def log_window(self, result: StepResult) -> dict[str, Any]:
        """Write a line of the log; return what the bar shows."""
        now, window = self.now, self.pace.window(self.plan.layout.global_batch)
        loss = now.loss_sum / now.loss_steps if now.loss_steps else math.nan
        waits = self.pace.waits_for_data(window, self.config.workers, available_cores())
        fallen = self.pace.collapsed(window, self.config.workers)
        if self.run_log is not None:
            if waits or fallen:
                log.warning("%s", fallen or waits)
            if not (now.loss_steps or result.skipped):
                log.warning(
                    "step %d: every pixel since the last line is ignored, nothing was learnt; look "
                    "at the masks: cocoseg doctor --shards",
                    now.step,
                )
            scaled = self.learn.scaler.is_enabled()
            try:
                self.run_log.write(
                    now.step,
                    loss=loss,
                    learning_rate={
                        group["part"]: group["lr"] for group in self.learn.optimizer.param_groups
                    },
                    epoch=self.plan.epochs_after(now.step),
                    images_per_second=window.images_per_second,
                    data_wait=window.data_wait,
                    grad_norm=result.grad_norm,
                    skipped_steps=now.skipped,
                    **({"scaler_overflows": now.overflows} if scaled else {}),
                )
            except CocosegError as error:
                self.unwritten.append(error)
        if not self.unwritten:
            now.loss_sum, now.loss_steps = 0.0, 0
        return {
            "loss": f"{loss:.3f}",
            "mIoU": "-" if now.best_score is None else f"{now.best_score:.3f}",
            "img/s": f"{window.images_per_second:.1f}",
            "wait": f"{window.data_wait:.0%}",
        }

    def validate(self) -> None:
        """Score the validation shards, and return whether this is the best.

        If that fails, whatever it is, the steps done are saved first.
        """
        shards = self.plan.val_shards
        assert shards is not None
        before = dataclasses.replace(self.now)
        try:
            found = validate(
                self.scored,
                self.learn.preprocess,
                shards,
                self.group,
                batch_size=self.config.val_batch_size,
                precision=self.scoring_precision,
                check=self._stop_if_interrupted,
                progress=self.progress,
            )
            self._note_scores(found.scores)
            with self.group.together():
                if self.run_log is not None:
                    self._write_scores(self.run_log, found)  # its pictures want the eval mode, too
        except CocosegError as error:
            self.now = before  # the validation is owed
            self.keep()
            if isinstance(error, Interrupted):
                self._stop_interrupted()
            raise
        except Exception as error:  # perhaps of one process, so it asks no other
            self.now = before  # the validation is owed
            if is_out_of_memory(error) or self.group.published(_RESCUE):
                raise  # `train` saves
            if self.group.leads and self.now.step > self.saved:
                try:
                    self._write_checkpoint()
                except CocosegError as unsaved:  # what failed first is raised
                    log.warning("%s", unsaved)
            raise
        train_mode(self.learn.network, self.config)

    def _note_scores(self, scores: Scores) -> None:
        now = self.now
        now.validated, now.scored_on = now.step, self.plan.scored_on
        score = scores.miou if self.config.monitor == "val_mIoU" else scores.miou_foreground
        if not math.isnan(score) and (now.best_score is None or score > now.best_score):
            now.best_score, now.best_step, now.stale = score, now.step, 0
        else:
            now.stale += 1

    def _write_scores(self, run_log: RunLog, found: Validated) -> None:
        shards = self.plan.val_shards
        assert shards is not None
        now, names, scores = self.now, shards.taxonomy.names, found.scores
        told = scores.to_dict(names)
        absent = [entry["name"] for entry in told["classes"] if entry["IoU"] is None]
        run_log.write(
            now.step,
            val_mIoU=told["mIoU"],
            val_mIoU_foreground=told["mIoU_foreground"],
            val_pixel_accuracy=told["pixel_accuracy"],
            val_mean_accuracy=told["mean_accuracy"],
            val_loss=found.loss,
            val_IoU={entry["name"]: entry["IoU"] for entry in told["classes"]},
            val_absent_classes=absent,
        )
        log.info(
            "step %d: val loss %.4f, mIoU %.4f over %d of %d classes (without background %.4f), "
            "best %s %.4f",
            now.step,
            found.loss,
            scores.miou,
            len(names) - len(absent),
            len(names),
            scores.miou_foreground,
            self.config.monitor,
            math.nan if now.best_score is None else now.best_score,
        )
        predictor = Predictor(self.scored, self.learn.preprocess, precision=self.scoring_precision)
        for number in chosen(len(shards), self.config.pictures):
            sample = shards.read(number)
            (mask,) = predictor.predict([sample.image])
            picture = side_by_side(sample.image, sample.mask, mask, shards.taxonomy)
            run_log.picture(now.step, f"validation/{sample.key}", picture)

    def _stop_if_interrupted(self) -> None:
        if self.interrupts.came:
            raise Interrupted("interrupted")

    def _stop_interrupted(self) -> NoReturn:
        now = self.now
        reached = f"after step {now.step}, which is saved" if now.step else "at its start"
        self.group.stop(Interrupted(f"interrupted {reached}: run the same command again to resume"))

    def keep(self) -> None:
        """Save the steps done, if they are not; all processes call it together."""
        if self.now.step > self.saved:
            self.save()

    def save(self, *, final: bool = True) -> None:
        """Write a checkpoint, by rank 0; what fails there ends every process.

        Parameters
        ----------
        final
            Whether there may be no other. If not, an object store that does not take it ends
            nothing: the next one tries again.
        """
        stored = True
        with self.group.together():
            if self.group.leads:
                try:
                    self._write_checkpoint()
                except NotStored as error:
                    if final or error.refused:
                        raise
                    log.warning(
                        "%s; training continues, and the next checkpoint tries again", error
                    )
                    stored = False
                except StoreError as error:  # of a pointer
                    if final or isinstance(error, StoreRefusal):
                        raise
                    log.warning(
                        "%s; training continues, and the next checkpoint tries again", error
                    )
        if self.group.gather(stored)[0]:
            self.saved = self.now.step
        self.group.stop_for(self.unwritten)

    def _write_checkpoint(self) -> None:
        state = TrainingState(
            progress=self.now,
            optimizer=self.learn.optimizer.state_dict(),
            scaler=self.learn.scaler.state_dict(),
            bad_samples=self.bad.state_dict(self.now.step),
            total_steps=self.plan.total_steps,
            identity=self.plan.identity,
            settings=self.plan.settings,
            raw_weights=None if self.average is None else self.learn.network.state_dict(),
        )
        taxonomy = self.plan.shards.taxonomy
        with contextlib.suppress(StoreError):  # of a store that is down: saving tells it
            self.check_output()
        if self.run_log is not None:
            try:
                self.run_log.flush()  # lines of steps without a checkpoint are dropped
            except CocosegError as error:
                self.unwritten.append(error)
        try:
            save_checkpoint(self.run, self.scored, self.learn.preprocess, taxonomy, state)
        except NotStored as error:
            self._replace_kept_copy(error.kept)
            raise
        self._replace_kept_copy(None)
        if self.now.best_step is not None:
            point(self.run, "best", self.now.best_step)
        if self.run_log is not None:
            self.run_log.upload()
        self.pruning.start(self.run, self.config.keep_last, self.now.best_step)

    def _replace_kept_copy(self, kept: str | None) -> None:
        if self._kept_copy is not None:
            shutil.rmtree(self._kept_copy, ignore_errors=True)
        self._kept_copy = kept

    # ---- out of memory, perhaps on one rank alone: no collective is called any more

    def _rescued_failure(self, error: Exception) -> tuple[str, bool] | None:
        """Return what to tell of a failure, and whether the steps done can be saved.

        None for what is no matter of memory, here or on another rank.
        """
        if isinstance(error, CocosegError):
            return None
        if is_out_of_memory(error):
            return self._out_of_memory(error), not self.learn.updating
        if self.group.world_size > 1 and self.group.published(_RESCUE):
            return "", False  # a collective failed since the other rank is gone
        return None

    def _out_of_memory(self, error: Exception) -> str:
        now, accumulation_steps = self.now, self.plan.layout.accumulation_steps
        rank = f"rank {self.group.rank}, " if self.group.world_size > 1 else ""
        where = "validation after step" if self.owes_validation else "step"
        step = now.step if self.owes_validation else now.step + 1
        change = advice(self.config, accumulation_steps)
        if self.owes_validation:
            change = "Try train.val_batch_size=1. See docs/how-to.md, 'Out of memory'"
        return (
            f"{rank}{self.learn.group.device}: out of memory in {where} {step}: "
            f"{first_line(error)}\n{change}"
        )

    def _rescue(self, text: str, intact: bool) -> NoReturn:
        """Save the steps done, on the first rank that asks; all ranks hold the same state.

        Parameters
        ----------
        text
            What this rank has to tell; empty if another rank ran out of memory.
        intact
            Whether no weight has changed since the last step.
        """
        group = self.group
        if text and group.claim(_RESCUE):
            try:
                text = f"{text}\n{self._saved_alone(intact)}"
            except CocosegError as error:
                text = f"{text}\nThe steps since the last checkpoint could not be saved: {error}"
            finally:
                group.publish(_RESCUE, text)
        elif group.wait_for(_RESCUE, _RESCUED_WITHIN):
            if group.leads:
                log.warning("ends, as another rank does: %s", group.published(_RESCUE))
            # That rank tells: this one may be ended by torchrun before it could.
            raise SystemExit(ExitCode.FAILURE)
        # Not shared: under NCCL the others hang, and nobody must wait for them.
        raise CocosegError(text or "another rank ran out of memory and has ended: see its output")

    def _saved_alone(self, intact: bool) -> str:
        """Write a checkpoint if it holds more than the newest; return what to tell of it."""
        lost = self.now.step - self.saved
        if intact and lost:
            self._write_checkpoint()
            self.saved, lost = self.now.step, 0
        if not self.saved:
            kept = "There is no checkpoint yet"
        else:
            kept = f"The newest checkpoint is {checkpoint_name(self.saved)}"
        if lost:
            kept += f" ({lost} steps are lost: the optimizer was changing the weights)"
        return f"{kept}: run the same command again with the other settings to resume"

    def close(self) -> None:
        """Finish the files that `open` began."""
        self.pruning.finish()
        if self.run_log is not None:
            self.run_log.close()
