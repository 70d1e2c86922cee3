"""Environments as launchers set them, and processes that are started with them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CASES = Path(__file__).with_name("cases.py")
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC_")


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables of a launcher, and no others: `environment(RANK=1)`."""

    def set_to(**variables: object) -> None:
        for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    set_to()
    return set_to


class Started:
    """Two ranks of a case in `cases.py`, without torchrun; a line of JSON is what each found."""

    def __init__(self, case: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        kept = {name: text for name, text in os.environ.items() if not name.startswith(LAUNCHERS)}
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        self.ranks = [
            subprocess.Popen(
                [sys.executable, str(CASES), case],
                env={**kept, **address, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in "01"
        ]

    def found(self, rank: int, say: str = "") -> Any:
        """Write `say` to a rank, wait until it ends, and return what it found."""
        out, err = self.ranks[rank].communicate(say, timeout=600)
        assert out, err
        return json.loads(out)


@pytest.fixture(scope="session")
def started() -> type[Started]:
    return Started
