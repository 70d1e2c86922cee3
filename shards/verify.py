"""Check a folder of shards byte by byte against its manifest and index.

Whatever can be read from the tars is read from them, and not believed of manifest or index: a
change for which all digests were computed again is found, unless every sample is a valid one.
"""

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import DataError
from ..meter import Meter, ShowProgress
from ..results import Result
from ..storage import Location, locate
from ..taxonomy import Taxonomy
from .contents import check_json, check_photo, count_classes, photo_header, read_described
from .manifest import (
    MANIFEST_NAME,
    MEMBERS,
    Index,
    IndexRow,
    Manifest,
    ShardEntry,
    member_digest,
    read_index,
    read_manifest,
)
from .members import by_sample, sort_members
from .tarball import Member, folded, walk


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a folder of shards."""

    where: str
    """File, and the key of the sample where there is one."""
    what: str


@dataclass(frozen=True, slots=True)
class Extent(Result):
    """How much there is to verify."""

    shards: int
    samples: int
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Verification(Extent):
    """The result of `verify`."""

    problems: tuple[Problem, ...]

    def text(self) -> str:
        """Return it for people: a line for each problem, and one for all."""
        lines = [f"{problem.where}: {problem.what}" for problem in self.problems]
        state = f"{len(lines)} problems" if lines else "all good"
        sums = f"{self.shards} shards, {self.samples} samples, {self.bytes} bytes"
        return "\n".join([*lines, f"{sums}: {state}"])


def plan_verification(folder: str) -> Extent:
    """Return what `verify` would read.

    Raises
    ------
    ConfigError, DataError
        As `verify`.
    """
    manifests = [read_manifest(one) for one in _shard_folders(locate(folder))]
    return Extent(
        sum(len(manifest.shards) for manifest in manifests),
        sum(manifest.samples for manifest in manifests),
        sum(manifest.bytes for manifest in manifests),
    )


def verify(folder: str, progress: ShowProgress = False) -> Verification:
    """Check everything that manifest and index say: names, sizes, digests, pixels, counts.

    Parameters
    ----------
    folder
        A folder of shards, or one that holds those which ``prepare --split`` made.
    progress
        How progress is shown; see `ShowProgress`.

    Raises
    ------
    ConfigError
        If there is no such folder.
    DataError
        If there is no manifest, or no index that can be read: nothing could be checked.
    """
    extent = plan_verification(folder)
    root, problems = locate(folder), list[Problem]()
    with Meter("verify", extent.samples, "image", progress, slow="slower storage") as meter:
        for name in _missing_splits(root):
            problems.append(Problem(name, "is missing or unfinished"))
        for one in _shard_folders(root):
            split = "" if one == root else f"{one.name}/"
            for problem in _folder(one, meter):
                problems.append(Problem(split + problem.where, problem.what))
                meter.note(problems=len(problems))
    return Verification(extent.shards, extent.samples, extent.bytes, tuple(problems))


def _shard_folders(folder: Location) -> list[Location]:
    if not (folder / MANIFEST_NAME).exists():
        below = (folder / name for name in sorted(folder.list_folders()))
        splits = [one for one in below if (one / MANIFEST_NAME).exists()]
        if splits:
            return splits
    return [folder]


def _missing_splits(folder: Location) -> list[str]:
    """Return the splits that a folder should hold, as its others say, and does not."""
    found = _shard_folders(folder)
    if found == [folder]:
        return []
    said = str(read_manifest(found[0]).settings.get("split", ""))
    names = {part.partition("=")[0].strip() for part in said.split(",") if part}
    return sorted(names - {one.name for one in found})


def _folder(folder: Location, meter: Meter) -> Iterator[Problem]:
    manifest = read_manifest(folder)
    index = read_index(folder, manifest)
    present = folder.list_files()
    yield from _totals(manifest, index)
    known = {shard.name for shard in manifest.shards}
    for name in sorted(present):
        if name.endswith(".tar") and name not in known:
            yield Problem(name, "is not in the manifest")
    for number, shard in enumerate(manifest.shards):
        rows = [index.row(int(i)) for i in np.flatnonzero(index.samples["shard"] == number)]
        if shard.name in present:
            with (folder / shard.name).mapped() as content:
                yield from _shard(shard, content, rows, manifest)
                for row in rows:
                    yield from _sample(f"{shard.name}: {row.key}", content, row, manifest)
                    meter.update()
        else:
            yield Problem(shard.name, "is missing")
            meter.update(len(rows))


def _totals(manifest: Manifest, index: Index) -> Iterator[Problem]:
    pixels = np.zeros(np.iinfo(np.uint16).max + 1, np.int64)
    np.add.at(pixels, index.classes["train_id"], index.classes["pixels"])
    said = {
        "samples": (manifest.samples, len(index)),
        "bytes": (manifest.bytes, sum(shard.bytes for shard in manifest.shards)),
        "class_pixels": (
            list(manifest.class_pixels),
            pixels[: manifest.classes.num_classes].tolist(),
        ),
        "ignored_pixels": (manifest.ignored_pixels, int(pixels[manifest.classes.ignore_index])),
    }
    for name, (there, counted) in said.items():
        if there != counted:
            yield Problem("manifest.json", f"{name} is {there}, counted {counted}")
    keys = [folded(key.decode()) for key in index.samples["key"]]
    if len(set(keys)) != len(keys):
        yield Problem("index.npy", "a key is given twice, or two differ in case alone")


def _shard(
    entry: ShardEntry, content: bytes | mmap.mmap, rows: list[IndexRow], manifest: Manifest
) -> Iterator[Problem]:
    if len(content) != entry.bytes:
        yield Problem(entry.name, f"has {len(content)} bytes, the manifest says {entry.bytes}")
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        yield Problem(entry.name, "differs from the manifest (sha256)")
    members: list[Member] = []
    try:
        for member in walk(content, entry.name, foreign=manifest.adopted):
            members.append(member)
    except DataError as error:
        yield Problem(entry.name, str(error).removeprefix(f"{entry.name}: "))
    compare = _adopted_members if manifest.adopted else _own_members
    yield from compare(entry.name, members, rows, manifest)


def _own_members(
    where: str, members: list[Member], rows: list[IndexRow], manifest: Manifest
) -> Iterator[Problem]:
    """Compare with the order and the names that `writer` gives."""
    found = [(member.name, member.offset, member.size) for member in members]
    expected = [
        (f"{row.key}.{extension}", row.offsets[i], row.lengths[i])
        for row in rows
        for i, extension in enumerate((row.extension, "png", "json"))
        if extension != "png" or manifest.masks
    ]
    yield from _differences(where, "members", found, expected)


def _adopted_members(
    where: str, members: list[Member], rows: list[IndexRow], manifest: Manifest
) -> Iterator[Problem]:
    """Compare with what `cocoseg index` would find."""
    found = []
    try:
        for key, group in by_sample(members):
            sample = sort_members(key, group, f"{where}: {key}", manifest.masks)
            found.append((key, sample.image.extension, sample.offsets, sample.lengths))
    except DataError as error:
        yield Problem(where, str(error).removeprefix(f"{where}: "))
    expected = [(row.key, row.extension, row.offsets, row.lengths) for row in rows]
    yield from _differences(where, "samples", found, expected)


def _differences(
    where: str, what: str, found: Sequence[object], expected: Sequence[object]
) -> Iterator[Problem]:
    for theirs, ours in zip(found, expected, strict=False):
        if theirs != ours:
            yield Problem(where, f"holds {theirs}, the index says {ours}")
            break
    if len(found) != len(expected):
        yield Problem(where, f"holds {len(found)} {what}, the index says {len(expected)}")


def _sample(
    where: str, content: bytes | mmap.mmap, row: IndexRow, manifest: Manifest
) -> Iterator[Problem]:
    image, mask, described = (
        content[offset : offset + length]
        for offset, length in zip(row.offsets, row.lengths, strict=True)
    )
    for name, member, digest in zip(MEMBERS, (image, mask, described), row.digests, strict=True):
        if member_digest(member) != digest:
            yield Problem(where, f"its {name} differs from the index")
            return
    checks = [_check_image(where, image, row)]
    if manifest.masks:
        checks.append(_check_mask(where, mask, row, manifest.classes))
    checks.append(_check_json(where, described, row, manifest))
    for problems in checks:
        try:
            yield from problems
        except DataError as error:
            yield Problem(where, str(error).removeprefix(f"{where}: "))


def _check_image(where: str, content: bytes, row: IndexRow) -> Iterator[Problem]:
    if not 1 <= row.orientation <= 8:
        yield Problem(where, f"the index turns it by orientation {row.orientation}")
    size = photo_header(content, where).size(row.orientation)
    if size != (row.width, row.height):
        yield Problem(where, f"the image is {size}, the index says {row.width, row.height}")
    else:
        check_photo(content, where)


def _check_mask(where: str, content: bytes, row: IndexRow, classes: Taxonomy) -> Iterator[Problem]:
    if count_classes(content, where, (row.width, row.height), classes) != row.class_pixels:
        yield Problem(where, "the mask's pixel counts differ from the index")


def _check_json(where: str, content: bytes, row: IndexRow, manifest: Manifest) -> Iterator[Problem]:
    if manifest.adopted:
        if content:
            check_json(content, where)
        return
    described = read_described(content, where)
    told = (described.width, described.height, described.orientation)
    if told != (row.width, row.height, row.orientation):
        yield Problem(where, f"its json says {told}, the index otherwise")
