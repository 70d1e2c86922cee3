"""Ctrl-C and SIGTERM save a run and end it with its loaders, without a traceback."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from cocoseg.checkpoint.layout import list_steps
from cocoseg.storage import locate
from cocoseg.train import interrupt
from warm import COMMAND, Warm


def members(group: int) -> list[int]:
    """The processes of a group that are alive."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("number", "whom"),
    [
        (signal.SIGINT, "group"),
        pytest.param(signal.SIGINT, "command", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, "group", marks=pytest.mark.long),
    ],
)
def test_the_end_is_clean(warm: Warm, golden: Any, tmp_path: Path, number: int, whom: str) -> None:
    run = tmp_path / "run"
    command = (
        *("train", "--shards", golden.shards("train"), "--val-shards", golden.shards("val")),
        *("--output", run, "--set=model.name=segformer-tiny", "--set=model.input_size=32"),
        *("--set=train.workers=2", "--set=train.batch_size=2", "--set=train.val_every=2"),
        *("--set=train.max_steps=100000", "--set=train.device=cpu"),
    )
    process = warm.start(0, COMMAND, *command)
    while not list_steps(locate(run)) and process.poll() is None:
        time.sleep(0.02)
    assert len(members(process.pid)) >= 4, process.poll()  # command, fork server, two loaders
    (os.killpg if whom == "group" else os.kill)(process.pid, number)
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    reached = list_steps(locate(run))[-1]
    assert f"interrupted after step {reached}, which is saved: run the same command again" in err
    assert "Traceback" not in err
    assert out == ""
    assert members(process.pid) == []


def test_an_echo_of_a_signal_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who ends a group of processes, and torchrun, which passes it on, both send one."""
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with interrupt.Interrupts() as interrupts:
        interrupts.postponed = True
        for later in (0.0, 0.01, 1.0):
            now[0] += later
            signal.raise_signal(signal.SIGTERM)
            assert interrupts.came
        now[0] += 1.5
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
