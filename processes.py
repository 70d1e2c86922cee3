"""Processes: which one this is among those of a run; how workers start, and how they end."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any

from .errors import ConfigError

_GRACE = 30.0  # seconds from SIGTERM to the end of a loader: as long as torchrun waits for ranks
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_SLURM = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Launch:
    """The place of this process among the processes of a run.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE. They are read here only. Under
    Slurm's ``srun``, its own variables replace RANK and LOCAL_RANK if those are not set. Sources:
    PyTorch, "torchrun (Elastic Launch)"; Slurm, srun(1), "Output Environment Variables".
    """

    rank: int = 0
    """0 … `world_size` - 1."""
    world_size: int = 1
    """Processes of the run, on all machines."""
    local_rank: int | None = 0
    """Among the processes of this machine; None if unknown."""
    local_world_size: int | None = 1
    """Processes of the run on this machine; None if unknown."""
    missing: tuple[str, ...] = ()
    """Variables that are not set and without which the processes cannot find each other."""
    fault: str = ""
    """What is wrong with the variables, and what to set; `check` raises it."""

    @classmethod
    def from_environment(cls) -> "Launch":
        """Read the environment variables; whatever they hold, this raises nothing."""
        read: dict[str, int] = {}
        for name in (*_RANKS, *_SLURM):
            text = os.environ.get(name, "")
            try:
                read |= {name: int(text)} if text else {}
            except ValueError:
                return cls(fault=f"environment variable {name}={text!r} is not an integer")
        task, tasks = read.get("SLURM_PROCID"), read.get("SLURM_STEP_NUM_TASKS")
        world_size = read.get("WORLD_SIZE")
        started = (task or 0) + 1 if tasks is None else tasks
        if world_size is None and started > 1:
            local = read.get("SLURM_LOCALID")
            return cls(task or 0, started, local, None, fault=_BARE_SRUN.format(tasks=started))
        world_size = 1 if world_size is None else world_size
        rank = read.get("RANK", task if tasks == world_size else None)
        counted = task is not None and tasks not in (None, world_size)
        if rank is None and counted and world_size > 1:  # 1 is for separate runs, on purpose
            text = f"srun started {tasks} tasks, but WORLD_SIZE is {world_size}: set it to {tasks}"
            return cls(fault=text)
        if world_size < 1 or not 0 <= (rank or 0) < world_size:
            return cls(
                fault=f"RANK={rank or 0} and WORLD_SIZE={world_size} do not fit: ranks are 0 … "
                "WORLD_SIZE - 1; torchrun sets both"
            )
        if world_size == 1:
            return cls()
        port = os.environ.get("MASTER_PORT", "")
        if port and not (port.isdecimal() and int(port) < 2**16):
            return cls(fault=f"environment variable MASTER_PORT={port!r} is not 0 … 65535")
        # What a batch script starts without srun inherits SLURM_PROCID=0 and SLURM_LOCALID=0.
        of_srun = task in (None, rank) and tasks in (None, world_size)
        missing = [name for name in _ADDRESS if not os.environ.get(name)]
        return cls(
            rank or 0,
            world_size,
            read.get("LOCAL_RANK", read.get("SLURM_LOCALID") if of_srun else None),
            read.get("LOCAL_WORLD_SIZE"),
            tuple(["RANK", *missing] if rank is None else missing),
        )

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and prints results."""
        return self.rank == 0

    def check(self) -> None:
        """Refuse variables that do not fit together.

        Raises
        ------
        ConfigError
            If one is not an integer, RANK is out of range, or srun started several tasks without
            WORLD_SIZE: each would run alone and write to the same folder.
        """
        if self.fault:
            raise ConfigError(self.fault)


def of_leader(record: logging.LogRecord) -> bool:
    """Let the leading process log alone what all processes of a run do alike."""
    return Launch.from_environment().leads


_BARE_SRUN = (
    "srun started {tasks} tasks, but WORLD_SIZE is not set: each of them would run alone and write "
    "to the same folder. Start one torchrun per node (srun --ntasks-per-node=1 torchrun …), or set "
    "MASTER_ADDR, MASTER_PORT and WORLD_SIZE=$SLURM_NTASKS before srun (docs/gpu.md, 'Slurm'). For "
    "separate runs, set WORLD_SIZE=1 and give each its own folder"
)


def start_context() -> BaseContext:
    """Return how worker processes start: never by fork, which copies locks, threads and CUDA."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def warm_up(*modules: str) -> None:
    """Start the fork server ahead of time; it imports `modules` once for all workers.

    Only the first call of a process has an effect. The server starts with SIGINT and SIGTERM
    blocked, and so do the workers: those go to whole process groups, the parent handles them, and
    needs its workers until then. Its libraries start no threads: each worker has one, and a fork is
    safe.
    """
    if start_context().get_start_method() != "forkserver":
        return
    forkserver.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # the fork server needs it, and starting it unblocks Ctrl-C
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with _one_thread():
            forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def loader_options(workers: int, module: str) -> dict[str, Any]:
    """Return the options of PyTorch's `DataLoader` that say how its workers start and end.

    Parameters
    ----------
    workers
        How many; none load in this process.
    module
        Holds the data set; see `warm_up`.
    """
    if workers == 0:
        return {"num_workers": 0}
    warm_up(module)
    return {
        "num_workers": workers,
        "multiprocessing_context": start_context(),
        "worker_init_fn": _start_loader,
    }


def keep_freed_memory() -> None:
    """Let this process reuse large tensors' memory instead of returning it to the system.

    glibc maps every large block again, and the kernel clears each page of it again: on a CPU that
    was more than half the time of a full-resolution loss (261 against 103 ms for 8 × 81 × 160²).
    Elsewhere than on glibc nothing happens. Source: mallopt(3).
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**26)


def end_with_parent() -> None:
    """Let this worker process end at once when its parent is gone; call it first thing.

    A killed parent closes no queue: its workers would wait forever, and under a fork server, which
    they keep alive, PyTorch's own watchdog sees no change of parent either.
    """
    threading.Thread(target=_watch_parent, daemon=True, name="end-with-parent").start()


def end_with_launcher() -> None:
    """Let this process, started by torchrun, be killed when torchrun is: Linux only.

    Else its orphans would continue to train, and write beside those of the next start. Source:
    prctl(2), PR_SET_PDEATHSIG.
    """
    launcher, set_pdeathsig = os.getppid(), 1
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(set_pdeathsig, signal.SIGKILL)
    if os.getppid() != launcher:  # gone already
        os._exit(1)


def _start_loader(number: int) -> None:
    """Prepare a loader's worker; PyTorch has given itself one thread already."""
    del number
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, _leave_later)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with_parent()
    keep_freed_memory()
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)


def _leave_later(number: int, frame: FrameType | None) -> None:
    """Serve the parent on: the signal went to it too, and it finishes its step first."""
    timer = threading.Timer(_GRACE, os._exit, (1,))
    timer.daemon = True
    timer.start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
