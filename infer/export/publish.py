"""Outputs that appear whole or not at all, and never in place of something else by accident."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ... import storage
from ...errors import ConfigError
from .config import ExportConfig

_LOCK_NAME = ".export.lock"


def wanted_output(config: ExportConfig, suffix: str = "") -> str:
    """Return ``export.output``; a local one absolute, links followed.

    Raises
    ------
    ConfigError
        If it, or the checkpoint, is not given, or its name ends otherwise, or it is the working
        folder.
    """
    if config.checkpoint is None:
        raise ConfigError("--checkpoint: give a run, a checkpoint folder or a Hugging Face name")
    what = f"a file, NAME{suffix}" if suffix else "a folder"
    if config.output is None:
        raise ConfigError(f"--output: give {what}")
    output = config.output.rstrip("/")
    if suffix and (not output.endswith(suffix) or storage.is_dir(output)):
        raise ConfigError(f"--output {config.output}: give {what}")
    if storage.is_remote(output):
        return output
    output = os.path.realpath(storage.join(output))  # a link stays: what it names is written
    if output == os.getcwd():
        raise ConfigError(f"--output {config.output}: is the working folder; give one below it")
    return output


def refuse_other(output: str, what: str, *, overwrite: bool) -> None:
    """Refuse to replace an output that is there, unless `overwrite`.

    Raises
    ------
    ConfigError
        Says what is there.
    """
    if not overwrite:
        raise ConfigError(
            f"--output {output}: is there already, {what}; choose another name, or add --overwrite"
        )


@contextlib.contextmanager
def scratch_beside(output: str) -> Iterator[Path]:
    """Give a private local folder from which `output` can be published by renaming.

    Those that killed exports left there are removed.
    """
    parent = os.path.dirname(os.path.abspath(storage.join(output)))
    if storage.is_remote(output):
        parent = output
    else:
        _remove_abandoned(parent)
    with (
        storage.scratch_folder(parent) as scratch,
        storage.exclusive(str(scratch / _LOCK_NAME)),
    ):
        yield scratch


def _remove_abandoned(parent: str) -> None:
    for name in filter(storage.is_scratch, storage.list_folders(parent)):
        lock = storage.join(parent, name, _LOCK_NAME)
        if storage.is_file(lock):  # else it is no export's
            with contextlib.suppress(BlockingIOError), storage.exclusive(lock) as alone:
                if alone:
                    storage.remove(storage.join(parent, name))
