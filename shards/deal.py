"""Whole shards of another program, dealt to splits: folders with hard links to the same files."""

import errno
import os
from collections.abc import Collection, Mapping
from hashlib import sha256

from ..errors import ConfigError
from ..shards.manifest import INDEX_NAMES, MANIFEST_NAME
from ..storage import LocalPath, Location

_WITHOUT_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSYS}


def deal_shards(names: Collection[str], fractions: Mapping[str, float]) -> dict[str, list[str]]:
    """Deal shards to splits by a hash of their names; each split gets one at least.

    Parameters
    ----------
    fractions
        Split → share of the shards; see `parse_split`.

    Returns
    -------
    dict
        Split → names, sorted.

    Raises
    ------
    ConfigError
        If there are fewer shards than splits.
    """
    if len(names) < len(fractions):
        raise ConfigError(
            f"--split: whole shards are dealt, and {len(names)} cannot be dealt to "
            f"{len(fractions)} splits; write smaller shards, or split where they are written"
        )
    ordered = sorted(names, key=lambda name: sha256(name.encode()).digest())
    dealt: dict[str, list[str]] = {}
    first, share = 0, 0.0
    for number, (split, fraction) in enumerate(fractions.items(), 1):
        share += fraction
        room = len(ordered) - (len(fractions) - number)  # one is left for each that follows
        end = min(max(round(share * len(ordered)), first + 1), room)
        dealt[split] = sorted(ordered[first:end])
        first = end
    return dealt


def refuse_foreign_files(folder: Location, splits: Collection[str]) -> None:
    """Make sure that the folders of the splits hold nothing but what an earlier call put there.

    Raises
    ------
    ConfigError
        If SHARDS is in an object store, a folder holds anything else, or there are other splits.
    """
    if not isinstance(folder, LocalPath):
        raise ConfigError(
            f"{folder}: --split needs a local folder; in an object store, copy the shards to one "
            "folder per split and index each"
        )
    for name in folder.list_folders():
        if name not in splits and (folder / name / MANIFEST_NAME).exists():
            raise ConfigError(f"{folder / name}: holds another split; remove it, or name it too")
    for split in splits:
        below = folder / split
        for name in (*below.list_files(), *below.list_folders()):
            if name in (MANIFEST_NAME, *INDEX_NAMES) or _same_file(folder / name, below / name):
                continue
            raise ConfigError(
                f"{below}: holds {name}, which 'cocoseg index' did not put there; remove it, or "
                "give the split another name"
            )


def link_shards(folder: Location, split: str, names: Collection[str]) -> None:
    """Let the folder of a split hold these shards, as hard links: no byte is copied.

    Raises
    ------
    ConfigError
        If the file system has no hard links.
    """
    assert isinstance(folder, LocalPath)
    below = folder / split
    below.make_folder()
    for name in names:
        try:
            (below / name).publish_hard_link(folder / name)
        except OSError as error:
            if error.errno not in _WITHOUT_LINKS:
                raise
            raise ConfigError(
                f"{below}: hard links cannot be made here ({os.strerror(error.errno or 0)}); move "
                "the shards to one folder per split and index each"
            ) from None


def unlink_others(folder: Location, split: str, names: Collection[str]) -> None:
    """Remove the links that an earlier call put there and this one did not."""
    below = folder / split
    for name in below.list_files():
        if name.endswith(".tar") and name not in names:
            (below / name).remove()


def _same_file(one: LocalPath, other: LocalPath) -> bool:
    return one.is_file() and other.is_file() and os.path.samefile(one, other)
