"""A loss that is no finite number: the step is skipped everywhere, and in the end the run stops."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cocoseg.checkpoint.layout import list_steps
from cocoseg.errors import CocosegError
from cocoseg.storage import locate
from cocoseg.train import step as step_module
from cocoseg.train.run import RunResult
from safetensors.torch import load_file

Train = Callable[..., RunResult]


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[int], float], None]:
    """Make the images of some calls of the network, counted from 0, no numbers at all."""

    def start(calls: set[int], value: float) -> None:
        count = -1
        backward = step_module.TrainingStep._backward

        def poisoned(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            normalize = self.normalize
            if count in calls:
                self.normalize = lambda images: torch.full_like(normalize(images), value)
            try:
                return backward(self, *args, **kwargs)
            finally:
                self.normalize = normalize

        monkeypatch.setattr(step_module.TrainingStep, "_backward", poisoned)

    return start


def test_a_step_without_a_finite_loss_changes_nothing(
    train_small: Train, tmp_path: Path, poison: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Steps of 2 micro-batches; the second of step 3 is bad, and the batch norms saw it."""
    train_small(tmp_path, max_steps=2, val_every=100, checkpoint_every=2, power=1e-9)
    before = load_file(tmp_path / "last" / "model.safetensors")
    poison({1}, float("nan"))
    result = train_small(tmp_path, max_steps=3, val_shards=(), power=1e-9)
    after = load_file(tmp_path / "last" / "model.safetensors")
    assert list_steps(locate(tmp_path))[-1] == 3
    for name, value in before.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(after[name], value), name
    assert result.skipped_steps == 1
    assert "step 3: the loss is nan: skipped; samples " in caplog.text
    last = [line for line in lines(tmp_path) if "loss" in line][-1]
    assert last["loss"] is None
    assert last["skipped_steps"] == 1


def test_the_samples_of_the_bad_micro_batch_alone_are_named(
    train_small: Train, tmp_path: Path, poison: Any, caplog: pytest.LogCaptureFixture
) -> None:
    poison({3}, float("inf"))
    train_small(tmp_path, max_steps=3)
    named = caplog.text.partition("skipped; samples ")[2].splitlines()[0].split(", ")
    assert len(named) == 2  # of the 4 of the step


def test_the_run_goes_on_after_some_and_its_loss_leaves_them_out(
    train_small: Train, tmp_path: Path, poison: Any
) -> None:
    poison({2, 3, 4, 9}, float("nan"))
    result = train_small(tmp_path, max_steps=6, max_skipped=2, log_every=6)
    assert result.step == 6
    assert result.skipped_steps == 3  # steps 2, 3 and 5
    assert [line["loss"] > 0 for line in lines(tmp_path) if "loss" in line] == [True]


def test_too_many_in_a_row_end_the_run_and_the_checkpoint_stays(
    train_small: Train, tmp_path: Path, poison: Any
) -> None:
    poison(set(range(6, 40)), float("nan"))  # from step 4 on
    with pytest.raises(CocosegError, match=r"step 6: the loss is nan.*of step 3 is kept"):
        train_small(tmp_path, max_steps=20, max_skipped=2)
    assert list_steps(locate(tmp_path)) == [3]
    stored = load_file(tmp_path / "last" / "model.safetensors")
    assert all(value.isfinite().all() for value in stored.values() if value.is_floating_point())


def test_the_count_in_a_row_outlives_a_restart(
    train_small: Train, tmp_path: Path, poison: Any
) -> None:
    poison(set(range(0, 100)), float("nan"))
    train_small(tmp_path, max_steps=2, max_skipped=2, checkpoint_every=1)
    with pytest.raises(CocosegError, match="step 3: the loss is nan"):
        train_small(tmp_path, max_steps=4, max_skipped=2)


def test_an_overflow_of_float16_is_no_fault(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first scale of loss scaling is too large here; it advances the step and is counted."""
    scaler = torch.amp.GradScaler

    def huge(device: str, enabled: bool) -> torch.amp.GradScaler:
        return scaler(device, init_scale=2.0**60, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", huge)
    result = train_small(
        tmp_path, max_steps=4, amp_dtype="float16", max_skipped=0, val_shards=(), log_every=1
    )
    told = [line for line in lines(tmp_path) if "loss" in line]
    assert result.step == 4
    assert result.skipped_steps == 0
    assert told[0]["scaler_overflows"] == 1
    assert all(line["loss"] > 0 for line in told)
    state = torch.load(tmp_path / "last" / "training_state.pt", weights_only=True)
    assert state["scaler"]["scale"] < 2.0**60


def test_a_gradient_that_is_no_number_at_any_scale_ends_the_run(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales 4, 2 and 1 are tried; then it is no overflow."""
    scaler, backward = torch.amp.GradScaler, step_module.TrainingStep._backward
    monkeypatch.setattr(
        torch.amp,
        "GradScaler",
        lambda device, enabled: scaler(device, init_scale=4.0, enabled=enabled),
    )

    def broken(self: Any, *args: Any, **kwargs: Any) -> Any:
        part = backward(self, *args, **kwargs)
        next(self.network.parameters()).grad.fill_(float("nan"))
        return part

    monkeypatch.setattr(step_module.TrainingStep, "_backward", broken)
    with pytest.raises(CocosegError, match=r"step 6: the gradient's norm is nan.*no checkpoint"):
        train_small(tmp_path, max_steps=50, amp_dtype="float16", max_skipped=2, val_every=50)


def test_steps_of_ignored_pixels_alone_are_told(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    from cocoseg.train import batches

    monkeypatch.setattr(
        batches.TrainingSamples,
        "_augmented",
        lambda self, sample, *place: (
            np.zeros((32, 32, 3), np.uint8),
            np.full((32, 32), self.shards.taxonomy.ignore_index, np.uint8),
        ),
    )
    train_small(tmp_path, max_steps=4, log_every=2, val_shards=())
    assert caplog.text.count("every pixel since the last line is ignored") == 2
    told = [line for line in lines(tmp_path) if "loss" in line]
    assert [line["loss"] for line in told] == [None, None]
    assert [line["skipped_steps"] for line in told] == [0, 0]
