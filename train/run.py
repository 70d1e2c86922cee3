"""One training run: it begins, or resumes from the newest checkpoint of its folder, and ends."""

import contextlib
import logging
import warnings
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint.verified import Checkpoint
from ..distributed.devices import own_device
from ..distributed.group import Group, process_group
from ..errors import CocosegError, ConfigError
from ..meter import ShowProgress
from ..model.config import ModelConfig
from ..model.precision import tf32
from ..processes import Launch, end_with_launcher, keep_freed_memory
from ..results import Result
from ..storage import Location, locate
from .augment import check_extra
from .config import AugmentConfig, TrainConfig
from .interrupt import Interrupts
from .kernels import chosen_kernels
from .losses.step import StepLoss
from .resume import agree_on_newest, run_lock
from .run_plan import RunPlan, plan_run
from .trainer import Trainer

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunResult(Result):
    """Where a run ended."""

    save_dir: str
    step: int
    best_step: int | None
    best_score: float | None
    monitor: str
    bad_samples: int = 0
    """Left out; see ``train.max_bad``."""
    skipped_steps: int = 0
    """Whose loss was not finite; see ``train.max_skipped``."""
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
            "checkpoint": str(
                locate(self.save_dir) / ("last" if self.best_step is None else "best")
            ),
        }


@dataclass(frozen=True, slots=True)
class RunForecast(Result):
    """What ``--dry-run`` prints."""

    from_step: int
    plan: RunPlan

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"from_step": self.from_step, **self.plan.to_dict()}


def train_model(
    train: TrainConfig,
    model: ModelConfig | None = None,
    augment: AugmentConfig | None = None,
    progress: ShowProgress = False,
) -> RunResult | None:
    """Train, or resume training, until the last step; the same call finds a finished run finished.

    Ctrl-C and SIGTERM save the steps done first. PyTorch's random state on the CPU, its settings
    of kernels and precision, Python's warning filters and signal handlers are restored at the end.
    What remains: a GPU's random state, and on a CPU that freed memory is kept for later use (see
    `keep_freed_memory`).

    Parameters
    ----------
    train
        `shards` and `save_dir` must be set.
    model, augment
        Defaults if not given.
    progress
        How progress is shown, on rank 0; see `ShowProgress`.

    Returns
    -------
    RunResult or None
        None on all ranks but the first.

    Raises
    ------
    ConfigError, DataError
        See `plan_run`; also if another training is at work in the folder, no checkpoint of the run
        to resume from is whole, or the processes were started with different settings.
    Interrupted
        After Ctrl-C or SIGTERM, on every process.
    """
    model, augment = model or ModelConfig(), augment or AugmentConfig()
    run_folder = _run_folder(train)
    end_with_launcher()
    with (
        torch.random.fork_rng(devices=()),
        warnings.catch_warnings(),
        chosen_kernels(train.deterministic),
        tf32(model.tf32),
        Interrupts() as interrupts,
        process_group(train.device) as group,
        run_lock(run_folder, group) as check,
    ):
        if group.device.type == "cpu":
            keep_freed_memory()
        # Depth-wise convolutions, at every start: costs DDP a copy of 18 kB, means nothing else.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view")
        with agree_on_newest(run_folder, group) as checkpoint:
            with group.together():
                _refuse_to_resume(train, checkpoint)
            train = _resolved(train, model, checkpoint)
            trainer = Trainer.start(train, model, augment, group, interrupts, checkpoint)
        trainer.check_output = check
        del checkpoint  # and with it a second copy of the optimizer's state
        if not trainer.ended:
            try:
                trainer.open(model, augment)
                trainer.train(progress if group.leads else False)
            except BaseException:
                with contextlib.suppress(CocosegError):  # what failed first is told
                    trainer.close()
                raise
            trainer.close()
        if not group.leads:
            return None
        log.info("%s", trainer.ended)
        return _result(train, trainer)


def forecast(train: TrainConfig, model: ModelConfig, augment: AugmentConfig) -> RunForecast | None:
    """Return what ``--dry-run`` prints: the plan, and where an existing run would resume.

    Returns
    -------
    RunForecast or None
        None on all ranks but the first.

    Raises
    ------
    ConfigError, DataError
        As `run`, as far as it can be known beforehand.
    """
    run_folder = _run_folder(train)
    launch = Launch.from_environment()
    own_device(train.device, launch)
    alone = Group(0, 1, torch.device("cpu"))
    with agree_on_newest(run_folder, alone) as checkpoint:
        _refuse_to_resume(train, checkpoint)
        begun = None if checkpoint is None else checkpoint.state.identity
        train = _resolved(train, model, checkpoint)
    plan = plan_run(train, model, augment, begun)
    check_extra(augment)
    StepLoss.of(train, plan.shards.taxonomy, plan.class_weights)
    if not launch.leads:
        return None
    return RunForecast(0 if checkpoint is None else checkpoint.state.step, plan)


def _resolved(train: TrainConfig, model: ModelConfig, checkpoint: Checkpoint | None) -> TrainConfig:
    return train.resolved(model, {} if checkpoint is None else checkpoint.state.settings)


def _run_folder(train: TrainConfig) -> Location:
    if train.save_dir is None:
        raise ConfigError("--output: give a folder for the run (train.save_dir)")
    return locate(train.save_dir)


def _refuse_to_resume(train: TrainConfig, checkpoint: Checkpoint | None) -> None:
    if checkpoint is not None and train.resume == "never":
        raise ConfigError(
            f"--output {train.save_dir}: holds a run already, and --resume never would overwrite it"
        )


def _result(train: TrainConfig, trainer: Trainer) -> RunResult:
    now = trainer.now
    return RunResult(
        str(train.save_dir),
        now.step,
        now.best_step,
        now.best_score,
        train.monitor,
        len(trainer.bad),
        now.skipped,
        trainer.patience_ended,
    )
