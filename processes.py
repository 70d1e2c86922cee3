"""Worker processes: how they start, and that they never outlive their parent."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any

_GRACE = 30.0  # seconds from SIGTERM to the end of a loader: as long as torchrun waits for ranks
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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

    glibc maps every large block anew, and the kernel clears each page of it again: on a CPU that
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

    Else its orphans would go on training, and write beside those of the next start. Source:
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
