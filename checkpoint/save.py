"""Checkpoints are saved whole or not at all.

A save goes temporary name → fsync → digests → rename → ``last``, and the run continues with
``best`` → `prune`. A kill between any two leaves nothing to repair by hand: a run is resumed from
the newest checkpoint that verifies, whatever ``last`` says.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import StoreError, StoreRefusal
from ..model.preprocess import Preprocess
from ..storage import LocalPath, Location, locate, output
from ..taxonomy import Taxonomy
from .folder import save_network
from .layout import (
    CHECKPOINTS,
    DIGESTS_NAME,
    STATE_NAME,
    TAXONOMY_NAME,
    all_steps,
    checkpoint_name,
    folder_of,
    list_steps,
    pointed_step,
)
from .state import TrainingState
from .verified import NEEDED, is_whole

log = logging.getLogger(__name__)

_REPLACED = ".replaced"  # how the name of a checkpoint ends whose successor is being renamed


class NotStored(StoreError):
    """A checkpoint that an object store did not take within its time."""

    def __init__(self, reason: str, kept: str, refused: bool) -> None:
        super().__init__(f"{reason}; a copy of the checkpoint is kept in {kept}")
        self.reason = reason
        self.kept = kept
        """A local folder of its own."""
        self.refused = refused
        """Whether asking again does not help; see `StoreRefusal`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return NotStored, (self.reason, self.kept, self.refused)


def save_checkpoint(
    run: Location,
    network: nn.Module,
    preprocess: Preprocess,
    taxonomy: Taxonomy,
    state: TrainingState,
) -> None:
    """Write a checkpoint under RUN, whole or not at all, and move ``last`` to it.

    Every file and folder is flushed to the disk before it gets its name.

    Parameters
    ----------
    network
        Unwrapped: the names in the files are transformers' own.

    Raises
    ------
    CocosegError
        If the disk is full or fails; earlier checkpoints are as they were.
    NotStored
        If an object store cannot be written to; a local copy is kept.
    """
    target = folder_of(run, state.step)
    with explained(run), target.parent.scratch_folder() as scratch:
        folder = scratch / target.name
        folder.mkdir()
        with _written_here(network):
            save_network(folder, network, preprocess, taxonomy)
        for weights in folder.glob("*.safetensors"):  # safetensors lets nobody else read them
            shutil.copymode(folder / TAXONOMY_NAME, weights)
        # Through Python: by itself, torch says "unexpected pos 704 vs 598" of a full disk.
        with open(folder / STATE_NAME, "wb") as file:
            torch.save(state.to_dict(), file)
        digests = {path.name: locate(path).sha256() for path in sorted(folder.iterdir())}
        assert digests.keys() >= set(NEEDED), f"not written: {set(NEEDED) - digests.keys()}"
        (folder / DIGESTS_NAME).write_text(json.dumps(digests, indent=1) + "\n")
        try:
            _publish(folder, target)
        except (StoreError, KeyboardInterrupt) as error:
            if not target.remote:
                raise
            kept = Path(tempfile.mkdtemp(prefix="cocoseg-kept-"))
            shutil.move(folder, kept)
            refused = isinstance(error, StoreRefusal)
            raise NotStored(str(error) or f"{target}: interrupted", str(kept), refused) from None
    point(run, "last", state.step)


@contextlib.contextmanager
def _written_here(network: nn.Module) -> Iterator[None]:
    """Let transformers write files on this rank, whichever it is; by itself it does on rank 0."""
    model: Any = network
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del model.should_save_on_this_rank


def _publish(folder: Path, target: Location) -> None:
    """Give a checkpoint its name, which one of the same step may bear that is broken, or not."""
    replaced = target.parent / (target.name + _REPLACED)
    if not target.remote and target.exists():
        replaced.remove()
    target.publish_folder(folder, DIGESTS_NAME, Path(replaced.url))
    if replaced.exists():
        _remove(replaced)


def point(run: Location, name: str, step: int) -> None:
    """Let ``RUN/best`` or ``RUN/last`` name the checkpoint of `step`, at once or not at all.

    Raises
    ------
    CocosegError
        If it cannot be written.
    """
    target, pointer = f"{CHECKPOINTS}/{checkpoint_name(step)}", run / name
    with explained(run):
        if isinstance(pointer, LocalPath):
            pointer.publish_link(target)
        else:
            pointer.publish_bytes(f"{target}\n".encode())


def restore_pointers(run: Location, step: int, best_step: int | None) -> bool:
    """Let ``last`` and ``best`` name what a run resumes from, whatever a kill or damage left there.

    Returns
    -------
    bool
        Whether there is the best checkpoint. Where it is gone or broken, ``best`` is removed: no
        pointer leads nowhere.

    Raises
    ------
    CocosegError
        If they cannot be written.
    """
    if pointed_step(run, "last") != step:
        point(run, "last", step)
    named = pointed_step(run, "best") if best_step is None else best_step
    if named is None:
        return False
    folder = folder_of(run, named)
    if is_whole(folder):
        if pointed_step(run, "best") != named:
            point(run, "best", named)
        return True
    log.warning("%s: the best checkpoint is gone or broken; the next score is the best", folder)
    with explained(run):
        (run / "best").remove()
    return False


def prune(run: Location, keep_last: int, best_step: int | None) -> None:
    """Remove all but the newest checkpoints and the best; what a pointer names is spared, too.

    Only those count that are whole, so that nothing good goes because of newer ones that are
    broken. For that, local ones are read (1.8 GB/s); on an object store, where objects are whole or
    not there, their names are looked at.

    Raises
    ------
    CocosegError
        If one cannot be removed.
    """
    spared = {best_step, pointed_step(run, "best"), pointed_step(run, "last")}
    kept = 0
    for step in reversed(all_steps(run)):
        folder = folder_of(run, step)
        if kept < keep_last:
            kept += is_whole(folder)
        elif step not in spared:
            with explained(run):
                _remove(folder)


def tidy_up(run: Location) -> None:
    """Remove what is half-written, and finish a replacement that was cut short."""
    parent = run / CHECKPOINTS
    for name in parent.list_folders():
        target, ending, rest = name.partition(_REPLACED)
        if ending and not rest and not (parent / target).exists():
            os.replace((parent / name).url, (parent / target).url)
        elif ending and not rest:
            _remove(parent / name)
    run.remove_half_written()
    parent.remove_half_written()


def _remove(folder: Location) -> None:
    """Remove a checkpoint; a kill amidst leaves no half of it under its name."""
    if folder.remote:
        (folder / DIGESTS_NAME).remove()
        folder.remove()
        return
    with folder.parent.scratch_folder() as scratch:
        os.replace(folder.url, scratch / "removed")


@contextlib.contextmanager
def explained(run: Location) -> Iterator[None]:
    """Say in plain words why something of a run could not be written."""

    def kept() -> str:
        steps = list_steps(run)
        if not steps:
            return "there is no checkpoint yet"
        return f"the newest checkpoint, {checkpoint_name(steps[-1])}, is kept"

    with output.explained(run, kept):
        yield
