"""Removal of old checkpoints beside training, so that no rank waits for it."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ..checkpoint.save import prune
from ..storage import Location

log = logging.getLogger(__name__)


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="cocoseg-prune")


@dataclass(slots=True)
class Pruning:
    """Runs `prune` in the background: it reads whole checkpoints before it removes older ones.

    What fails in it is reported as a warning: a run does not depend on it.
    """

    _thread: ThreadPoolExecutor = field(default_factory=_one_thread)
    _works: list[Future[None]] = field(default_factory=list)

    def start(self, run: Location, keep_last: int, best_step: int | None) -> None:
        """Begin a removal after the one that is in progress; those that wait are replaced by it."""
        self._works = [work for work in self._works if not (work.done() or work.cancel())]
        self._works.append(self._thread.submit(_prune, run, keep_last, best_step))

    def finish(self) -> None:
        """Wait for what was begun."""
        for work in self._works:
            work.result()
        self._works.clear()


def _prune(run: Location, keep_last: int, best_step: int | None) -> None:
    try:
        prune(run, keep_last, best_step)
    except Exception as error:  # of the disk or of a store
        log.warning("old checkpoints could not be removed: %s", error)
