"""Worker processes: how they start, and that they never outlive their parent."""

import multiprocessing
import os
import threading
from multiprocessing.context import BaseContext


def start_context() -> BaseContext:
    """Return how worker processes start: never by fork, which copies locks, threads and CUDA."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")


def end_with_parent(*_: object) -> None:
    """Let this worker process end at once when its parent is gone; call it first thing.

    A killed parent closes no queue: its workers would wait forever, and under a fork server, which
    they keep alive, PyTorch's own watchdog sees no change of parent either. The arguments are those
    that pools and loaders pass to their initialisers.
    """
    threading.Thread(target=_watch_parent, daemon=True, name="end-with-parent").start()


def _watch_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
