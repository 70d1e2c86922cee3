"""Whole runs: they learn, they resume exactly, and the number of processes changes nothing."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cocoseg.errors import ConfigError
from cocoseg.infer.config import InferConfig
from cocoseg.infer.evaluate import evaluate
from cocoseg.model.config import ModelConfig
from cocoseg.train.checkpoint import list_steps
from cocoseg.train.loop import RunResult
from exact_oracle import plain_network
from safetensors.torch import load_file

Train = Callable[..., RunResult]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in journal(run) if "loss" in line}


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different


def test_the_loss_falls(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, max_steps=40, val_every=40, learning_rate=3e-3, backbone_lr_ratio=1.0)
    values = losses(tmp_path)
    first, last = [values[i] for i in range(1, 6)], [values[i] for i in range(36, 41)]
    assert sum(last) < 0.7 * sum(first)


@pytest.mark.parametrize("loss_type", ["ce", "dice", "focal"])
def test_the_other_losses_train_too(train_small: Train, tmp_path: Path, loss_type: str) -> None:
    train_small(tmp_path, max_steps=2, val_every=2, loss_type=loss_type)
    assert len(losses(tmp_path)) == 2


def test_a_run_that_is_cut_anywhere_ends_with_the_same_bits(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.train import loop

    train_small(tmp_path / "whole")
    for fatal in (1, 4, 5):  # before, and after, the checkpoint at step 3
        steps = 0
        take = loop._Trainer.step

        def dies(self, *args, fatal=fatal, take=take):
            nonlocal steps
            steps += 1
            if steps == fatal:
                raise KeyboardInterrupt
            return take(self, *args)

        run = tmp_path / f"cut-{fatal}"
        with monkeypatch.context() as patch:
            patch.setattr(loop._Trainer, "step", dies)
            with pytest.raises(KeyboardInterrupt):
                train_small(run)
        assert list_steps(str(run)) == ([] if fatal == 1 else [3])
        train_small(run)
        assert_same_weights(run, tmp_path / "whole")
        assert losses(run) == losses(tmp_path / "whole")
        assert [line["step"] for line in journal(run)] == [1, 2, 3, 3, 4, 5, 6, 6]


def test_the_same_call_finds_a_finished_run_finished(train_small: Train, tmp_path: Path) -> None:
    first = train_small(tmp_path)
    stamp = (tmp_path / "last" / "model.safetensors").stat().st_mtime_ns
    assert train_small(tmp_path) == first
    assert (tmp_path / "last" / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "train.seed: 0 there, 5 now"),
        ({"loss_type": "ce"}, "train.loss_type: 'ce_dice' there, 'ce' now"),
        ({"class_weights": "auto"}, "train.class_weights: None there, "),
        ({"rare_class_sampling": 0.5}, "train.rare_class_sampling: 0.0 there, 0.5 now"),
        (
            {"model": ModelConfig(name="segformer-b0", input_size=32)},
            "model.name: 'segformer-tiny'",
        ),
        (
            {"model": ModelConfig(name="segformer-tiny", input_size=64)},
            "model.input_size: 32 there",
        ),
    ],
)
def test_a_run_of_other_settings_is_not_gone_on_with(
    train_small: Train, tmp_path: Path, change: dict, named: str
) -> None:
    train_small(tmp_path)
    with pytest.raises(ConfigError, match=re.escape(named)):
        train_small(tmp_path, **change)


def test_other_shards_and_classes_are_refused_with_what_differs(
    train_small: Train, tmp_path: Path, golden, coco_set_class
) -> None:
    train_small(tmp_path / "run", val_shards=())
    with pytest.raises(
        ConfigError, match="shards: 3 of 3 there are gone or changed, 2 now are new"
    ):
        train_small(tmp_path / "run", shards=(str(golden.shards("val")),), val_shards=())
    other = coco_set_class(tmp_path / "other")  # cat, dog, fish
    other.photo(1)
    other.prepare(tmp_path / "shards")
    with pytest.raises(ConfigError, match=r"classes: - person, - bicycle.*\(79 differ\)"):
        train_small(tmp_path / "run", shards=(str(tmp_path / "shards"),), val_shards=())


def test_the_global_batch_stays_when_a_run_goes_on(
    train_small: Train, tmp_path: Path, caplog
) -> None:
    """It was 2 images x 2 micro-batches; whatever is said now, it makes up 4 again or refuses."""
    train_small(tmp_path, max_steps=3)
    with caplog.at_level("INFO"):
        train_small(tmp_path, max_steps=6, batch_size=1)
    assert "accumulation_steps 4 instead of 2, so that the global batch stays 4" in caplog.text
    epochs = {line["step"]: line["epoch"] for line in journal(tmp_path) if "epoch" in line}
    assert epochs[6] == pytest.approx(2 * epochs[3])
    with pytest.raises(ConfigError, match=r"global batch of 4.*fits is 1, 2, 4"):
        train_small(tmp_path, max_steps=9, batch_size=3)


def test_what_may_change_changes_when_a_run_goes_on(
    train_small: Train, tmp_path: Path, caplog
) -> None:
    train_small(tmp_path, max_steps=3, learning_rate=1e-3, warmup_steps=0)
    with caplog.at_level("INFO"):
        train_small(tmp_path, max_steps=6, learning_rate=1e-4, warmup_steps=0)
    assert "train.learning_rate was 0.001, is 0.0001 from now on" in caplog.text
    rates = {line["step"]: line["learning_rate"] for line in journal(tmp_path) if "loss" in line}
    assert rates[1]["head"] == pytest.approx(1e-3)
    assert rates[4]["head"] == pytest.approx(1e-4 * (1 - 3 / 6))
    assert rates[4]["backbone"] == pytest.approx(1e-5 * (1 - 3 / 6))


def test_resume_never_refuses_a_folder_that_holds_a_run(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, resume="never")
    with pytest.raises(ConfigError, match="holds a run already"):
        train_small(tmp_path, resume="never")


def test_validation_while_training_is_eval_without_tta(
    train_small: Train, tmp_path: Path, golden
) -> None:
    train_small(tmp_path / "run", val_batch_size=3)
    during = [line for line in journal(tmp_path / "run") if "val_mIoU" in line][-1]
    config = InferConfig(
        checkpoint=str(tmp_path / "run" / "last"),
        shards=(str(golden.shards("val")),),
        output=str(tmp_path / "eval"),
        use_tta=False,
        batch_size=3,
        device="cpu",
    )
    after = evaluate(config, ModelConfig()).to_dict()
    assert during["val_mIoU"] == after["mIoU"]
    assert during["val_pixel_accuracy"] == after["pixel_accuracy"]
    assert during["val_mean_accuracy"] == after["mean_accuracy"]


def test_a_run_without_validation_ends_with_last_alone(train_small: Train, tmp_path: Path) -> None:
    result = train_small(tmp_path, val_shards=())
    assert result.best_score is None
    assert (tmp_path / "last").is_symlink()
    assert not (tmp_path / "best").is_symlink()


def test_two_processes_follow_one_within_float_noise(
    torchrun, train_small: Train, tmp_path: Path
) -> None:
    """The same global batches; frozen statistics and no dropout, which each rank has its own."""
    plain_network().save_pretrained(tmp_path / "model")
    settings = {"freeze_batch_norm": True, "accumulation_steps": 1, "max_steps": 12}
    both = torchrun(tmp_path / "two", 2, model=str(tmp_path / "model"), batch_size=2, **settings)
    out, err = both.communicate(timeout=240)
    assert both.returncode == 0, err
    assert json.loads(out)["steps"] == 12
    model = ModelConfig(name=str(tmp_path / "model"), input_size=32)
    train_small(tmp_path / "one", model=model, batch_size=4, **settings)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert one.keys() == two.keys()
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=1e-4), step
    assert two[1] == pytest.approx(one[1], rel=1e-6)
    scores = [line for line in journal(tmp_path / "two") if "val_mIoU" in line]
    assert len(scores) == 4


def test_two_processes_killed_mid_run_end_with_the_same_bits(torchrun, tmp_path: Path) -> None:
    settings = {"max_steps": 24, "val_every": 8, "workers": 1}
    whole = torchrun(tmp_path / "whole", 2, **settings)
    assert whole.wait(timeout=240) == 0, whole.communicate()[1]

    killed = torchrun(tmp_path / "killed", 2, **settings)
    while not list_steps(str(tmp_path / "killed")):
        with_patience(killed)
    kill_all(str(tmp_path / "killed"))
    killed.communicate()
    reached = list_steps(str(tmp_path / "killed"))
    assert reached
    assert reached[-1] < 24  # the kill landed mid-work

    again = torchrun(tmp_path / "killed", 2, **settings)
    _, err = again.communicate(timeout=240)
    assert again.returncode == 0, err
    assert f"from step {reached[-1]}" in err
    assert_same_weights(tmp_path / "killed", tmp_path / "whole")
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")


def kill_all(argument: str) -> None:
    """SIGKILL every process with `argument` on its command line: torchrun and all its ranks.

    Ranks live in sessions of their own: killing torchrun's group would leave them at work.
    """
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument in entry.read_bytes().decode(errors="replace").split("\0"):
                os.kill(int(entry.parent.name), signal.SIGKILL)


def with_patience(process: subprocess.Popen[str]) -> None:
    """Let a process work a moment; it must not end meanwhile."""
    try:
        process.wait(timeout=0.05)
    except subprocess.TimeoutExpired:
        return
    raise AssertionError(f"ended early: {process.communicate()[1]}")
