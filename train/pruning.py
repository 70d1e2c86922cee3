"""Removal of old checkpoints beside training, so that no rank waits for it."""

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from .checkpoint import prune

log = logging.getLogger(__name__)


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="cocoseg-prune")


@dataclass(slots=True)
class Pruning:
    """Runs `prune` in the background: it reads whole checkpoints before it removes older ones.

    What fails in it is reported as a warning: a run does not depend on it.
    """

    _thread: ThreadPoolExecutor = field(default_factory=_one_thread)
    _work: Future[None] | None = None

    def start(self, run: str, keep_last: int, best_step: int | None) -> None:
        """Wait for the removal before, then begin the next one."""
        self.finish()
        self._work = self._thread.submit(lambda: prune(run, keep_last, best_step))

    def finish(self) -> None:
        """Wait for what was begun."""
        work, self._work = self._work, None
        if work is None:
            return
        try:
            work.result()
        except Exception as error:  # of the disk or of a store
            log.warning("old checkpoints could not be removed: %s", error)
