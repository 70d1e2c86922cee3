"""Check a folder of shards byte by byte against its manifest and index."""

import hashlib
import io
import json
import mmap
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from .. import photo, storage
from ..errors import DataError
from ..photo import BadPhoto
from .decode import decode_mask
from .manifest import (
    MANIFEST_NAME,
    Index,
    IndexRow,
    Manifest,
    ShardEntry,
    member_digest,
    read_index,
    read_manifest,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a folder of shards."""

    where: str
    """File, and the key of the sample where there is one."""
    what: str


@dataclass(frozen=True, slots=True)
class Extent:
    """How much there is to verify."""

    shards: int
    samples: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Verification(Extent):
    """The result of `verify`."""

    problems: tuple[Problem, ...]


def plan_verification(folder: str) -> Extent:
    """Return what `verify` would read.

    Raises
    ------
    ConfigError, DataError
        As `verify`.
    """
    manifests = [read_manifest(one) for one in _shard_folders(folder)]
    return Extent(
        sum(len(manifest.shards) for manifest in manifests),
        sum(manifest.samples for manifest in manifests),
        sum(manifest.bytes for manifest in manifests),
    )


def verify(folder: str, progress: bool = False) -> Verification:
    """Check everything that manifest and index say: names, sizes, digests, pixels, counts.

    Parameters
    ----------
    folder
        A folder of shards, or one that holds those which ``prepare --split`` made.
    progress
        Show a bar on stderr.

    Raises
    ------
    ConfigError
        If there is no such folder.
    DataError
        If there is no manifest, or no index that can be read: nothing could be checked.
    """
    extent = plan_verification(folder)
    problems: list[Problem] = []
    with tqdm(total=extent.samples, unit="img", disable=not progress) as bar:
        for name in _missing_splits(folder):
            problems.append(Problem(name, "is missing or unfinished"))
        for one in _shard_folders(folder):
            split = "" if one == folder else f"{one.rpartition('/')[2]}/"
            for problem in _folder(one, bar):
                problems.append(Problem(split + problem.where, problem.what))
                bar.set_postfix_str(f"{len(problems)} problems", refresh=False)
    return Verification(extent.shards, extent.samples, extent.bytes, tuple(problems))


def _shard_folders(folder: str) -> list[str]:
    if not storage.exists(storage.join(folder, MANIFEST_NAME)):
        below = (storage.join(folder, name) for name in sorted(storage.list_folders(folder)))
        splits = [one for one in below if storage.exists(storage.join(one, MANIFEST_NAME))]
        if splits:
            return splits
    return [folder]


def _missing_splits(folder: str) -> list[str]:
    """Return the splits that a folder should hold, as its others say, and does not."""
    found = _shard_folders(folder)
    if found == [folder]:
        return []
    said = str(read_manifest(found[0]).settings.get("split", ""))
    names = {part.partition("=")[0].strip() for part in said.split(",") if part}
    return sorted(names - {one.rpartition("/")[2] for one in found})


def _folder(folder: str, bar: "tqdm[Any]") -> Iterator[Problem]:
    manifest = read_manifest(folder)
    index = read_index(folder, manifest)
    present = storage.list_files(folder)
    yield from _totals(manifest, index)
    known = {shard.name for shard in manifest.shards}
    for name in sorted(present):
        if name.endswith(".tar") and name not in known:
            yield Problem(name, "is not in the manifest")
    for number, shard in enumerate(manifest.shards):
        rows = [index.row(int(i)) for i in np.flatnonzero(index.samples["shard"] == number)]
        if shard.name in present:
            with storage.mapped(storage.join(folder, shard.name)) as content:
                yield from _shard(shard, content, rows, manifest)
                for row in rows:
                    yield from _sample(f"{shard.name}: {row.key}", content, row, manifest)
                    bar.update()
        else:
            yield Problem(shard.name, "is missing")
            bar.update(len(rows))


def _totals(manifest: Manifest, index: Index) -> Iterator[Problem]:
    pixels = np.zeros(manifest.classes.ignore_index + 1, np.int64)
    np.add.at(pixels, index.classes["train_id"], index.classes["pixels"])
    said = {
        "samples": (manifest.samples, len(index)),
        "bytes": (manifest.bytes, sum(shard.bytes for shard in manifest.shards)),
        "class_pixels": (
            list(manifest.class_pixels),
            pixels[: manifest.classes.num_classes].tolist(),
        ),
        "ignored_pixels": (manifest.ignored_pixels, int(pixels[-1])),
    }
    for name, (there, counted) in said.items():
        if there != counted:
            yield Problem("manifest.json", f"{name} is {there}, counted {counted}")
    keys = index.samples["key"]
    if len(np.unique(keys)) != len(keys):
        yield Problem("index.npy", "a key is given twice")


def _shard(
    entry: ShardEntry, content: bytes | mmap.mmap, rows: list[IndexRow], manifest: Manifest
) -> Iterator[Problem]:
    if len(content) != entry.bytes:
        yield Problem(entry.name, f"has {len(content)} bytes, the manifest says {entry.bytes}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        yield Problem(entry.name, "differs from the manifest (sha256)")
    expected = [
        (f"{row.key}.{extension}", row.offsets[i], row.lengths[i])
        for row in rows
        for i, extension in enumerate((row.extension, "png", "json"))
        if extension != "png" or manifest.masks
    ]
    try:
        file: Any = content if isinstance(content, mmap.mmap) else io.BytesIO(content)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            found = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    except tarfile.TarError as error:
        yield Problem(entry.name, f"is no readable tar: {error}")
        found = []
    for theirs, ours in zip(found, expected, strict=False):
        if theirs != ours:
            yield Problem(entry.name, f"holds {theirs}, the index says {ours}")
            break
    if len(found) != len(expected):
        yield Problem(entry.name, f"holds {len(found)} members, the index says {len(expected)}")


def _sample(
    where: str, content: bytes | mmap.mmap, row: IndexRow, manifest: Manifest
) -> Iterator[Problem]:
    image, mask, meta = (
        content[offset : offset + length]
        for offset, length in zip(row.offsets, row.lengths, strict=True)
    )
    names = ("image", "mask", "json")
    for name, member, digest in zip(names, (image, mask, meta), row.digests, strict=True):
        if member_digest(member) != digest:
            yield Problem(where, f"its {name} differs from the index")
            return
    try:
        info = photo.check(image, full=True)
        if info.size(row.orientation) != (row.width, row.height):
            size = info.size(row.orientation)
            yield Problem(where, f"the image is {size}, the index says {row.width, row.height}")
        if manifest.masks:
            yield from _mask(where, mask, row, manifest)
        described = json.loads(meta)
        told = (described["width"], described["height"], described["orientation"])
        if told != (row.width, row.height, row.orientation):
            yield Problem(where, f"its json says {told}, the index otherwise")
    except BadPhoto as bad:
        yield Problem(where, f"image: {bad.detail}")
    except DataError as error:
        yield Problem(where, str(error).removeprefix(f"{where}: "))
    except (KeyError, TypeError, ValueError) as error:
        yield Problem(where, f"its json cannot be read: {error!r}")


def _mask(where: str, content: bytes, row: IndexRow, manifest: Manifest) -> Iterator[Problem]:
    pixels = decode_mask(content, where, expected=(row.height, row.width))
    values, counts = np.unique(pixels.astype(np.int64), return_counts=True)
    classes = manifest.classes
    strange = values[(values >= classes.num_classes) & (values != classes.ignore_index)]
    if strange.size:
        yield Problem(where, f"the mask holds {strange[0]}, which is no train id")
    counted = tuple(zip(values.tolist(), counts.tolist(), strict=True))
    if counted != row.class_pixels:
        yield Problem(where, "the mask's pixel counts differ from the index")
