"""Outputs that appear whole or not at all, and never in place of something else by accident."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ... import storage
from ...errors import ConfigError
from .config import ExportConfig


def wanted_output(config: ExportConfig, suffix: str = "") -> str:
    """Return ``export.output``.

    Raises
    ------
    ConfigError
        If it, or the checkpoint, is not given, or its name ends otherwise.
    """
    if config.checkpoint is None:
        raise ConfigError("--checkpoint: give a run, a checkpoint folder or a Hugging Face name")
    what = f"a file, NAME{suffix}" if suffix else "a folder"
    if config.output is None:
        raise ConfigError(f"--output: give {what}")
    output = config.output.rstrip("/")
    if suffix and (not output.endswith(suffix) or storage.is_dir(output)):
        raise ConfigError(f"--output {config.output}: give {what}")
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
    """Give a private local folder from which `output` can be published by renaming."""
    parent = os.path.dirname(os.path.abspath(storage.join(output)))
    with storage.scratch_folder(output if storage.is_remote(output) else parent) as scratch:
        yield scratch


def publish_folder(folder: Path, output: str, last: str) -> None:
    """Give a finished folder its name; one that bears it is there until then.

    Parameters
    ----------
    folder
        In one of `scratch_beside`.
    last
        The file that arrives after all others, where the store has no folders.
    """
    if storage.is_remote(output):
        storage.remove(output)
        storage.publish_folder(folder, output, last)
        return
    target, aside = storage.join(output), folder.with_name("replaced")
    if os.path.lexists(target):
        os.replace(target, aside)
    try:
        storage.publish_folder(folder, target, last)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(target):
            os.replace(aside, target)
        raise
