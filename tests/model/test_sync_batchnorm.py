"""Synchronized batch norm in real process groups against plain batch norm of the whole batch."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cocoseg.model.sync_batchnorm import (
    SyncBatchNorm2d,
    localise_batch_norms,
    synchronize_batch_norms,
)
from torch import nn

SCRIPT = Path(__file__).with_name("sync_cells.py")
CELLS = [
    {"dtype": "float64", "affine": True},
    {"dtype": "float64", "affine": True, "offset": 1000.0},
    {"dtype": "float64", "affine": False, "momentum": None},
    {"dtype": "float32", "affine": True},
    {"dtype": "float32", "affine": True, "channels_last": True},
    {"dtype": "float32", "affine": True, "offset": 1000.0},
    {"dtype": "float32", "affine": True, "momentum": None},
    {"dtype": "float32", "affine": True, "recomputed": True},
    {"dtype": "bfloat16", "affine": True},
]
EPS = {"float64": 2.3e-16, "float32": 1.2e-7, "bfloat16": 7.9e-3}


def cells_module():
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import sync_cells
    finally:
        sys.path.pop(0)
    return sync_cells


def found_by_ranks(tmp_path, world, cells):
    out = tmp_path / "found"
    ranks = [
        subprocess.Popen(
            [
                *(sys.executable, str(SCRIPT), str(tmp_path / "store"), str(rank), str(world)),
                *(str(out), json.dumps(cells)),
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]
    for one in ranks:
        _, err = one.communicate(timeout=600)
        assert one.returncode == 0, err[-3000:]
    return [torch.load(f"{out}-{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.long), 3])
def test_uneven_parts_give_what_the_whole_batch_gives(tmp_path, world):
    module = cells_module()
    cells = [{**cell, "world": world} for cell in CELLS]
    by_rank = found_by_ranks(tmp_path, world, cells)
    for i, cell in enumerate(cells):
        x, gradient, norm = module.whole_batch(cell)
        norm.double()
        expected = module.outcome(norm, norm, x.double(), gradient.double())
        if cell.get("recomputed"):  # statistics move once or twice, as those of plain batch norm
            expected = {name: one for name, one in expected.items() if "running" not in name}
            del expected["num_batches_tracked"]
        parts = [rank[i] for rank in by_rank]
        merged = {
            name: torch.cat([part[name] for part in parts])
            if name in ("out", "x")
            else sum(part[name] for part in parts)
            if name.startswith("d_")
            else parts[0][name]
            for name in expected
        }
        for name, value in norm.named_buffers():  # all ranks hold the same bits
            assert all(torch.equal(part[name], parts[0][name]) for part in parts), (cell, name)
            assert parts[0][name].shape == value.shape
        eps = EPS[cell["dtype"]]
        for name, value in expected.items():
            # Values near `offset` are rounded before their mean is subtracted.
            allowed = 4 * eps * (1 + cell.get("offset", 0.0))
            if name not in ("out", "x"):  # sums, in float32 at least
                allowed = max(20 * min(eps, EPS["float32"]), allowed * (eps <= EPS["float32"]))
            scale = max(1.0, value.abs().max().item())
            off = (merged[name].double() - value.double()).abs().max().item() / scale
            assert off <= allowed, (cell, name, off, allowed)


def test_alone_and_in_eval_mode_it_is_plain_batch_norm():
    x = torch.randn(3, 4, 5, 6)
    plain = nn.BatchNorm2d(4)
    ours = copy.deepcopy(plain)
    synchronize_batch_norms(nn.Sequential(ours))
    for training in (True, False):
        plain.train(training)
        ours.train(training)
        assert torch.equal(ours(x), plain(x))
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), plain.buffers(), strict=True))


def test_names_and_hooks_stay_and_a_copy_can_be_made_plain_again():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    calls = []
    network[1].register_forward_hook(lambda *_: calls.append(1))
    names = list(network.state_dict())
    synchronize_batch_norms(network)
    assert [type(network[1]), type(network[2][0])] == [SyncBatchNorm2d] * 2
    assert isinstance(network[1], nn.BatchNorm2d)
    assert list(network.state_dict()) == names
    network(torch.randn(2, 3, 4, 4))
    assert calls == [1]
    copied = copy.deepcopy(network)
    localise_batch_norms(copied)
    assert [type(copied[1]), type(copied[2][0])] == [nn.BatchNorm2d] * 2
    assert type(network[1]) is SyncBatchNorm2d
