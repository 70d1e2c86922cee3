"""Out of memory costs no step that was done, says what to change, and shows no traceback."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cocoseg.checkpoint.layout import list_steps
from cocoseg.errors import CocosegError
from cocoseg.storage import locate
from cocoseg.train import trainer as trainer_module
from cocoseg.train.config import TrainConfig
from cocoseg.train.out_of_memory import advice
from cocoseg.train.run import RunResult
from cocoseg.train.step import TrainingStep
from small_runs import SMALL, assert_same_weights, journal
from warm import Started, Warm

Train = Callable[..., RunResult]
KINDS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate"),
]


def fail_at(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, call: int, error: Exception
) -> None:
    """Let the call-th call of a function, from 1, do its work and then fail."""
    function, calls = getattr(owner, name), 0

    def failing(*args: Any, **more: Any) -> Any:
        nonlocal calls
        calls += 1
        result = function(*args, **more)
        if calls == call:
            raise error
        return result

    monkeypatch.setattr(owner, name, failing)


@pytest.fixture
def whole(train_small: Train, tmp_path: Path) -> Path:
    train_small(tmp_path / "whole")
    return tmp_path / "whole"


@pytest.mark.parametrize("error", KINDS, ids=lambda error: type(error).__name__)
def test_a_step_that_fails_costs_none_that_was_done(
    train_small: Train,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """In the second micro-batch of step 5: batch norms and gradients have seen the first."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_at(patch, TrainingStep, "_backward", 10, error)
        with pytest.raises(CocosegError) as raised:
            train_small(run)
    text = str(raised.value)
    assert "out of memory in step 5: " in text
    assert str(error).splitlines()[0] in text
    assert "More of it" not in text
    assert "train.batch_size=1 train.accumulation_steps=4 (the global batch stays)" in text
    assert text.index("batch_size") < text.index("activation_check") < text.index("input_size")
    assert "The newest checkpoint is step-00000004" in text
    assert not raised.value.shared  # there is one process, which tells
    assert list_steps(locate(run)) == [3, 4]
    train_small(run)
    assert_same_weights(run, whole)
    assert journal(run) == journal(whole) or len(journal(run)) == len(journal(whole))


def test_weights_that_may_be_half_changed_are_not_saved(
    train_small: Train, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        fail_at(patch, torch.amp.GradScaler, "step", 6, KINDS[0])
        with pytest.raises(CocosegError, match=r"step-00000003 \(2 steps are lost: the optimizer"):
            train_small(run)
    assert list_steps(locate(run)) == [3]
    train_small(run)
    assert_same_weights(run, whole)


def test_an_average_that_may_be_half_updated_is_not_saved(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, trainer_module.MovingAverage, "update", 2, KINDS[0])
    with pytest.raises(CocosegError, match="There is no checkpoint yet"):
        train_small(tmp_path, ema_decay=0.9)
    assert list_steps(locate(tmp_path)) == []


def test_a_batch_that_does_not_fit_is_told_likewise(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(steps: Any, device: torch.device) -> Any:
        yield next(steps)
        raise KINDS[0]

    monkeypatch.setattr(trainer_module, "on_device", failing)
    with pytest.raises(CocosegError, match=r"out of memory in step 2: .*\n?.*batch_size=1") as told:
        train_small(tmp_path)
    assert "Traceback" not in str(told.value)
    assert list_steps(locate(tmp_path)) == [1]


@pytest.mark.parametrize("name", ["prepare_network", "restore_optimizer"])
def test_a_network_that_does_not_fit_is_told_before_the_first_step(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    train_small(tmp_path, max_steps=1, val_shards=())
    fail_at(monkeypatch, trainer_module, name, 1, KINDS[0])
    with pytest.raises(CocosegError, match="cpu: out of memory while the network is loaded: CUDA"):
        train_small(tmp_path, max_steps=2, val_shards=())


def test_other_failures_are_not_taken_for_it(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, TrainingStep, "_backward", 5, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        train_small(tmp_path)


def test_advice_names_what_is_left_to_change() -> None:
    most = advice(TrainConfig(batch_size=6, recompute_mlp=False), 2)
    assert re.search(r"recompute_mlp=true; .*batch_size=3 .*accumulation_steps=4 .*; .*input", most)
    least = advice(TrainConfig(batch_size=1, activation_checkpointing=True), 2)
    assert "batch_size" not in least
    assert "activation_checkpointing" not in least
    assert "model.input_size" in least


def start(
    warm: Warm, golden: Any, folder: Path, without: str, at_call: int, **more: object
) -> Started:
    settings = {**SMALL, "max_steps": 5, "val_every": 4, "accumulation_steps": 1, **more}
    return warm.start(
        *(2, Path(__file__).with_name("no_memory.py"), "train"),
        *("--shards", golden.shards("train"), "--output", folder),
        *("--set=model.name=segformer-tiny", "--set=model.input_size=32"),
        *(f"--set=train.{key}={value}" for key, value in settings.items()),
        RANK_WITHOUT=without,
        AT_CALL=str(at_call),
    )


@pytest.mark.parametrize("without", ["1", pytest.param("0,1", marks=pytest.mark.long)])
def test_one_rank_without_memory_saves_for_all(
    warm: Warm, golden: Any, tmp_path: Path, without: str
) -> None:
    folder, whole = tmp_path / "run", tmp_path / "whole"
    failed = start(warm, golden, folder, without, 4)
    _, err = failed.communicate(timeout=600)
    assert failed.returncode == 1, err
    assert not re.search(r"^Traceback", err, re.MULTILINE), err
    assert "OutOfMemoryError" not in err
    assert "Warning" not in err
    assert len(re.findall(r"^error: rank \d, cpu: ", err, re.MULTILINE)) == 1, err
    assert "out of memory in step 4: CUDA out of memory" in err
    assert "The newest checkpoint is step-00000003" in err
    assert list_steps(locate(folder)) == [3]
    for one in (folder, whole):  # resumed, and never interrupted
        ran = start(warm, golden, one, "", 0)
        _, err = ran.communicate(timeout=600)
        assert ran.returncode == 0, err
    assert_same_weights(folder, whole)
    assert [line["step"] for line in journal(folder)] == [1, 2, 3, 4, 5]


@pytest.mark.long
def test_a_validation_without_memory_on_one_rank_saves_for_all(
    warm: Warm, golden: Any, tmp_path: Path
) -> None:
    val = {"val_shards": str([str(golden.shards("val"))]), "val_every": 2}
    failed = start(warm, golden, tmp_path, "1", 0, **val)
    _, err = failed.communicate(timeout=600)
    assert failed.returncode == 1, err
    assert not re.search(r"^Traceback", err, re.MULTILINE), err
    assert "rank 1, cpu: out of memory in validation after step 2: CUDA" in err
    assert "Try train.val_batch_size=1" in err
    assert list_steps(locate(tmp_path)) == [2]
    resumed = start(warm, golden, tmp_path, "", 0, **val)
    _, err = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, err
    lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "val_mIoU" in line] == [2, 4, 5]
