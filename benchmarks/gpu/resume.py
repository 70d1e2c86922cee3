"""`train.deterministic`: a run that is interrupted and resumed ends with the same bits.

Two processes, as it would be: the first trains without interruption and leaves an interrupted run,
which the second resumes; the second also does all of it once more by itself.
"""

import contextlib
import os
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench import GOLDEN, Bench, equal, without_bar
from cocoseg.errors import Interrupted
from cocoseg.model.config import ModelConfig
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.run import train_model
from cocoseg.train.step import TrainingStep
from measure import Row
from safetensors.torch import load_file

_STEPS, _STOP = 6, 3
_WARNS = "does not have a deterministic implementation"


def first_process(bench: Bench) -> Iterator[Row]:
    """Train without interruption, and leave an interrupted run."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for name in _networks(bench):
            _train(bench, name, "whole")
            with _interrupted():
                _train(bench, name, "resumed by another process")
    names = {str(one.message).split()[0] for one in caught if _WARNS in str(one.message)}
    yield without_bar(
        "operators without a deterministic implementation", ", ".join(sorted(names)) or "none"
    )


def second_process(bench: Bench) -> Iterator[Row]:
    """Resume the run of the first process, and do all of it again."""
    for name in _networks(bench):
        whole = _folder(bench, name, "whole")
        assert whole.is_dir(), "the first process left no run"
        resumed = _train(bench, name, "resumed by another process")
        yield _same(
            f"{name}: interrupted after step {_STOP}, resumed by another process", whole, resumed
        )
        if bench.tiny:
            continue
        again = _train(bench, name, "again")
        yield _same(f"{name}: a second uninterrupted run", whole, again)
        with _interrupted():
            _train(bench, name, "resumed")
        resumed = _train(bench, name, "resumed")
        yield _same(f"{name}: interrupted and resumed in one process", whole, resumed)
        usual = [_train(bench, name, what, deterministic=False) for what in ("usual", "usual 2")]
        differing = _differing(*usual)
        yield without_bar(
            f"{name}: two runs without train.deterministic",
            f"{len(differing)} tensors differ" if differing else "equal",
        )


def _networks(bench: Bench) -> tuple[str, ...]:
    return ("segformer-tiny",) if bench.tiny else ("segformer-tiny", "segformer-b0")


def _folder(bench: Bench, name: str, what: str) -> Path:
    return bench.scratch / f"{name} {what}"


def _train(bench: Bench, name: str, what: str, *, deterministic: bool = True) -> Path:
    """Train on the golden shards, or resume the run; return the folder of the run."""
    folder = _folder(bench, name, what)
    config = TrainConfig(
        shards=(str(GOLDEN / "train"),),
        val_shards=(str(GOLDEN / "val"),),
        save_dir=str(folder),
        max_steps=_STEPS,
        checkpoint_every=_STEPS,
        val_every=_STEPS,
        batch_size=2,
        accumulation_steps=2,
        workers=0,
        ema_decay=0.9,
        clip_grad_norm=1.0,
        learning_rate=3e-3,
        pictures=0,
        log_every=1,
        deterministic=deterministic,
        device=bench.device.type,
    )
    train_model(
        config, ModelConfig(name=name, input_size=32 if bench.tiny else 128), AugmentConfig()
    )
    return folder


@contextlib.contextmanager
def _interrupted() -> Iterator[None]:
    """Send this process a SIGTERM in the last step before `_STOP`, as Slurm does."""
    real = TrainingStep.__call__

    def step(self: TrainingStep, number: int, *arguments: Any) -> Any:
        result = real(self, number, *arguments)
        if number == _STOP - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return result

    TrainingStep.__call__ = step  # type: ignore[method-assign]
    try:
        yield
    except Interrupted:
        return
    finally:
        TrainingStep.__call__ = real  # type: ignore[method-assign]
    raise AssertionError("the run was not interrupted")


def _same(what: str, whole: Path, other: Path) -> Row:
    differing = _differing(whole, other)
    row = equal(what, not differing)
    if not differing:
        return row
    return Row(what, "", f"{len(differing)} tensors differ, {differing[0]}", "", "equal", False)


def _differing(one: Path, other: Path) -> list[str]:
    """Return the names of what differs between two runs' last checkpoints."""
    here, there = _state(one), _state(other)
    assert here.keys() == there.keys()
    return [name for name, value in here.items() if not _equal(value, there[name])]


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor):
        return bool(a == b)
    return a.dtype == b.dtype and torch.equal(_bits(a), _bits(b))


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


def _state(folder: Path) -> dict[str, Any]:
    """Return weights, raw weights, optimizer and progress by name."""
    last = folder / "last"
    found: dict[str, Any] = {
        f"weights {k}": v for k, v in load_file(last / "model.safetensors").items()
    }
    state = torch.load(last / "training_state.pt", map_location="cpu", weights_only=True)
    for key in ("raw_weights", "optimizer", "progress", "scaler"):
        found |= dict(_leaves(key, state.get(key)))
    return found


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name} {key}", inner)
    elif isinstance(value, (list, tuple)):
        for key, inner in enumerate(value):
            yield from _leaves(f"{name} {key}", inner)
    else:
        yield name, value
