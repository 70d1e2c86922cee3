"""The loss of a step and its gradient do not depend on how the global batch is cut.

Whole steps in real process groups, in float64 with frozen statistics and no dropout, against one
big batch through transformers' own network and a textbook's loss.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_oracle import CLASSES, IGNORE, big_batch, plain_network
from warm import Warm

IMAGES, SIZE = 24, 32
SETTINGS: list[dict[str, Any]] = [
    {"loss_type": "ce_dice"},
    {"loss_type": "ce", "class_weights": [0.0, *(0.5 + i / 40 for i in range(80))]},
    {"loss_type": "ce", "label_smoothing": 0.1},
    {"loss_type": "ce", "ohem": 0.3},
]
SCRIPT = Path(__file__).with_name("exact_cells.py")


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A global batch: blocks of classes, unevenly ignored; three images wholly so."""
    generator = torch.Generator().manual_seed(11)
    images = torch.randint(0, 256, (IMAGES, SIZE, SIZE, 3), generator=generator).byte()
    blocks = torch.randint(0, CLASSES, (IMAGES, 4, 4), generator=generator)
    masks = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)
    ignored = torch.rand(IMAGES, SIZE, SIZE, generator=generator)
    masks[ignored < torch.linspace(0, 0.9, IMAGES)[:, None, None]] = IGNORE
    masks[[0, 5, 23]] = IGNORE
    network = plain_network()
    network.decode_head.batch_norm.running_mean.uniform_(-1, 1, generator=generator)
    network.decode_head.batch_norm.running_var.uniform_(0.5, 2, generator=generator)
    path = tmp_path_factory.mktemp("exact") / "batch.pt"
    torch.save({"images": images, "masks": masks.byte(), "weights": network.state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def expected(batch: Path) -> list[tuple[float, dict[str, torch.Tensor]]]:
    stored = torch.load(batch, weights_only=True)
    found = []
    for settings in SETTINGS:
        network = plain_network()
        network.load_state_dict(stored["weights"])
        found.append(big_batch(network.double(), stored["images"], stored["masks"], settings))
    return found


def run(warm: Warm, batch: Path, out: Path, world_size: int, cells: list[Any]) -> list[Any]:
    ran = warm.start(world_size, SCRIPT, batch, out, json.dumps(cells))
    told, err = ran.communicate()
    assert ran.returncode == 0, err[-3000:]
    return [json.loads(line) for line in told.splitlines() if line.startswith("[")]


def check(
    warm: Warm, batch: Path, expected: Any, out: Path, world_size: int, splits: list[int]
) -> None:
    cells = list(itertools.product(splits, range(len(SETTINGS))))
    found = run(warm, batch, out, world_size, [[a, SETTINGS[i]] for a, i in cells])
    assert len(found) == len(cells)
    for (_, setting), (number, loss, norm, skipped) in zip(cells, found, strict=True):
        value, gradient = expected[setting]
        assert not skipped
        assert loss == pytest.approx(value, rel=1e-12)
        ours = torch.load(f"{out}-{number}.pt", weights_only=True)
        largest = max(float(one.abs().max()) for one in gradient.values())
        for name, one in gradient.items():
            assert float((ours[name] - one).abs().max()) <= 1e-11 * largest, name
        squares = sum(float((one**2).sum()) for one in gradient.values())
        assert norm == pytest.approx(squares**0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("world_size", "splits"),
    [
        (2, [1, 2, 3]),
        *(pytest.param(n, [1, 2, 3], marks=pytest.mark.long) for n in (1, 4)),
    ],
)
def test_every_cut_gives_the_loss_and_gradient_of_one_big_batch(
    warm: Warm, batch: Path, expected: Any, tmp_path: Path, world_size: int, splits: list[int]
) -> None:
    check(warm, batch, expected, tmp_path / "gradient", world_size, splits)
