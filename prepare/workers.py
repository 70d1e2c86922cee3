"""Where shards are built: in worker processes, on a Ray cluster, or in this process.

A shard is a pure function of its task, so that the engine cannot change a byte.

A worker may die: a C library crashes on an image, or the system runs out of memory. What it was
at is known from shared memory. That image is tried alone in a fresh process; if it kills that too,
it is quarantined and the shard is built without it. No death can make the pool wait.
"""

import contextlib
import importlib
import itertools
import logging
import multiprocessing.connection
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from ..errors import CocosegError, ConfigError
from ..processes import end_with_parent, start_context, warm_up
from ..storage import locate
from .sample import build_sample
from .shard import BuiltShard, ShardTask, build_shard

_POLL = 0.2  # seconds between two looks at how far the workers are
_UNEXPLAINED_DEATHS = 3  # of one shard, outside any image, before the work is given up
_PATIENCE = 5.0  # seconds that a worker which closed its pipe has to end by itself
_log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Is told how many images of unfinished shards are done, and how many of them were left out."""


class Job(msgspec.Struct, frozen=True):
    """What a worker is given: one shard to be built, or one image of it to be tried alone."""

    shard: ShardTask
    suspect: int | None = None
    """The place of that image."""


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
        If a worker dies again and again without an image being the cause, or none can be started.
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


def _run_local(
    tasks: Iterable[ShardTask], workers: int, progress: Progress
) -> Iterator[BuiltShard]:
    agenda = _Agenda(tasks)
    with contextlib.closing(_Crew(workers)) as crew:
        while True:
            for worker in crew.idle():
                if (job := agenda.next_job()) is not None:
                    worker.give(job)
            if not crew.busy():
                return
            agenda.look_ahead()
            progress(*crew.done())
            for worker in crew.ready():
                job, answer = worker.hear()
                if answer is None:
                    agenda.add_death(job, worker.place, crew.replace(worker))
                elif answer[0] == "failed":
                    raise answer[1]
                elif answer[0] == "survived":
                    agenda.add_survival(job)
                else:
                    yield msgspec.msgpack.decode(answer[1], type=BuiltShard)


class _Agenda:
    """What is to be done: the shards, one after the other; before them, what deaths left to do."""

    def __init__(self, tasks: Iterable[ShardTask]) -> None:
        self._tasks = iter(tasks)
        self._ahead: deque[Job] = deque()
        self._acquitted: set[str] = set()
        """Keys of images that survived alone: the next death at them convicts."""
        self._unexplained: Counter[int] = Counter()
        """Deaths outside any image, by shard."""

    def next_job(self) -> Job | None:
        """Take a job, if there is any."""
        self.look_ahead()
        return self._ahead.popleft() if self._ahead else None

    def look_ahead(self) -> None:
        """Have a job at hand for the next worker that becomes free: a task takes time to make."""
        if not self._ahead:
            self._ahead.extend(Job(task) for task in itertools.islice(self._tasks, 1))

    def add_death(self, job: Job, place: int, exitcode: int | None) -> None:
        """Decide what to do after a worker died at the image at `place`, or at none (-1).

        Raises
        ------
        CocosegError
            If that is no use.
        """
        shard, cause = job.shard, _cause(exitcode)
        if place < 0:
            _log.warning("a worker died (%s) in shard %s; trying again", cause, shard.name)
            self._unexplained[shard.number] += 1
            if self._unexplained[shard.number] >= _UNEXPLAINED_DEATHS:
                raise CocosegError(
                    f"a worker died {_UNEXPLAINED_DEATHS} times in shard {shard.name} ({cause}; "
                    "out of memory?); what is finished is kept: run the same command again, with "
                    "fewer --workers or --samples-per-shard"
                )
            self._ahead.appendleft(job)
            return
        image = shard.images[place]
        _log.warning("a worker died (%s) at image %s (%s)", cause, image.image_id, image.file_name)
        if job.suspect is None and image.key not in self._acquitted:
            self._ahead.appendleft(Job(shard, suspect=place))
            return
        detail = f"a worker process died of it ({cause}, twice)"
        images = list(shard.images)
        images[place] = replace(image, problem="worker-died", detail=detail)
        self._ahead.appendleft(Job(replace(shard, images=tuple(images))))

    def add_survival(self, job: Job) -> None:
        """Continue with the shard of a suspect that survived alone."""
        assert job.suspect is not None
        self._acquitted.add(job.shard.images[job.suspect].key)
        self._ahead.appendleft(Job(job.shard))


def _cause(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):  # a real-time signal has no name
            return signal.Signals(-exitcode).name
    return f"exit code {exitcode}"


class _Worker:
    """One worker process and what it is at."""

    def __init__(self, context: Any, slot: int) -> None:
        self.slot = slot
        self.job: Job | None = None
        self.watched = context.RawArray("q", [-1, 0])
        """Shared memory: the place of its image in the shard, images left out so far."""
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(
            target=_work, args=(theirs, self.watched), daemon=True, name=f"prepare-{slot}"
        )
        try:
            self.process.start()
        except (EOFError, OSError) as error:  # EOFError: the fork server could not fork
            raise CocosegError(
                f"no worker process can be started ({error or 'out of processes or memory?'}); "
                "run the same command again, with fewer --workers"
            ) from error
        finally:
            theirs.close()  # the worker's copy is the only one: it ends with the worker

    @property
    def place(self) -> int:
        """Where it is, or was when it died: the place of an image, or -1."""
        return int(self.watched[0])

    def give(self, job: Job) -> None:
        """Send a job."""
        self.job = job
        with contextlib.suppress(OSError):  # it died between two jobs: no answer will tell
            self.connection.send_bytes(msgspec.msgpack.encode(job))

    def hear(self) -> tuple[Job, tuple[str, Any] | None]:
        """Return its job and the answer, which is None if it has died."""
        job = self.job
        assert job is not None
        try:
            answer: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError):  # OSError: in the middle of its answer
            return job, None
        self.job = None
        return job, answer

    def bury(self) -> int | None:
        """Wait for the end of a worker that is dying; return its exit code."""
        self.connection.close()
        self.process.join(_PATIENCE)
        self.process.kill()
        self.process.join()
        if self.job is not None and self.process.pid is not None:
            locate(self.job.shard.building).remove_half_written(pid=self.process.pid)
        exitcode: int | None = self.process.exitcode
        return exitcode


class _Crew:
    """Worker processes that are replaced when they die."""

    def __init__(self, size: int) -> None:
        self.context: Any = start_context()
        warm_up(__name__)
        self.members: list[_Worker] = []
        try:
            for slot in range(size):
                self.members.append(_Worker(self.context, slot))
        except BaseException:
            self.close()
            raise

    def idle(self) -> list[_Worker]:
        """Return the workers that have nothing to do."""
        return [worker for worker in self.members if worker.job is None]

    def busy(self) -> list[_Worker]:
        """Return the others."""
        return [worker for worker in self.members if worker.job is not None]

    def ready(self) -> list[_Worker]:
        """Wait a moment for workers that have answered or died."""
        busy = self.busy()
        heard = multiprocessing.connection.wait([w.connection for w in busy], timeout=_POLL)
        return [worker for worker in busy if worker.connection in heard]

    def done(self) -> tuple[int, int]:
        """Return the images that unfinished shards have behind them, and those left out."""
        watched = [worker.watched for worker in self.busy()]
        return sum(max(place, 0) for place, _ in watched), sum(bad for _, bad in watched)

    def replace(self, worker: _Worker) -> int | None:
        """Start a worker in the place of one that has died; return that one's exit code."""
        self.members.remove(worker)
        exitcode = worker.bury()
        self.members.append(_Worker(self.context, worker.slot))
        return exitcode

    def close(self) -> None:
        """End all workers at once; what they were at is lost."""
        for worker in self.members:
            worker.process.kill()
        while self.members:
            self.members.pop().bury()


def _work(connection: Connection, watched: Any) -> None:
    """Build what comes down the pipe until it is closed; runs in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()

    def watch(place: int, bad: int) -> None:
        watched[:] = [place, bad]

    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone, or going
        while True:
            job = msgspec.msgpack.decode(connection.recv_bytes(), type=Job)
            connection.send(_answer(job, watch))


def _answer(job: Job, watch: Callable[[int, int], None]) -> tuple[str, Any]:
    try:
        if job.suspect is None:
            built = build_shard(job.shard, watch)
            watch(-1, 0)
            return "built", msgspec.msgpack.encode(built)
        watch(job.suspect, 0)
        build_sample(job.shard.images[job.suspect], job.shard.rules)
        watch(-1, 0)
        return "survived", None
    except Exception as error:
        return "failed", _portable(error)


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
