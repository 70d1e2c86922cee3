"""Worker processes end with their parent, however it dies."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from cocoseg.processes import end_with_parent, start_context

def main():
    pool = ProcessPoolExecutor(2, mp_context=start_context(), initializer=end_with_parent)
    print(*{pool.submit(os.getpid).result() for _ in range(20)}, flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    main()
"""

LOADER = """
import os, sys
import torch
from torch.utils.data import DataLoader, Dataset
from cocoseg.processes import loader_options

class Pids(Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, i):
        return os.getpid()

def main():
    batches = iter(DataLoader(Pids(), batch_size=1, **loader_options(2, "torch")))
    print(*{int(next(batches)) for _ in range(4)}, flush=True)
    sys.stdin.read()

if __name__ == "__main__":
    main()
"""


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("script", [POOL, LOADER], ids=["pool", "loader"])
def test_workers_end_when_their_parent_is_killed(script: str, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(script)
    parent = subprocess.Popen(
        [sys.executable, str(tmp_path / "parent.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert workers
    assert all(is_alive(pid) for pid in workers)
    os.kill(parent.pid, signal.SIGKILL)
    try:
        # Returns when the last process that holds the pipe ends, the workers among them.
        parent.communicate(timeout=600)
        assert not any(is_alive(pid) for pid in workers)
    finally:
        for pid in filter(is_alive, workers):
            os.kill(pid, signal.SIGKILL)
