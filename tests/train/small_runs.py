"""What small runs are made of, and what they leave."""

import json
from hashlib import sha256
from pathlib import Path

import torch
from cocoseg.model.config import ModelConfig
from cocoseg.train.config import AugmentConfig
from safetensors.torch import load_file

SMALL = {
    "max_steps": 6,
    "val_every": 3,
    "log_every": 1,
    "batch_size": 2,
    "accumulation_steps": 2,
    "workers": 0,
    "learning_rate": 1e-3,
    "device": "cpu",
}
MODEL = ModelConfig(name="segformer-tiny", input_size=32)
AUGMENT = AugmentConfig()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "last" / "model.safetensors")


def journal(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def vouch(checkpoint: Path) -> None:
    """Write the digests of a checkpoint again."""
    digests = {
        path.name: sha256(path.read_bytes()).hexdigest()
        for path in checkpoint.iterdir()
        if path.name != "digests.json"
    }
    (checkpoint / "digests.json").write_text(json.dumps(digests))


def losses(run: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in journal(run) if "loss" in line}


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different
