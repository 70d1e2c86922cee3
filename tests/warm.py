"""torchrun, forked out of a process that has imported everything: ranks start in milliseconds.

    python warm.py          reads and answers lines of JSON; `Warm` speaks to it

Its agent is torchrun's own; each rank runs a script as ``__main__``. One run at a time.
"""

import contextlib
import ctypes
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

DEADLINE = 600.0  # for what takes seconds: only a hang gets there [s]
COMMAND = Path(__file__).parent.parent / "__main__.py"
"""The command line of cocoseg, as a script."""


class Started:
    """A launcher and its ranks."""

    def __init__(self, warm: "Warm", pid: int, out: Path, err: Path) -> None:
        self.pid = pid
        self._warm, self._out, self._err = warm, out, err
        self.returncode: int | None = None

    def ranks(self) -> list[int]:
        """The processes of the run, but the launcher."""
        return [pid for pid in descendants(self._warm.process.pid) if pid != self.pid]

    def poll(self) -> int | None:
        """Return the exit code of the launcher, once it and all ranks are gone."""
        if self.returncode is None:
            self.returncode = self._warm.ask(poll=self.pid)["code"]
        # These may outlive their launcher by a moment.
        return None if self.returncode is None or self.ranks() else self.returncode

    def communicate(self, timeout: float = DEADLINE) -> tuple[str, str]:
        """Wait until all have ended; return what they wrote."""
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < deadline, f"hangs: {self._err.read_text()}"
            time.sleep(0.02)
        return self._out.read_text(), self._err.read_text()


class Warm:
    """Starts runs out of a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def ask(self, **request: object) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def start(
        self,
        processes: int,
        program: Path,
        *arguments: object,
        restarts: int = 0,
        cwd: Path | None = None,
        **environment: str,
    ) -> Started:
        """Let `processes` ranks run a script; a single one runs without a launcher if it is 0."""
        self.runs += 1
        out, err = (self.folder / f"{self.runs}.{name}" for name in ("out", "err"))
        answer = self.ask(
            program=str(program),
            arguments=list(map(str, arguments)),
            processes=processes,
            restarts=restarts,
            files=[str(out), str(err)],
            cwd=str(cwd or self.folder),
            environment=environment,
        )
        return Started(self, answer["pid"], out, err)

    def kill_all(self) -> None:
        """End what a test that failed has left."""
        for pid in descendants(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill_all()
        self.process.kill()
        self.process.communicate()


def descendants(pid: int) -> list[int]:
    """The processes below one that are alive."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.parent.name)] = int(parent)
    found, below = [], [pid]
    while below:
        below = [child for child, parent in parents.items() if parent in below]
        found += below
    return found


# ---- the server


def serve() -> None:
    """Fork a run for each request, and tell how it ended."""
    import torch
    from cocoseg.checkpoint.network import start_network
    from cocoseg.model.config import ModelConfig
    from cocoseg.taxonomy import coco_taxonomy

    torch.set_num_threads(1)
    for name in (
        *("cocoseg.settings", "cocoseg.train.run", "cocoseg.infer.predict.run"),
        *("cocoseg.infer.evaluate.run", "torch.distributed.launcher.api"),
    ):
        import_module(name)
    network, _ = start_network(
        ModelConfig(name="segformer-tiny", input_size=32), coco_taxonomy(), 0
    )
    torch.optim.AdamW(network.parameters())  # imports much, late
    become_subreaper = 36
    ctypes.CDLL(None).prctl(become_subreaper, 1)  # orphans stay below this process, to be found
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            answer = {"pid": fork(**request)}
        print(json.dumps(answer), flush=True)


def fork(
    program: str,
    arguments: list[str],
    processes: int,
    restarts: int,
    files: list[str],
    cwd: str,
    environment: dict[str, str],
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), number)
        os.chdir(cwd)
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 0
        if processes:
            launch(program, arguments, processes, restarts)
        else:
            run(program, arguments)
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def launch(program: str, arguments: list[str], processes: int, restarts: int) -> None:
    """Do what torchrun does, but fork the workers."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(os.getpid()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        monitor_interval=0.02,
        start_method="fork",
    )
    try:
        elastic_launch(config, work)(program, arguments)
    except ChildFailedError as error:
        print(error, file=sys.stderr)  # as torchrun does
        sys.exit(1)


def work(program: str, arguments: list[str]) -> None:
    """What a worker of the agent does."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the agent's, as in a process of its own
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(program, arguments)


def run(program: str, arguments: list[str]) -> None:
    import torch

    # The first call makes PyTorch's thread pool again. When two threads do it at the same time, one
    # of them finds none ("Invalid thread pool!", in builds with CUDA).
    torch.set_num_threads(1)
    sys.argv = [program, *arguments]
    sys.path.insert(0, str(Path(program).parent))
    if Path(program) == COMMAND:  # as `python -m cocoseg`
        sys.path.pop(0)
        runpy.run_module("cocoseg", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    serve()
