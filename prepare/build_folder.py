"""What makes a build safe to interrupt: the folder ``.building/`` below the output.

It holds what is being built (``plan.json``), a record of each finished shard, and scratch folders.
It is there from before the first shard until after the last manifest. Replacing a complete
build begins by making it an unfinished one again, so that a kill in between is nothing special.
"""

import contextlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ..errors import CocosegError, ConfigError, DataError, first_line
from ..shards.config import parse_split
from ..shards.manifest import INDEX_NAMES, MANIFEST_NAME, Manifest, read_manifest
from ..storage import Location
from ..storage.output import UNFINISHED
from .shard import BuiltShard

log = logging.getLogger(__name__)

REPORT, QUARANTINE, CONFIG = "prepare-report.html", "quarantine.jsonl", "config.yaml"
_PLAN, _RECORD = "plan.json", ".record"
_OURS = (MANIFEST_NAME, *INDEX_NAMES, REPORT, QUARANTINE, CONFIG)  # the manifest is removed first
_SHARD = re.compile(r"shard-\d{6,}\.tar")

_PLANNED = {"taxonomy", "settings", "sources", "versions"}
_UNKNOWN: dict[str, Any] = {"settings": {}}
"""The plan of a build of which nothing is known but its files."""
Draft = Mapping[str, Any]
"""What a manifest says of inputs and settings; it tells one build from another."""


def building_folder(output: Location) -> Location:
    """Return where records and scratch files of a build lie."""
    return output / UNFINISHED


def record_name(split: str, shard: str) -> str:
    """Return the file name of the record of a shard."""
    return f"{split}-{shard}{_RECORD}".lstrip("-")


def finished(output: Location, folders: Sequence[Location], draft: Draft) -> list[Manifest]:
    """Return the manifests of a complete output, or nothing if there is work to do.

    Raises
    ------
    ConfigError
        If it is complete but was made of other inputs or settings.
    """
    try:
        there = _complete(output, folders)
    except DataError as error:
        raise DataError(f"{error}; --overwrite prepares it again") from None
    for folder, manifest in there.items():
        # Versions are recorded, not compared: a finished data set outlives an upgrade.
        said = {**_said(manifest), "versions": draft["versions"]}
        _refuse_difference(folder, "is complete, but was made from", said, draft)
    if there.keys() != set(folders):
        return []
    for folder, manifest in there.items():
        present = folder.list_files()
        for shard in manifest.shards:
            if present.get(shard.name) != shard.bytes:
                raise ConfigError(
                    f"--output {folder}: is complete, but {shard.name} is missing or was changed "
                    "since (see 'cocoseg verify'): --overwrite builds it again"
                )
    return [there[folder] for folder in folders]


def _complete(output: Location, folders: Sequence[Location]) -> dict[Location, Manifest]:
    """Return the complete folders of an output, also those of splits that are no longer asked for.

    Folders below the output that were prepared by themselves are none of its splits.
    """
    below = [output / name for name in output.list_folders()]
    found = {}
    for folder in dict.fromkeys((output, *folders, *below)):
        if not (folder / MANIFEST_NAME).exists():
            continue
        if folder in (output, *folders):
            found[folder] = read_manifest(folder)
        else:
            with contextlib.suppress(CocosegError):
                manifest = read_manifest(folder)
                if folder.name in _splits(_said(manifest)):
                    found[folder] = manifest
    return found


def _said(manifest: Manifest) -> Draft:
    return {name: msgspec.to_builtins(getattr(manifest, name)) for name in sorted(_PLANNED)}


def _splits(draft: Draft) -> tuple[str, ...]:
    split = draft["settings"].get("split")
    return tuple(parse_split(split)) if split else ()


def begin(output: Location, folders: Sequence[Location], draft: Draft, overwrite: bool) -> None:
    """Start a build, or find the same one unfinished.

    An unfinished build of something else is replaced if it has not finished a single shard; one
    of other versions of the libraries is restarted, as its masks may have other bytes.

    Raises
    ------
    ConfigError
        If the output holds an unfinished build of something else, or tars of unknown origin.
    DataError
        If what tells of an unfinished build is damaged, unless `overwrite`.
    """
    folder = building_folder(output)
    try:
        there = _plan(output)
    except DataError:
        if not overwrite:
            raise
        there = _UNKNOWN
        _write_plan(output, there)
    draft = json.loads(json.dumps(draft))
    if there is not None and there != draft and not (overwrite or count_records(output)):
        overwrite = True
    if there is not None and there != draft and {**there, "versions": draft["versions"]} == draft:
        log.warning("%s: the unfinished build was made by other versions; restarting it", output)
        overwrite = True
    if there is not None and not (overwrite and there != draft):
        _refuse_difference(output, "holds an unfinished build of", there, draft)
        for place in dict.fromkeys((output, *folders, folder)):
            place.remove_half_written()
        return
    earlier = _earlier(output, folders) if overwrite else {}
    for place in dict.fromkeys((output, *folders, *earlier)):
        known = earlier.get(place, ())
        theirs = not earlier or place not in (output, *earlier)
        ours = known if theirs else (*known, *_OURS)
        strange = [
            name
            for name in place.list_files()
            if (name.endswith(".tar") or name in _OURS) and name not in ours
        ]
        if strange:
            raise ConfigError(
                f"--output {place}: holds {strange[0]} of unknown origin; choose an empty folder"
            )
    _clear(output, earlier, there)
    _write_plan(output, draft)


def renew_plan(output: Location, folders: Sequence[Location], draft: Draft) -> None:
    """Note again what is being built, where the output was removed under workers that continued.

    Their shards would be of unknown origin.
    """
    names = [name for folder in folders for name in folder.list_files()]
    unfinished = MANIFEST_NAME not in names and any(name.endswith(".tar") for name in names)
    if unfinished and _plan(output) is None:
        _write_plan(output, draft)


def _write_plan(output: Location, draft: Draft) -> None:
    """Note what is being built."""
    (building_folder(output) / _PLAN).publish_bytes(json.dumps(draft).encode())


def _plan(output: Location) -> dict[str, Any] | None:
    """Return what is being built.

    Raises
    ------
    DataError
        If the note of it is damaged.
    """
    file = building_folder(output) / _PLAN
    if not file.exists():
        return None
    try:
        plan = file.read_json()
        if set(plan) != _PLANNED and plan != _UNKNOWN:
            raise DataError(f"{file}: is not the plan of a build")
        _splits(plan)
    except (DataError, ConfigError, ValueError, TypeError, AttributeError) as error:
        raise DataError(
            f"--output {output}: {_PLAN} of the unfinished build is damaged ({first_line(error)}); "
            "--overwrite starts again"
        ) from None
    return plan  # type: ignore[no-any-return]


def _earlier(output: Location, folders: Sequence[Location]) -> dict[Location, tuple[str, ...]]:
    """Return the folders of an earlier build, unfinished or complete, and the shards in each."""
    unsure: list[Location] = []
    try:
        complete = _complete(output, folders)
    except DataError:  # a manifest is broken, or of another version
        complete = {}
        unsure = [f for f in (output, *folders) if MANIFEST_NAME in f.list_files()]
    earlier = {
        folder: tuple(shard.name for shard in manifest.shards)
        for folder, manifest in complete.items()
        if "samples_per_shard" in manifest.settings  # else its shards are another program's
    }
    there = _plan(output)
    if there is not None:
        unsure += [output / name for name in _splits(there)] or [output]
    if there == _UNKNOWN:
        unsure += folders
    for folder in unsure:
        earlier[folder] = tuple(name for name in folder.list_files() if _SHARD.fullmatch(name))
    return earlier


def _clear(output: Location, earlier: Mapping[Location, Sequence[str]], plan: Any) -> None:
    """Remove what an earlier build wrote, and nothing else; a kill leaves it unfinished."""
    building = building_folder(output)
    if plan is None and earlier:
        before: Draft = _UNKNOWN
        with contextlib.suppress(DataError):
            before = _said(read_manifest(next(iter(earlier))))
        _write_plan(output, before)
    for name in (*building.list_files(), *building.list_folders()):
        if name != _PLAN:
            (building / name).remove()
    places = dict.fromkeys((output, *earlier)) if earlier else ()
    for name in _OURS:
        for place in places:
            (place / name).remove()
    for place in places:
        place.remove_half_written()
        for name in earlier.get(place, ()):
            (place / name).remove()
        if place != output:
            place.remove_if_empty()


def kept_shards(output: Location, shards: Sequence[tuple[Location, str]]) -> dict[int, BuiltShard]:
    """Return the shards that an earlier run finished and whose bytes are still what it recorded.

    Parameters
    ----------
    shards
        (file, name of the record) by number.
    """
    folder = building_folder(output)
    records = folder.list_files()
    kept = {}
    for number, (file, record) in enumerate(shards):
        if record not in records:
            continue
        with contextlib.suppress(msgspec.MsgspecError):  # another version's: build it again
            built = msgspec.msgpack.decode((folder / record).read_bytes(), type=BuiltShard)
            if file.exists() and file.sha256() == built.sha256:
                kept[number] = built
    return kept


def count_records(output: Location) -> int:
    """Return how many shards a build has finished so far."""
    return sum(name.endswith(_RECORD) for name in building_folder(output).list_files())


def end(output: Location) -> None:
    """Remove the build folder of a complete build, what vouches for its shards last."""
    folder = building_folder(output)
    names = [*folder.list_folders(), *folder.list_files()]
    for name in sorted(names, key=lambda name: name == _PLAN):
        (folder / name).remove()
    folder.remove_if_empty()


def _refuse_difference(
    output: Location, what: str, there: Mapping[str, Any], here: Mapping[str, Any]
) -> None:
    old, new = _flat(there), _flat(here)
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
