"""Where shards are built: in worker processes, on a Ray cluster, or in this process.

A shard is a pure function of its task, so that the engine cannot change a byte.

A worker may die: a C library crashes on a photograph, or the system runs out of memory. What it was
at is known from shared memory. That image is tried alone in a fresh process; if it kills that too,
it is quarantined and the shard is built without it. No death can make the pool wait.
"""

import importlib
import logging
import multiprocessing.connection
import os
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from ..errors import CocosegError, ConfigError
from ..processes import end_with_parent, start_context
from .sample import ImageTask, SampleRules, build_sample
from .shard import BuiltShard, ShardTask, build_shard

_POLL = 0.2  # seconds between two looks at how far the workers are
_UNEXPLAINED_DEATHS = 3  # of one shard, outside any image, before the work is given up
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Is told how many images of unfinished shards are done, and how many of them were left out."""


class Probe(msgspec.Struct, frozen=True, tag=True):
    """One image to be tried alone."""

    image: ImageTask
    rules: SampleRules


class Job(msgspec.Struct, frozen=True, tag=True):
    """One shard to be built."""

    shard: ShardTask


def available_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_shards(
    tasks: Iterable[ShardTask],
    workers: int,
    engine: Literal["local", "ray", "inline"],
    progress: Progress,
) -> Iterator[BuiltShard]:
    """Build shards and yield them as they are finished, in any order.

    Parameters
    ----------
    tasks
        Taken one by one, as workers become free.
    workers
        How many run at once; ``inline`` takes no notice.

    Raises
    ------
    ConfigError
        If Ray is asked for but not installed.
    CocosegError
        If a worker dies again and again without an image being the cause.
    OSError
        If the disk is full or fails.
    """
    if engine == "ray":
        return _run_ray(tasks, workers)
    if engine == "inline":
        return (build_shard(task, progress_of_one(progress)) for task in tasks)
    return _run_local(tasks, workers, progress)


def progress_of_one(progress: Progress) -> Callable[[int, int], None]:
    """Return what a single worker's `Watch` passes on."""
    return lambda place, bad: progress(max(place, 0), bad)


@dataclass(slots=True)
class _Worker:
    """One worker process and what it is at."""

    process: Any
    connection: Connection
    slot: int
    """Its pair of numbers in shared memory."""
    job: Job | Probe | None = None


@dataclass(slots=True)
class _Crew:
    """Worker processes that are replaced when they die."""

    size: int
    context: Any = field(default_factory=start_context)
    members: list[_Worker] = field(default_factory=list)
    places: Any = None
    """Shared memory, two int64 a worker: the place in its shard, images left out so far."""

    def __post_init__(self) -> None:
        if self.context.get_start_method() == "forkserver":
            self.context.set_forkserver_preload([f"{__package__}.workers"])  # imported once for all
        self.places = self.context.RawArray("q", 2 * self.size)

    def start(self, slot: int) -> None:
        """Start the worker of a slot, or the one that takes its place."""
        ours, theirs = self.context.Pipe()
        self.places[2 * slot : 2 * slot + 2] = [-1, 0]
        process = self.context.Process(
            target=_work, args=(theirs, self.places, slot), daemon=True, name=f"prepare-{slot}"
        )
        process.start()
        theirs.close()
        self.members.append(_Worker(process, ours, slot))

    def dismiss(self, worker: _Worker) -> None:
        """Forget a worker that has died."""
        worker.connection.close()
        worker.process.join()
        self.members.remove(worker)

    def stop(self) -> None:
        """End all workers at once."""
        for worker in self.members:
            worker.process.kill()
        for worker in list(self.members):
            self.dismiss(worker)

    def done(self) -> tuple[int, int]:
        """Return the images that unfinished shards have behind them, and those left out."""
        busy = [w for w in self.members if isinstance(w.job, Job)]
        done = sum(max(self.places[2 * worker.slot], 0) for worker in busy)
        return done, sum(self.places[2 * worker.slot + 1] for worker in busy)


def _run_local(
    tasks: Iterable[ShardTask], workers: int, progress: Progress
) -> Iterator[BuiltShard]:
    waiting = iter(tasks)
    first: deque[Job | Probe] = deque()  # what deaths left to do
    inquest = _Inquest(first)
    crew = _Crew(workers)

    def next_job() -> Job | Probe | None:
        if first:
            return first.popleft()
        task = next(waiting, None)
        return None if task is None else Job(task)

    try:
        ahead = next_job()
        for slot in range(workers):
            if ahead is None:
                break
            crew.start(slot)
            _give(crew.members[-1], ahead)
            ahead = next_job()
        while any(worker.job is not None for worker in crew.members):
            busy = {w.connection: w for w in crew.members if w.job is not None}
            ready = multiprocessing.connection.wait(list(busy), timeout=_POLL)
            progress(*crew.done())
            for connection in ready:
                worker = busy[connection]  # type: ignore[index]
                job, worker.job = worker.job, None
                assert job is not None
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, OSError):
                    place = crew.places[2 * worker.slot]
                    crew.dismiss(worker)
                    inquest.hold(job, place, worker.process.exitcode)
                    crew.start(worker.slot)
                    worker = crew.members[-1]
                    kind = "died"
                if kind == "failed":
                    raise content
                if kind == "built":
                    yield msgspec.msgpack.decode(content, type=BuiltShard)
                elif kind == "survived" and isinstance(job, Probe):
                    inquest.acquit(job)
                if ahead is None or first:  # deaths first: what they wait for is nearly done
                    if ahead is not None:
                        first.append(ahead)
                    ahead = next_job()
                if ahead is not None:
                    _give(worker, ahead)
                    ahead = next_job()
    finally:
        crew.stop()


def _give(worker: _Worker, job: Job | Probe) -> None:
    worker.job = job
    try:
        worker.connection.send_bytes(msgspec.msgpack.encode(job))
    except OSError:  # it died between two jobs: the loop finds out
        return


class _Inquest:
    """Decides what becomes of the image at which a worker died."""

    def __init__(self, first: "deque[Job | Probe]") -> None:
        self.first = first
        self.suspended: dict[str, Job] = {}
        """Shards that wait for an image to be tried alone, by its key."""
        self.acquitted: set[str] = set()
        """Images that survived alone: the next death at them convicts."""
        self.unexplained: Counter[int] = Counter()

    def hold(self, job: Job | Probe, place: int, exitcode: int | None) -> None:
        """Decide what to do after a death."""
        cause = _cause(exitcode)
        if isinstance(job, Probe):
            self._convict(self.suspended.pop(job.image.key), job.image, f"{cause}, twice")
            return
        shard = job.shard
        if not 0 <= place < len(shard.images):
            self.unexplained[shard.number] += 1
            _log.warning("a worker died (%s) in shard %s; trying again", cause, shard.name)
            if self.unexplained[shard.number] >= _UNEXPLAINED_DEATHS:
                raise CocosegError(
                    f"a worker died {_UNEXPLAINED_DEATHS} times in shard {shard.name} ({cause}; "
                    "out of memory?); what is finished is kept: run the same command again, with "
                    "fewer --workers or --samples-per-shard"
                )
            self.first.append(job)
            return
        image = shard.images[place]
        _log.warning("a worker died (%s) at image %s (%s)", cause, image.image_id, image.file_name)
        if image.key in self.acquitted:
            self._convict(job, image, f"{cause}, twice")
        else:
            self.suspended[image.key] = job
            self.first.append(Probe(image, shard.rules))

    def acquit(self, probe: Probe) -> None:
        """Go on with a shard whose suspect survived alone."""
        self.acquitted.add(probe.image.key)
        self.first.append(self.suspended.pop(probe.image.key))

    def _convict(self, job: Job, image: ImageTask, cause: str) -> None:
        refused = replace(
            image, problem="worker-died", detail=f"a worker process died of it ({cause})"
        )
        images = tuple(refused if one is image else one for one in job.shard.images)
        self.first.append(Job(replace(job.shard, images=images)))


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


def _work(connection: Connection, places: Any, slot: int) -> None:
    """Build what comes down the pipe until it is closed; runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()

    def watch(place: int, bad: int) -> None:
        places[2 * slot : 2 * slot + 2] = [place, bad]

    while True:
        try:
            job = msgspec.msgpack.decode(connection.recv_bytes(), type=Job | Probe)
        except EOFError:
            return
        try:
            if isinstance(job, Job):
                built = build_shard(job.shard, watch)
                watch(-1, 0)
                answer: tuple[str, Any] = ("built", msgspec.msgpack.encode(built))
            else:
                build_sample(job.image, job.rules)
                answer = ("survived", None)
        except Exception as error:
            answer = ("failed", _portable(error))
        connection.send(answer)


def _portable(error: Exception) -> Exception:
    """Return an exception that can be pickled."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    except Exception:
        return RuntimeError("".join(traceback.format_exception(error)))
    error.add_note("".join(traceback.format_tb(error.__traceback__)))
    return error


def _run_ray(tasks: Iterable[ShardTask], workers: int) -> Iterator[BuiltShard]:
    try:
        ray: Any = importlib.import_module("ray")
    except ImportError:
        raise ConfigError(
            "--engine ray: Ray is not installed: pip install 'cocoseg[ray]'"
        ) from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    remote = ray.remote(max_retries=3)(_build_remotely)
    running: list[Any] = []
    for task in tasks:
        running.append(remote.remote(msgspec.msgpack.encode(task)))
        if len(running) >= 2 * workers:
            done, running = ray.wait(running)
            yield from map(_unpacked, ray.get(done))
    while running:
        done, running = ray.wait(running)
        yield from map(_unpacked, ray.get(done))


def _build_remotely(task: bytes) -> bytes:
    shard = msgspec.msgpack.decode(task, type=ShardTask)
    return msgspec.msgpack.encode(build_shard(shard, lambda place, bad: None))


def _unpacked(content: bytes) -> BuiltShard:
    return msgspec.msgpack.decode(content, type=BuiltShard)
