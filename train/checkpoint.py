"""Checkpoints of a run: a Hugging Face folder plus the training state, published whole.

    RUN/checkpoints/step-00000100/   config.json, model.safetensors, preprocessor_config.json,
                                     taxonomy.json, training_state.pt, digests.json
    RUN/best, RUN/last               relative links; on object stores one-line pointer files
    RUN/.lock                        while a training is at work

``digests.json`` vouches for the other files. A save goes temporary name → fsync → digests → rename
→ ``last``, and the loop goes on with ``best`` → `prune`. A kill between any two leaves nothing to
mend by hand: a run goes on from the newest checkpoint that verifies, whatever ``last`` says.
"""

import contextlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..distributed.group import Group
from ..errors import CocosegError, DataError, StoreError, StoreRefusal, first_line
from ..model.preprocess import Preprocess
from ..model.weights import PREPROCESS_NAME, STATE_NAME, TAXONOMY_NAME, save_network
from ..storage import LocalPath, Location, locate, output
from ..storage.output import held
from ..taxonomy import Taxonomy

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
_DIGESTS_NAME = "digests.json"
_REPLACED = ".replaced"  # how the name of a checkpoint ends whose successor is being renamed
_FOLDER, _FILE = re.compile(r"step-(\d{8,})"), re.compile(r"[\w.-]+")
_NEEDED = (STATE_NAME, "config.json", PREPROCESS_NAME, TAXONOMY_NAME)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint that was read back and verified."""

    folder: str
    local: str
    """A local folder with its files, for `model.weights.load_network`."""
    state: Mapping[str, Any]
    """The training state: plain values and tensors."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])


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


def checkpoint_name(step: int) -> str:
    """Return the folder name of a checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


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
                        _tidy_up(run)
                check = hold.check
        yield check


def _tidy_up(run: Location) -> None:
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


def save_checkpoint(
    run: Location,
    step: int,
    network: nn.Module,
    preprocess: Preprocess,
    taxonomy: Taxonomy,
    state: Mapping[str, Any],
) -> None:
    """Write a checkpoint under RUN, whole or not at all, and move ``last`` to it.

    Every file and folder is flushed to the disk before it gets its name.

    Parameters
    ----------
    network
        Unwrapped: the names in the files are transformers' own.
    state
        Tensors, numbers, strings and containers of them; `step` is added.

    Raises
    ------
    CocosegError
        If the disk is full or fails; earlier checkpoints are as they were.
    NotStored
        If an object store cannot be written to; a local copy is kept.
    """
    target = folder_of(run, step)
    with explained(run), target.parent.scratch_folder() as scratch:
        folder = scratch / target.name
        folder.mkdir()
        with _written_here(network):
            save_network(folder, network, preprocess, taxonomy)
        for weights in folder.glob("*.safetensors"):  # safetensors lets nobody else read them
            shutil.copymode(folder / TAXONOMY_NAME, weights)
        # Through Python: by itself, torch says "unexpected pos 704 vs 598" of a full disk.
        with open(folder / STATE_NAME, "wb") as file:
            torch.save({**state, "step": step}, file)
        digests = {path.name: locate(path).sha256() for path in sorted(folder.iterdir())}
        assert digests.keys() >= set(_NEEDED), f"not written: {set(_NEEDED) - digests.keys()}"
        (folder / _DIGESTS_NAME).write_text(json.dumps(digests, indent=1) + "\n")
        try:
            _publish(folder, target)
        except (StoreError, KeyboardInterrupt) as error:
            if not target.remote:
                raise
            kept = Path(tempfile.mkdtemp(prefix="cocoseg-kept-"))
            shutil.move(folder, kept)
            refused = isinstance(error, StoreRefusal)
            raise NotStored(str(error) or f"{target}: interrupted", str(kept), refused) from None
    point(run, "last", step)


def folder_of(run: Location, step: int) -> Location:
    """Return where the checkpoint after `step` optimizer steps is, or would be."""
    return run / CHECKPOINTS / checkpoint_name(step)


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
    target.publish_folder(folder, _DIGESTS_NAME, Path(replaced.url))
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
    """Let ``last`` and ``best`` name what a run goes on from, whatever a kill or damage left there.

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
    if _is_whole(folder):
        if pointed_step(run, "best") != named:
            point(run, "best", named)
        return True
    log.warning("%s: the best checkpoint is gone or broken; the next score is the best", folder)
    with explained(run):
        (run / "best").remove()
    return False


def pointed_step(run: Location, name: str) -> int | None:
    """Return the step that ``best`` or ``last`` names; None where there is none."""
    pointer = run / name
    if isinstance(pointer, LocalPath):
        target = os.readlink(pointer) if os.path.islink(pointer) else ""
    else:
        target = pointer.read_bytes().decode(errors="replace") if pointer.exists() else ""
    return _step_of(target.strip().rpartition("/")[2])


def _step_of(name: str) -> int | None:
    found = _FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def list_steps(run: Location) -> list[int]:
    """Return the steps of all finished checkpoints, ascending; they may be damaged since."""
    return [step for step in _folders(run) if (folder_of(run, step) / _DIGESTS_NAME).exists()]


def _folders(run: Location) -> list[int]:
    """Return the steps of all checkpoints, ascending, finished or not."""
    steps = map(_step_of, (run / CHECKPOINTS).list_folders())
    return sorted(step for step in steps if step is not None)


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
                steps = list_steps(run) if run.remote else _folders(run)
            except OSError as error:
                raise CocosegError(f"--output {run}: {error.strerror or error}") from None
    return group.gather(steps)[0]


@contextlib.contextmanager
def open_checkpoint(folder: Location) -> Iterator[Checkpoint]:
    """Read a checkpoint and check every file against its digest.

    Raises
    ------
    DataError
        If a file is missing, differs from its digest or cannot be read.
    StoreError
        If the object store does not answer.
    """
    with contextlib.ExitStack() as fetched:
        try:
            try:
                local = fetched.enter_context(folder.fetched())
            except OSError as error:
                if not folder.remote:
                    raise
                raise StoreError(
                    f"{folder}: cannot be copied to {tempfile.gettempdir()}: "
                    f"{error.strerror or error}; set TMPDIR to a folder with more room"
                ) from None
            state = _verified_state(local, folder.name)
        except StoreError:
            raise
        except CocosegError as error:
            raise DataError(f"{folder}: {error}") from None
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror or error}") from None
        yield Checkpoint(str(folder), str(local), state)


def _verified_state(local: Path, name: str, *, lazy: bool = False) -> dict[str, Any]:
    """Return the training state of a whole checkpoint; `lazy` leaves tensors on the disk."""
    for file, digest in _digests(locate(local)).items():
        if not (local / file).is_file():
            raise DataError(f"{file} is missing")
        if locate(local / file).sha256() != digest:
            raise DataError(f"{file} differs from its digest")
    try:
        state = torch.load(local / STATE_NAME, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # unpickling a hostile or broken file raises anything
        raise DataError(f"{STATE_NAME} cannot be read: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise DataError(f"{STATE_NAME} holds no training state")
    if state.get("step") != _step_of(name):
        raise DataError(f"{STATE_NAME} is of step {state.get('step')}")
    return state


def _digests(folder: Location) -> dict[str, object]:
    """Return file name → SHA-256 [hex], of at least what every checkpoint has."""
    file = folder / _DIGESTS_NAME
    if not file.exists():
        raise DataError(f"{_DIGESTS_NAME} is missing")
    try:
        digests = file.read_json()
    except DataError:
        raise DataError(f"{_DIGESTS_NAME} is damaged") from None
    if (
        not isinstance(digests, dict)
        or not digests.keys() >= set(_NEEDED)
        or not any(name.endswith(".safetensors") for name in digests)
        or not all(map(_FILE.fullmatch, digests))
    ):
        raise DataError(f"{_DIGESTS_NAME} is damaged")
    return digests


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
    for step in reversed(_folders(run)):
        folder = folder_of(run, step)
        if kept < keep_last:
            kept += _is_whole(folder)
        elif step not in spared:
            with explained(run):
                _remove(folder)


def _is_whole(folder: Location) -> bool:
    try:
        if folder.remote:
            return _digests(folder).keys() <= folder.list_files().keys()
        _verified_state(Path(folder.url), folder.name, lazy=True)
    except StoreError:
        raise
    except (OSError, CocosegError):
        return False
    return True


def _remove(folder: Location) -> None:
    """Remove a checkpoint; a kill amidst leaves no half of it under its name."""
    if folder.remote:
        (folder / _DIGESTS_NAME).remove()
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
