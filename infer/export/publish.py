"""Outputs that appear whole or not at all, and never in place of something else by accident."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ...errors import ConfigError
from ...storage import LocalPath, Location, locate
from ...storage.local import is_half_written, remove_unlocked
from ...storage.location import LOCK
from ...storage.lock import exclusive
from ...storage.output import explained
from .config import ExportConfig


def wanted_output(config: ExportConfig, suffix: str = "") -> Location:
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
    output = locate(config.output)
    if suffix and (not output.name.endswith(suffix) or output.is_dir()):
        raise ConfigError(f"--output {config.output}: give {what}")
    if isinstance(output, LocalPath):
        output = LocalPath(os.path.realpath(output))  # a link stays: what it names is written
        if output.url == os.getcwd():
            raise ConfigError(f"--output {output}: is the working folder; give one below it")
    return output


def refuse_other(output: Location, what: str, *, overwrite: bool) -> None:
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
def scratch_beside(output: Location) -> Iterator[Path]:
    """Give a private local folder from which `output` can be published by renaming.

    Those that killed exports left there are removed.

    Raises
    ------
    CocosegError
        If something cannot be written.
    """
    with explained(output, lambda: "nothing is changed there"):
        if isinstance(output, LocalPath):
            _remove_abandoned(output.parent)
        with (
            output.parent.scratch_folder() as scratch,
            exclusive(str(scratch / LOCK)),
        ):
            yield scratch


def _remove_abandoned(parent: LocalPath) -> None:
    for name in filter(is_half_written, parent.list_folders()):
        if (parent / name / LOCK).is_file():  # else it is not an export's
            remove_unlocked(parent / name)
