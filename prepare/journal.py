"""What makes a build safe to interrupt: the folder ``.building/`` below the output.

It holds what is being built (``plan.json``), a record of each finished shard, scratch folders, and
a lock. It is there from before the first shard until after the manifest.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from .. import storage
from ..errors import ConfigError
from ..shards.manifest import INDEX_NAMES, MANIFEST_NAME, Manifest, read_manifest
from .shard import BuiltShard

BUILDING = ".building"
REPORT, QUARANTINE, CONFIG = "prepare-report.html", "quarantine.jsonl", "config.yaml"
_PLAN, _LOCK = "plan.json", "lock"
_OURS = (MANIFEST_NAME, *INDEX_NAMES, REPORT, QUARANTINE, CONFIG)


def building_folder(output: str) -> str:
    """Return where records, scratch files and the lock of a build lie."""
    return storage.join(output, BUILDING)


@contextlib.contextmanager
def locked(output: str) -> Iterator[None]:
    """Keep a second prepare out of a local output.

    Raises
    ------
    ConfigError
        If another process is at work there.
    """
    if storage.is_remote(output):
        yield
        return
    folder = building_folder(output)
    storage.make_folder(folder)
    path = storage.join(folder, _LOCK)
    try:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(
                    f"--output {output}: another 'cocoseg prepare' is at work there; wait for it"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield
    finally:
        if os.path.isdir(folder) and os.listdir(folder) == [_LOCK]:  # nothing was begun, or is left
            with contextlib.suppress(OSError):
                os.unlink(path)
                os.rmdir(folder)


def finished(output: str, folders: Sequence[str], draft: Mapping[str, Any]) -> list[Manifest]:
    """Return the manifests of a complete output, or nothing if there is work to do.

    Raises
    ------
    ConfigError
        If it is complete but was made of other inputs or settings.
    """
    there = [folder for folder in folders if storage.exists(storage.join(folder, MANIFEST_NAME))]
    manifests = [read_manifest(folder) for folder in there]
    for folder, manifest in zip(there, manifests, strict=True):
        said = {name: msgspec.to_builtins(getattr(manifest, name)) for name in draft}
        _refuse_difference(folder, "is complete, but was made from", said, draft)
    return manifests if len(there) == len(folders) else []


def begin(output: str, folders: Sequence[str], draft: Mapping[str, Any], overwrite: bool) -> None:
    """Start a build, or find the same one unfinished.

    Raises
    ------
    ConfigError
        If the output holds an unfinished build of something else, or tars of unknown origin.
    """
    folder = building_folder(output)
    plan_url = storage.join(folder, _PLAN)
    there = json.loads(storage.read_bytes(plan_url)) if storage.exists(plan_url) else None
    if overwrite and there != _plain(draft):
        _clear(output, folders)
    elif there is not None:
        _refuse_difference(output, "holds an unfinished build of", there, draft)
        for name in storage.list_folders(folder):
            storage.remove(storage.join(folder, name))  # the scratch of a killed run
        return
    for place in dict.fromkeys((output, *folders)):
        tars = [name for name in storage.list_files(place) if name.endswith(".tar")]
        if tars:
            raise ConfigError(
                f"--output {place}: holds {tars[0]} of unknown origin; choose an empty folder"
            )
    storage.make_folder(folder)
    storage.publish_bytes(plan_url, json.dumps(draft).encode())


def _plain(draft: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(draft))


def _clear(output: str, folders: Sequence[str]) -> None:
    """Remove what an earlier build wrote, and nothing else; the manifest goes first."""
    building = building_folder(output)
    unfinished = storage.exists(storage.join(building, _PLAN))
    for folder in dict.fromkeys((output, *folders)):
        names = storage.list_files(folder)
        if MANIFEST_NAME in names or unfinished:
            shards = [name for name in names if name.startswith("shard-") and name[-4:] == ".tar"]
            for name in (*_OURS, *shards):
                if name in names:
                    storage.remove(storage.join(folder, name))
    for name in (*storage.list_files(building), *storage.list_folders(building)):
        if name != _LOCK:
            storage.remove(storage.join(building, name))


def kept_shards(output: str, shards: Sequence[tuple[str, str]]) -> dict[int, BuiltShard]:
    """Return the shards that an earlier run finished and whose bytes are still what it recorded.

    Parameters
    ----------
    shards
        (URL, name of the record) by number.
    """
    folder = building_folder(output)
    records = storage.list_files(folder)
    kept = {}
    for number, (url, record) in enumerate(shards):
        if record not in records:
            continue
        built = msgspec.msgpack.decode(
            storage.read_bytes(storage.join(folder, record)), type=BuiltShard
        )
        if storage.exists(url) and storage.sha256(url) == built.sha256:
            kept[number] = built
    return kept


def end(output: str) -> None:
    """Remove the journal of a complete build."""
    storage.remove(building_folder(output))


def _refuse_difference(
    output: str, what: str, there: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
    # Versions are recorded, not compared: a finished data set outlives an upgrade.
    old, new = _flat({**there, "versions": {}}), _flat({**here, "versions": {}})
    changed = [
        f"  {key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if changed:
        more = f"\n  … and {len(changed) - 8} more" if len(changed) > 8 else ""
        raise ConfigError(
            f"--output {output}: {what} other inputs or settings:\n"
            + "\n".join(changed[:8])
            + more
            + "\nChoose another --output, or --overwrite that one."
        )


def _flat(content: object, prefix: str = "") -> dict[str, object]:
    if isinstance(content, Mapping):
        items: Any = content.items()
    elif isinstance(content, (list, tuple)):
        items = enumerate(content)
    else:
        return {prefix: content}
    return {
        key: leaf
        for name, value in items
        for key, leaf in _flat(value, f"{prefix}.{name}" if prefix else str(name)).items()
    }
