"""Lock a run for one training command, and let all its ranks resume from the same checkpoint."""

import contextlib
import logging
from collections.abc import Callable, Iterator

from ..checkpoint.layout import all_steps, folder_of, list_steps
from ..checkpoint.save import explained, tidy_up
from ..checkpoint.verified import Checkpoint, open_checkpoint
from ..distributed.group import Group
from ..errors import CocosegError, DataError
from ..storage import Location
from ..storage.output import held

log = logging.getLogger(__name__)


@contextlib.contextmanager
def run_lock(run: Location, group: Group) -> Iterator[Callable[[], None]]:
    """Keep a second training out of a run, and tidy up after one that was killed.

    Rank 0 holds the lock; all processes call it together.

    Yields
    ------
    callable
        `Hold.check`, for rank 0.

    Raises
    ------
    ConfigError
        On every rank, if another training is at work there.
    CocosegError
        On every rank, if the folder cannot be written to.
    """
    check: Callable[[], None] = lambda: None  # noqa: E731
    with contextlib.ExitStack() as stack:
        with group.together():
            if group.leads:
                with explained(run):
                    hold = stack.enter_context(held(run, "cocoseg train"))
                    if hold.alone:
                        tidy_up(run)
                check = hold.check
        yield check


@contextlib.contextmanager
def agree_on_newest(run: Location, group: Group) -> Iterator[Checkpoint | None]:
    """Give every process the same checkpoint: the newest of rank 0's that all of them can read.

    What is passed over is logged by rank 0, with what is wrong; it stays where it is. All processes
    call it together. Copies of files on an object store are removed at the end of the context: load
    the network within.

    Yields
    ------
    Checkpoint or None
        None where there is no checkpoint.

    Raises
    ------
    DataError
        On every rank, if there are checkpoints, but none that verifies.
    StoreError
        On every rank, if an object store does not answer one of them.
    """
    problems = []
    for step in reversed(_agree_on_steps(run, group)):
        folder = folder_of(run, step)
        with contextlib.ExitStack() as opened:
            checkpoint, problem = None, ""
            with group.together():
                try:
                    checkpoint = opened.enter_context(open_checkpoint(folder))
                except DataError as error:
                    problem = str(error) + (f" (rank {group.rank})" if group.rank else "")
            told = next((text for text in group.gather(problem) if text), None)
            if told is None:
                yield checkpoint
                return
        problems.append(told)
        if group.leads:
            log.warning("checkpoint passed over: %s", told)
    if problems:
        none_whole = DataError(
            f"--output {run}: no checkpoint of the run is whole:\n  "
            + "\n  ".join(problems)
            + "\nStart again in another folder, or remove this one."
        )
        group.stop(none_whole)
    yield None


def _agree_on_steps(run: Location, group: Group) -> list[int]:
    """Return the steps of rank 0's checkpoints on every process, ascending.

    A folder on an object store that has no digests is none: its upload, or its removal, was cut
    short. On a local disk both are done by renaming, and it was damaged.
    """
    steps: list[int] = []
    with group.together():
        if group.leads:
            try:
                steps = list_steps(run) if run.remote else all_steps(run)
            except OSError as error:
                raise CocosegError(f"--output {run}: {error.strerror or error}") from None
    return group.gather(steps)[0]
