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
import errno
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from .. import storage
from ..distributed.group import Group
from ..errors import CocosegError, ConfigError, DataError, StoreError, first_line
from ..model.preprocess import Preprocess
from ..model.weights import PREPROCESS_NAME, TAXONOMY_NAME, save_network
from ..taxonomy import Taxonomy

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
_STATE_NAME = "training_state.pt"
_DIGESTS_NAME = "digests.json"
_LOCK_NAME = ".lock"
_REPLACED = ".replaced"  # how the name of a checkpoint ends whose successor is being renamed
_FOLDER, _FILE = re.compile(r"step-(\d{8,})"), re.compile(r"[\w.-]+")
_NEEDED = (_STATE_NAME, "config.json", PREPROCESS_NAME, TAXONOMY_NAME)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SAYS_FULL = "No space left on device"  # safetensors keeps the text alone


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

    def __init__(self, reason: str, kept: Path) -> None:
        super().__init__(f"{reason}; a copy of the checkpoint is kept in {kept}")
        self.kept = kept
        """A local folder of its own."""


def checkpoint_name(step: int) -> str:
    """Return the folder name of a checkpoint after `step` optimizer steps."""
    return f"step-{step:08d}"


@contextlib.contextmanager
def run_lock(run: str, group: Group) -> Iterator[None]:
    """Keep a second training out of a local run, and tidy up after one that was killed.

    Rank 0 holds the lock; all processes call it together. Object stores have none; on a file system
    without locks, nothing is tidied up either.

    Raises
    ------
    ConfigError
        On every rank, if another training is at work there.
    CocosegError
        On every rank, if the folder cannot be written to.
    """
    path = storage.join(run, _LOCK_NAME)
    with contextlib.ExitStack() as held:
        with group.together():
            if group.leads and not storage.is_remote(run):
                try:
                    if held.enter_context(storage.exclusive(path)):
                        _tidy_up(run)
                    held.callback(_unlink, path)
                except BlockingIOError:
                    raise ConfigError(
                        f"--output {run}: a training is at work in it; wait for it, or choose "
                        "another folder"
                    ) from None
                except OSError as error:
                    raise CocosegError(f"--output {run}: {_reason(error)}") from None
        yield


def _tidy_up(run: str) -> None:
    """Remove what is half-written, and finish a replacement that was cut short."""
    parent = storage.join(run, CHECKPOINTS)
    for name in storage.list_folders(parent):
        target, ending, rest = name.partition(_REPLACED)
        if ending and not rest and not storage.exists(storage.join(parent, target)):
            os.replace(storage.join(parent, name), storage.join(parent, target))
        elif ending and not rest:
            _remove(storage.join(parent, name), parent)
    storage.remove_scratch(run)
    storage.remove_scratch(parent)


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def save_checkpoint(
    run: str,
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
    parent = storage.join(run, CHECKPOINTS)
    target = storage.join(parent, checkpoint_name(step))
    with explained(run, target), storage.scratch_folder(parent) as scratch:
        folder = scratch / checkpoint_name(step)
        folder.mkdir()
        with _written_here(network):
            save_network(folder, network, preprocess, taxonomy)
        for weights in folder.glob("*.safetensors"):  # safetensors lets nobody else read them
            shutil.copymode(folder / TAXONOMY_NAME, weights)
        # Through Python: by itself, torch says "unexpected pos 704 vs 598" of a full disk.
        with open(folder / _STATE_NAME, "wb") as file:
            torch.save({**state, "step": step}, file)
        digests = {path.name: storage.sha256(str(path)) for path in sorted(folder.iterdir())}
        assert digests.keys() >= set(_NEEDED), f"not written: {set(_NEEDED) - digests.keys()}"
        (folder / _DIGESTS_NAME).write_text(json.dumps(digests, indent=1) + "\n")
        try:
            _publish(folder, target)
        except StoreError as error:
            kept = Path(tempfile.mkdtemp(prefix="cocoseg-kept-"))
            shutil.move(folder, kept)
            raise NotStored(str(error), kept) from None
    point(run, "last", step)


@contextlib.contextmanager
def _written_here(network: nn.Module) -> Iterator[None]:
    """Let transformers write files on this rank, whichever it is; by itself it does on rank 0."""
    model: Any = network
    model.should_save_on_this_rank = lambda is_main_process: is_main_process
    try:
        yield
    finally:
        del model.should_save_on_this_rank


def _publish(folder: Path, target: str) -> None:
    """Give a checkpoint its name, which one of the same step may bear that is broken, or not."""
    replaced = storage.join(target) + _REPLACED
    local = not storage.is_remote(target)
    if local and os.path.lexists(storage.join(target)):
        storage.remove(replaced)
    storage.replace_folder(folder, target, _DIGESTS_NAME, replaced)
    if local and os.path.lexists(replaced):
        _remove(replaced, os.path.dirname(replaced))


def point(run: str, name: str, step: int) -> None:
    """Let ``RUN/best`` or ``RUN/last`` name the checkpoint of `step`, at once or not at all.

    Raises
    ------
    CocosegError
        If it cannot be written.
    """
    target = f"{CHECKPOINTS}/{checkpoint_name(step)}"
    url = storage.join(run, name)
    with explained(run, url):
        if storage.is_remote(run):
            storage.publish_bytes(url, f"{target}\n".encode())
            return
        link = Path(url)
        temporary = link.with_name(f".tmp-{os.getpid()}-{name}")
        try:
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(target)
            temporary.replace(link)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        storage.sync_folder(link.parent)


def restore_pointers(run: str, step: int, best_step: int | None) -> bool:
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
    folder = storage.join(run, CHECKPOINTS, checkpoint_name(named))
    if _is_whole(folder):
        if pointed_step(run, "best") != named:
            point(run, "best", named)
        return True
    log.warning("%s: the best checkpoint is gone or broken; the next score is the best", folder)
    url = storage.join(run, "best")
    with explained(run, url):
        storage.remove(url)
    return False


def pointed_step(run: str, name: str) -> int | None:
    """Return the step that ``best`` or ``last`` names; None where there is none."""
    link = storage.join(run, name)
    if storage.is_remote(run):
        target = storage.read_bytes(link).decode(errors="replace") if storage.exists(link) else ""
    else:
        target = os.readlink(link) if os.path.islink(link) else ""
    return _step_of(target.strip().rpartition("/")[2])


def _step_of(name: str) -> int | None:
    found = _FOLDER.fullmatch(name)
    return int(found[1]) if found else None


def list_steps(run: str) -> list[int]:
    """Return the steps of all finished checkpoints, ascending; they may be damaged since."""
    parent = storage.join(run, CHECKPOINTS)
    return [
        step
        for step in _folders(run)
        if storage.exists(storage.join(parent, checkpoint_name(step), _DIGESTS_NAME))
    ]


def _folders(run: str) -> list[int]:
    """Return the steps of all checkpoints, ascending, finished or not."""
    steps = map(_step_of, storage.list_folders(storage.join(run, CHECKPOINTS)))
    return sorted(step for step in steps if step is not None)


@contextlib.contextmanager
def agree_on_newest(run: str, group: Group) -> Iterator[Checkpoint | None]:
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
        folder = storage.join(run, CHECKPOINTS, checkpoint_name(step))
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


def _agree_on_steps(run: str, group: Group) -> list[int]:
    """Return the steps of rank 0's checkpoints on every process, ascending.

    A folder on an object store that has no digests is none: its upload, or its removal, was cut
    short. On a local disk both are done by renaming, and it was damaged.
    """
    steps: list[int] = []
    with group.together():
        if group.leads:
            try:
                steps = list_steps(run) if storage.is_remote(run) else _folders(run)
            except OSError as error:
                raise CocosegError(f"--output {run}: {_reason(error)}") from None
    return group.gather(steps)[0]


@contextlib.contextmanager
def open_checkpoint(folder: str) -> Iterator[Checkpoint]:
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
            local = fetched.enter_context(storage.fetched_folder(folder))
            state = _verified_state(local, folder)
        except StoreError:
            raise
        except CocosegError as error:
            raise DataError(f"{folder}: {error}") from None
        except OSError as error:
            raise DataError(f"{folder}: {_reason(error)}") from None
        yield Checkpoint(folder, str(local), state)


def _verified_state(local: Path, folder: str, *, lazy: bool = False) -> dict[str, Any]:
    """Return the training state of a whole checkpoint; `lazy` leaves tensors on the disk."""
    for name, digest in _digests(str(local)).items():
        if not (local / name).is_file():
            raise DataError(f"{name} is missing")
        if storage.sha256(str(local / name)) != digest:
            raise DataError(f"{name} differs from its digest")
    try:
        state = torch.load(local / _STATE_NAME, map_location="cpu", weights_only=True, mmap=lazy)
    except Exception as error:  # unpickling a hostile or broken file raises anything
        raise DataError(f"{_STATE_NAME} cannot be read: {first_line(error)}") from None
    if not isinstance(state, dict):
        raise DataError(f"{_STATE_NAME} holds no training state")
    if state.get("step") != _step_of(folder.rstrip("/").rpartition("/")[2]):
        raise DataError(f"{_STATE_NAME} is of step {state.get('step')}")
    return state


def _digests(folder: str) -> dict[str, object]:
    """Return file name → SHA-256 [hex], of at least what every checkpoint has."""
    url = storage.join(folder, _DIGESTS_NAME)
    if not storage.exists(url):
        raise DataError(f"{_DIGESTS_NAME} is missing")
    try:
        digests = json.loads(storage.read_bytes(url))
    except (ValueError, RecursionError):
        raise DataError(f"{_DIGESTS_NAME} is damaged") from None
    if (
        not isinstance(digests, dict)
        or not digests.keys() >= set(_NEEDED)
        or not any(name.endswith(".safetensors") for name in digests)
        or not all(map(_FILE.fullmatch, digests))
    ):
        raise DataError(f"{_DIGESTS_NAME} is damaged")
    return digests


def prune(run: str, keep_last: int, best_step: int | None) -> None:
    """Remove all but the newest checkpoints and the best; what a pointer names is spared, too.

    Only those count that are whole, so that nothing good goes because of newer ones that are
    broken. For that, local ones are read (1.8 GB/s); on an object store, where objects are whole or
    not there, their names are looked at.

    Raises
    ------
    CocosegError
        If one cannot be removed.
    """
    parent = storage.join(run, CHECKPOINTS)
    spared = {best_step, pointed_step(run, "best"), pointed_step(run, "last")}
    kept = 0
    for step in reversed(_folders(run)):
        folder = storage.join(parent, checkpoint_name(step))
        if kept < keep_last:
            kept += _is_whole(folder)
        elif step not in spared:
            with explained(run, folder):
                _remove(folder, parent)


def _is_whole(folder: str) -> bool:
    try:
        if storage.is_remote(folder):
            return _digests(folder).keys() <= storage.list_files(folder).keys()
        _verified_state(Path(storage.join(folder)), folder, lazy=True)
    except StoreError:
        raise
    except (OSError, CocosegError):
        return False
    return True


def _remove(folder: str, parent: str) -> None:
    """Remove a checkpoint; a kill amidst leaves no half of it under its name."""
    if storage.is_remote(folder):
        storage.remove(folder)
        return
    with storage.scratch_folder(parent) as scratch:
        os.replace(storage.join(folder), scratch / "removed")


@contextlib.contextmanager
def explained(run: str, url: str) -> Iterator[None]:
    """Say in plain words why something of a run could not be written."""
    try:
        yield
    except CocosegError:
        raise
    except Exception as error:  # each object store's driver has its own kinds
        disk = _disk_error(error)
        if not (disk or isinstance(error, SafetensorError) or storage.is_remote(run)):
            raise
        kept = "there is no checkpoint yet"
        with contextlib.suppress(OSError, CocosegError):
            if steps := list_steps(run):
                kept = f"the newest checkpoint, {checkpoint_name(steps[-1])}, is kept"
        full = (disk is not None and disk.errno in _FULL) or _SAYS_FULL in str(error)
        mend = "make room" if full else "mend that"
        raise CocosegError(
            f"{url}: cannot be written: {_reason(disk or error)}; {kept}: {mend}, then run the "
            "same command again to go on"
        ) from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """Return what the disk said; torch raises its own error on top of it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _reason(error: BaseException) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
