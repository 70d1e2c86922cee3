"""A run of a few steps on the golden set, in this process or under torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cocoseg.model.config import ModelConfig
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.run import RunResult, run
from small_runs import AUGMENT, MODEL, SMALL


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
        result = run(config, model, augment)
        assert result is not None
        return result

    return train


@pytest.fixture
def torchrun(golden) -> Callable[..., subprocess.Popen[str]]:
    """Start the command line under torchrun, in a process group of its own."""

    def start(
        folder: Path,
        processes: int,
        shards: Path | None = None,
        model: str = "segformer-tiny",
        **settings: object,
    ) -> subprocess.Popen[str]:
        merged = {**SMALL, **settings}
        overrides = [f"--set=train.{key}={value}" for key, value in merged.items()]
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                *("--nproc-per-node", str(processes), "-m", "cocoseg", "train"),
                *("--shards", str(shards or golden.shards("train"))),
                *("--val-shards", str(golden.shards("val"))),
                *("--output", str(folder), "--json"),
                *(f"--set=model.name={model}", "--set=model.input_size=32"),
                *overrides,
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd=folder.parent,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    return start
