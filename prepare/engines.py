"""Where shard tasks run: in this process, in worker processes, or on a Ray cluster.

A task is a pure function of its picklable argument, so that the engine cannot change a byte.
"""

import importlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Literal, TypeVar

from ..errors import CocosegError, ConfigError
from ..processes import end_with_parent, start_context

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result],
    tasks: Iterable[Task],
    workers: int,
    engine: Literal["local", "ray"] = "local",
) -> Iterator[Result]:
    """Run `function` over `tasks` and yield the results as they come, in any order.

    Parameters
    ----------
    function
        A module-level function.
    tasks
        Taken one by one: no more than two a worker wait at a time.
    workers
        How many run at once; 1 on the local engine runs in this process.

    Raises
    ------
    ConfigError
        If Ray is asked for but not installed.
    CocosegError
        If a worker dies.
    """
    if engine == "ray":
        return _run_ray(function, tasks, workers)
    if workers == 1:
        return map(function, tasks)
    return _run_local(function, tasks, workers)


def _run_local(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    executor = ProcessPoolExecutor(workers, mp_context=start_context(), initializer=_begin_worker)
    running: set[Future[Result]] = set()
    try:
        for task in tasks:
            running.add(executor.submit(function, task))
            if len(running) >= 2 * workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool:
        raise CocosegError(
            "a worker process died (out of memory, or a crash in a C library); what is finished "
            "is kept: run the same command again, with fewer --workers if memory was short"
        ) from None
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    end_with_parent()


def _run_ray(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int
) -> Iterator[Result]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "--engine ray: Ray is not installed: pip install 'cocoseg[ray]'"
        ) from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    remote = ray.remote(max_retries=3)(function)
    running: list[Any] = []
    for task in tasks:
        running.append(remote.remote(task))
        if len(running) >= 2 * workers:
            done, running = ray.wait(running)
            yield from ray.get(done)
    while running:
        done, running = ray.wait(running)
        yield from ray.get(done)
