"""Check a folder of shards byte by byte against its manifest and index."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .. import photo, storage
from ..errors import DataError
from ..photo import BadPhoto
from .manifest import (
    Index,
    IndexRow,
    Manifest,
    ShardEntry,
    member_digest,
    read_index,
    read_manifest,
)
from .reader import decode_mask


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a folder of shards."""

    where: str
    """File, and the key of the sample where there is one."""
    what: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`."""

    shards: int
    samples: int
    bytes: int
    problems: tuple[Problem, ...]


def verify(folder: str) -> Verification:
    """Check everything that manifest and index say: names, sizes, digests, pixels, counts.

    Raises
    ------
    ConfigError
        If there is no such folder.
    DataError
        If there is no manifest, or no index that can be read: nothing could be checked.
    """
    manifest = read_manifest(folder)
    index = read_index(folder, manifest)
    present = storage.list_files(folder)
    problems = list(_totals(manifest, index))
    known = {shard.name for shard in manifest.shards}
    problems += [
        Problem(name, "is not in the manifest")
        for name in sorted(present)
        if name.endswith(".tar") and name not in known
    ]
    for number, shard in enumerate(manifest.shards):
        if shard.name not in present:
            problems.append(Problem(shard.name, "is missing"))
            continue
        rows = [index.row(int(i)) for i in np.flatnonzero(index.samples["shard"] == number)]
        content = storage.read_bytes(storage.join(folder, shard.name))
        problems += _shard(shard, content, rows, manifest)
    return Verification(len(manifest.shards), manifest.samples, manifest.bytes, tuple(problems))


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
    entry: ShardEntry, content: bytes, rows: list[IndexRow], manifest: Manifest
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
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as tar:
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
    for row in rows:
        yield from _sample(f"{entry.name}: {row.key}", content, row, manifest)


def _sample(where: str, content: bytes, row: IndexRow, manifest: Manifest) -> Iterator[Problem]:
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
