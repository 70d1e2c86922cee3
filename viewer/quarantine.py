"""Images that ``cocoseg prepare`` left out, and why."""

import json
from collections.abc import Sequence
from typing import Any

from ..errors import CocosegError, ConfigError
from ..photo import MAX_BYTES
from ..storage import locate
from .sources import PictureFolder

_FILE = "quarantine.jsonl"


def read_quarantine(folders: Sequence[str]) -> list[dict[str, Any]]:
    """Return the entries of all shards' ``quarantine.jsonl``."""
    found = []
    for folder in folders:
        try:
            content = (locate(folder) / _FILE).read_bytes()
        except ConfigError:  # nothing was left out
            continue
        for line in content.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
    return found


def read_left_out(file_name: str, folders: Sequence[PictureFolder]) -> bytes:
    """Return the file of an image that was left out, from the first folder that has it.

    Raises
    ------
    ConfigError
        If none has it.
    """
    for folder in folders:
        for name in (file_name, file_name.rsplit("/", 1)[-1]):
            try:
                return folder.read(name, MAX_BYTES)
            except CocosegError:  # no such file there, or no plain name
                continue
    raise ConfigError(
        f"{file_name}: in no folder that is shown; add the folder of its images: "
        "cocoseg view … IMAGES"
    )
