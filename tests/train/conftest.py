"""A run of a few steps on the golden set, in this process or under torchrun."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cocoseg.model.config import ModelConfig
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.run import RunResult, train_model
from small_runs import AUGMENT, MODEL, SMALL
from warm import COMMAND, Started, Warm


@pytest.fixture(scope="session")
def train_small(golden) -> Callable[..., RunResult]:
    """Train in this process: `train_small(folder, max_steps=…)`."""

    def train(
        folder: Path,
        model: ModelConfig = MODEL,
        augment: AugmentConfig = AUGMENT,
        **settings: object,
    ) -> RunResult:
        config = TrainConfig.model_validate(
            {
                "shards": (str(golden.shards("train")),),
                "val_shards": (str(golden.shards("val")),),
                "save_dir": str(folder),
                **SMALL,
                **settings,
            }
        )
        result = train_model(config, model, augment)
        assert result is not None
        return result

    return train


@pytest.fixture
def torchrun(golden, warm: Warm) -> Callable[..., Started]:
    """Start the command line as torchrun does."""

    def start(
        folder: Path,
        processes: int,
        shards: Path | None = None,
        model: str = "segformer-tiny",
        **settings: object,
    ) -> Started:
        merged = {**SMALL, **settings}
        overrides = [f"--set=train.{key}={value}" for key, value in merged.items()]
        return warm.start(
            *(processes, COMMAND, "train", "--shards", shards or golden.shards("train")),
            *("--val-shards", golden.shards("val"), "--output", folder, "--json"),
            *(f"--set=model.name={model}", "--set=model.input_size=32", *overrides),
            cwd=folder.parent,
        )

    yield start
    warm.kill_all()
