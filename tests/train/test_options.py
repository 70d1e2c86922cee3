"""What options of training show from outside: average, patience, what is frozen, precision."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cocoseg.checkpoint.network import load_network
from cocoseg.errors import ConfigError
from cocoseg.model.config import ModelConfig
from cocoseg.train import trainer
from cocoseg.train.run import RunResult
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Train = Callable[..., RunResult]


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / name / "model.safetensors")


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if "loss" in line]


# ---- the moving average of the weights


def test_the_average_is_what_is_saved_and_the_weights_train_on(
    train_small: Train, tmp_path: Path
) -> None:
    """By hand: after step t the average moves by 1 - min(decay, (1 + t) / (10 + t))."""
    settings = {"val_shards": (), "learning_rate": 1e-2, "checkpoint_every": 1, "keep_last": 9}
    train_small(tmp_path / "plain", max_steps=4, **settings)
    train_small(tmp_path / "averaged", max_steps=4, ema_decay=0.15, **settings)
    assert losses(tmp_path / "plain") == losses(tmp_path / "averaged")
    steps = [
        load_file(folder / "model.safetensors")
        for folder in sorted((tmp_path / "plain" / "checkpoints").iterdir())
    ]
    name = "decode_head.classifier.weight"
    train_small(tmp_path / "start", max_steps=1, **{**settings, "learning_rate": 1e-30})
    average = weights(tmp_path / "start")[name]
    for t, step in enumerate(steps):
        decay = min(0.15, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * step[name]
    assert torch.allclose(weights(tmp_path / "averaged")[name], average, atol=1e-6)
    assert not torch.equal(average, steps[-1][name])
    statistics = "decode_head.batch_norm.running_mean"
    assert torch.equal(weights(tmp_path / "averaged")[statistics], steps[-1][statistics])


def test_an_averaged_run_goes_on_exactly(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.train import trainer

    train_small(tmp_path / "whole", ema_decay=0.9)
    take = trainer.Trainer.step

    def dies(self: Any, *args: Any) -> Any:
        if self.now.step == 4:
            raise KeyboardInterrupt
        return take(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", dies)
        with pytest.raises(KeyboardInterrupt):
            train_small(tmp_path / "cut", ema_decay=0.9)
    train_small(tmp_path / "cut", ema_decay=0.9)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")


def test_the_average_is_what_is_scored(
    train_small: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored: list[dict[str, torch.Tensor]] = []
    validate = trainer.validate

    def noted(network: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        scored.append({key: value.clone() for key, value in network.state_dict().items()})
        return validate(network, *args, **kwargs)

    monkeypatch.setattr(trainer, "validate", noted)
    train_small(tmp_path, learning_rate=0.01, val_every=6, ema_decay=0.15)
    (network,) = scored
    saved = load_network(str(tmp_path / "last"), ModelConfig()).network.state_dict()
    assert [key for key in saved if not torch.equal(saved[key], network[key])] == []
    state = torch.load(tmp_path / "last" / "training_state.pt", weights_only=True)
    name = "decode_head.classifier.weight"
    assert not torch.equal(state["raw_weights"][name], network[name])


# ---- early end


def test_patience_ends_a_run_and_it_stays_ended(
    train_small: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A learning rate of nothing: no validation is better than the first."""
    settings = {"learning_rate": 1e-30, "freeze_batch_norm": True, "max_steps": 40, "val_every": 2}
    with caplog.at_level(logging.INFO):
        result = train_small(tmp_path, patience=3, **settings)
    assert (result.step, result.best_step, result.early) == (8, 2, True)
    ended = "no better val_mIoU in 3 validations: ended at step 8"
    assert caplog.text.count(ended) == 1
    with caplog.at_level(logging.INFO):
        again = train_small(tmp_path, patience=3, **settings)
    assert again == result
    assert caplog.text.count(ended) == 2  # and says why there is nothing to do
    assert train_small(tmp_path, patience=5, **settings).step == 12  # more patience continues


def test_the_best_may_be_that_without_background(train_small: Train, tmp_path: Path) -> None:
    result = train_small(tmp_path, monitor="val_mIoU_foreground")
    told = {line["step"]: line for line in lines(tmp_path) if "val_mIoU" in line}
    assert result.best_step is not None
    assert result.best_score == told[result.best_step]["val_mIoU_foreground"]
    assert result.best_score == max(line["val_mIoU_foreground"] for line in told.values())
    with pytest.raises(ConfigError, match=r"train\.monitor: 'val_mIoU_foreground' there"):
        train_small(tmp_path, max_steps=9)


# ---- what is frozen


def test_a_frozen_backbone_stays_and_the_head_learns(train_small: Train, tmp_path: Path) -> None:
    settings = {"val_shards": (), "checkpoint_every": 1, "keep_last": 9}
    train_small(tmp_path, max_steps=3, freeze_backbone=True, learning_rate=1e-2, **settings)
    folders = sorted((tmp_path / "checkpoints").iterdir())
    first, last = (load_file(folders[i] / "model.safetensors") for i in (0, -1))
    for name in first:
        if name.startswith("segformer."):
            assert torch.equal(first[name], last[name]), name
    assert not torch.equal(*(one["decode_head.classifier.weight"] for one in (first, last)))


def test_frozen_statistics_stay_after_validation_too(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, max_steps=4, val_every=2, freeze_batch_norm=True)
    stored = weights(tmp_path)
    assert torch.equal(stored["decode_head.batch_norm.running_mean"], torch.zeros(128))
    assert int(stored["decode_head.batch_norm.num_batches_tracked"]) == 0


# ---- precision, memory, optimizer


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"amp_dtype": "bfloat16"}, 3e-2),
        ({"amp_dtype": "float16"}, 1e-2),
        ({"channels_last": True}, 1e-4),
        ({"activation_checkpointing": True}, 1e-5),
        ({"use_amp": False}, 0.0),
    ],
)
def test_switches_of_speed_and_memory_train_the_same(
    train_small: Train, tmp_path: Path, settings: dict[str, Any], tolerance: float
) -> None:
    common = {"max_steps": 3, "val_shards": (), "learning_rate": 1e-4}
    train_small(tmp_path / "plain", **common)
    train_small(tmp_path / "switched", **common, **settings)
    plain, switched = losses(tmp_path / "plain"), losses(tmp_path / "switched")
    assert switched == pytest.approx(plain, rel=tolerance, abs=0)


def test_sgd_trains_and_goes_on_exactly(train_small: Train, tmp_path: Path) -> None:
    settings = {"optimizer": "sgd", "learning_rate": 0.05, "warmup_steps": 0, "val_every": 3}
    train_small(tmp_path / "whole", **settings)
    train_small(tmp_path / "cut", **settings, checkpoint_every=2)
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert [name for name in whole if not torch.equal(whole[name], cut[name])] == []
    assert losses(tmp_path / "whole")[-1] != losses(tmp_path / "whole")[0]


def test_clipping_shortens_the_step_but_not_what_is_told(
    train_small: Train, tmp_path: Path
) -> None:
    settings = {"optimizer": "sgd", "momentum": 0.0, "max_steps": 1, "val_shards": ()}
    settings |= {"warmup_steps": 0, "weight_decay": 0.0, "backbone_lr_ratio": 1.0}
    train_small(tmp_path / "still", learning_rate=1e-30, **settings)
    train_small(tmp_path / "free", learning_rate=1.0, **settings)
    train_small(tmp_path / "clipped", learning_rate=1.0, clip_grad_norm=0.01, **settings)
    told = [lines(tmp_path / folder)[0]["grad_norm"] for folder in ("free", "clipped")]
    assert told[0] == told[1] > 0.01

    def length(folder: str) -> float:
        before, after = weights(tmp_path / "still"), weights(tmp_path / folder)
        moved = [
            (after[name] - before[name]).double().square().sum()
            for name in before
            if "running" not in name and "tracked" not in name
        ]
        return float(torch.stack(moved).sum().sqrt())

    assert length("free") == pytest.approx(told[0], rel=1e-3)
    assert length("clipped") == pytest.approx(0.01, rel=1e-3)


# ---- what people see


def test_tensorboard_shows_pictures_and_scalars(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, pictures=2)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert len(board.Tags()["images"]) == 2
    assert {tag.partition("/")[0] for tag in board.Tags()["images"]} == {"validation"}
    scalars = set(board.Tags()["scalars"])
    assert {"loss", "learning_rate/head", "learning_rate/backbone", "val_mIoU"} <= scalars
    assert {"images_per_second", "data_wait", "grad_norm"} <= scalars


def test_the_table_at_the_start_tells_what_is_trained(
    train_small: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        train_small(tmp_path, max_steps=1, val_shards=())
    for told in (
        "8 samples in 3 shards",
        "none",
        "81",
        "segformer-tiny",
        "4 = 2 images × 1 process",
        "about",
    ):
        assert told in caplog.text
