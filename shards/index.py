"""Shards of other programs: their samples are checked, and get an index and a manifest.

No byte of the shards changes. A sample that cannot be trusted is not left out, as `prepare` would
do: it stays in the tar, where other readers would meet it. So nothing is published until all of
them are good.
"""

import mmap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version

import msgspec
import numpy as np

from .. import __version__, processes
from ..errors import CocosegError, ConfigError, DataError
from ..meter import Meter, ShowProgress
from ..photo import BadPhoto
from ..processes import available_cores
from ..results import Result, aligned
from ..storage import Location, locate
from ..storage.output import explained, is_unfinished
from ..taxonomy import Taxonomy, mask_taxonomy
from . import manifest as shard_manifest
from .census import Census
from .config import IndexConfig, parse_split
from .contents import check_json, check_photo, count_classes, mask_size, photo_header
from .deal import deal_shards, link_shards, refuse_foreign_files, unlink_others
from .manifest import (
    ADOPTED,
    Index,
    IndexRow,
    Manifest,
    ShardEntry,
    build_index,
    join_indices,
    member_digest,
    read_manifest,
)
from .members import by_sample, sort_members
from .orientation import Orientation, Turn, majority
from .report import ShardsReport
from .tarball import Member, folded, name_problem, walk

REPORT = "index-report.html"
_TOLD = 20  # problems, before the rest is not looked at


@dataclass(frozen=True, slots=True)
class ForeignShards(Result):
    """A folder whose shards are to be indexed."""

    folder: str
    shards: dict[str, int]
    """Name → size [bytes], by name."""
    taxonomy: Taxonomy
    split: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return what ``--dry-run`` prints."""
        return {
            "shards": len(self.shards),
            "bytes": sum(self.shards.values()),
            "classes": self.taxonomy.num_classes,
            "ignore_index": self.taxonomy.ignore_index,
            **({"split": self.split} if self.split else {}),
        }


class ShardToExamine(msgspec.Struct, frozen=True):
    """One shard; everything a worker needs."""

    folder: str
    name: str
    taxonomy: Taxonomy
    orientation: Orientation


class Examined(msgspec.Struct, frozen=True):
    """What is known of one shard."""

    name: str
    size: int
    """[bytes]."""
    sha256: str
    index: Index
    ambiguous: list[int]
    """Samples whose size fits both ways; upright in `index`."""
    votes: dict[str, int]
    """Of its images about the orientation; see `orientation.Votes`."""
    counts: dict[str, int]
    problems: list[str]


@dataclass(frozen=True, slots=True)
class IndexResult(Result):
    """What `index_shards` has done."""

    folder: str
    splits: dict[str, Manifest]
    """The manifest of each; of a folder that is not split under an empty name."""
    warnings: tuple[str, ...]
    """See `Census.warnings`."""
    report: str
    """Path of the HTML report."""

    @property
    def manifest(self) -> Manifest:
        """The only one, or that of the first split."""
        return next(iter(self.splits.values()))

    def to_dict(self) -> dict[str, object]:
        """Return what the command prints."""
        manifests, names = list(self.splits.values()), self.manifest.classes.names
        sums = map(sum, zip(*(manifest.class_pixels for manifest in manifests), strict=True))
        counts = sum((Counter(manifest.counts) for manifest in manifests), Counter[str]())
        parts = {name: manifest.samples for name, manifest in self.splits.items() if name}
        return {
            "shards": sum(len(manifest.shards) for manifest in manifests),
            "samples": sum(manifest.samples for manifest in manifests),
            **({"splits": parts} if parts else {}),
            "bytes": sum(manifest.bytes for manifest in manifests),
            "counts": dict(sorted(counts.items())),
            "classes": len(names),
            "class_pixels": {n: count for n, count in zip(names, sums, strict=True) if count},
            "ignored_pixels": sum(manifest.ignored_pixels for manifest in manifests),
            "report": self.report,
            "warnings": list(self.warnings),
        }

    def text(self) -> str:
        """Return it for people, without the warnings, which are logged."""
        return aligned({key: value for key, value in self.to_dict().items() if key != "warnings"})


def plan_index(folder: str, config: IndexConfig) -> ForeignShards:
    """Say what `index_shards` would look at.

    Raises
    ------
    ConfigError
        If no classes or no shards are given, `prepare` made what the folder holds, or the folder
        of a split holds anything else than what an earlier call put there.
    DataError
        If a shard is compressed, or its name is none for a manifest.
    """
    if config.classes is None:
        raise ConfigError(
            "say what the train ids in the masks mean: --classes coco, or --classes FILE with the "
            "names in train-id order, background first"
        )
    place = locate(folder)
    if not place.exists():
        raise ConfigError(f"{folder}: no such folder")
    _refuse_ours(place)
    files = place.list_files()
    for name in sorted(files):
        if name.endswith((".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")):
            raise DataError(f"{folder}: {name} is compressed; unpack it: ranges of it are read")
        if name.endswith(".tar") and (problem := name_problem(name)):
            raise DataError(f"{folder}: the shard {name!r} {problem}; rename it")
    shards = {name: files[name] for name in sorted(files) if name.endswith(".tar")}
    if not shards:
        below = ", ".join(sorted(place.list_folders())[:5])
        hint = f"; index its folders one by one: {below}" if below else ""
        raise ConfigError(f"{folder}: holds no .tar{hint}")
    plan = ForeignShards(folder, shards, mask_taxonomy(config.classes), config.split)
    if config.split is not None:
        splits = _dealt(plan, config)
        refuse_foreign_files(place, splits)
        for split in splits:
            _refuse_ours(place / split)
    return plan


def index_shards(folder: str, config: IndexConfig, progress: ShowProgress = False) -> IndexResult:
    """Check the samples of all shards in a folder, and write the index and the manifest beside.

    Parameters
    ----------
    folder
        Local path or URL. It may hold what an earlier call made.
    progress
        How progress is shown; see `ShowProgress`.

    Raises
    ------
    ConfigError
        As `plan_index`; or if hard links cannot be made.
    DataError
        As `plan_index`; if samples or shards cannot be trusted: names the first of them, with shard
        and key, and nothing was written.
    CocosegError
        If something cannot be written.
    """
    plan = plan_index(folder, config)
    orientation = Orientation(config.exif)
    tasks = [ShardToExamine(folder, name, plan.taxonomy, orientation) for name in plan.shards]
    examined: list[Examined] = []
    keys: dict[str, str] = {}
    problems: list[str] = []
    with Meter("index", len(tasks), "shard", progress) as meter:
        for shard in _examine_all(tasks, config.workers):
            examined.append(shard)
            problems += shard.problems
            problems += _doubled(shard, keys)
            meter.update()
            if len(problems) >= _TOLD:
                break
    if problems:
        raise DataError(_story(folder, problems))
    if not keys:
        raise DataError(f"{folder}: the shards hold no samples")
    with explained(locate(folder), lambda: "the shards are unchanged", flag=""):
        return _publish(plan, config, examined)


def _refuse_ours(folder: Location) -> None:
    """Refuse what `prepare` made or is making: its manifest says more than ours would."""
    if is_unfinished(folder):
        raise ConfigError(f"{folder}: 'cocoseg prepare' has not finished there; run it again")
    if (folder / shard_manifest.MANIFEST_NAME).exists():
        try:
            adopted = read_manifest(folder).adopted
        except DataError as error:
            raise ConfigError(f"{error}. Remove it if the shards are another program's") from None
        if not adopted:
            raise ConfigError(f"{folder}: 'cocoseg prepare' made these shards and their index")


def _examine_all(tasks: list[ShardToExamine], workers: int | None) -> Iterator[Examined]:
    """Yield what is known of each shard, in their order."""
    count = min(available_cores() if workers is None else workers, len(tasks))
    if count < 2:
        yield from map(examine, tasks)
        return
    processes.warm_up(__name__)
    pool = ProcessPoolExecutor(
        count, mp_context=processes.start_context(), initializer=processes.end_with_parent
    )
    try:
        yield from pool.map(examine, tasks)
    except BrokenProcessPool:
        raise CocosegError(
            f"{tasks[0].folder}: a worker process died: of too little memory, or a picture that "
            "crashes its decoder; '--workers 1' shows at which shard"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def examine(task: ShardToExamine) -> Examined:
    """Check every sample of one shard; what is wrong with it is part of the answer."""
    rows: list[IndexRow] = []
    ambiguous: list[int] = []
    counts: Counter[str] = Counter()
    votes: Counter[str] = Counter()
    problems: list[str] = []
    with (locate(task.folder) / task.name).mapped() as content:
        try:
            for key, members in by_sample(walk(content, task.name, foreign=True)):
                try:
                    row, turn = _examine_sample(key, members, content, task)
                except DataError as error:
                    problems.append(str(error))
                    if len(problems) == _TOLD:
                        break
                    continue
                if turn.ambiguous:
                    ambiguous.append(len(rows))
                rows.append(row)
                votes[turn.vote or "none"] += 1
                counts["without_json"] += not row.lengths[2]
        except DataError as error:  # of the tar: where the next member lies is not known
            problems.append(str(error))
        digest, size = sha256(content).hexdigest(), len(content)
    index = build_index([rows])
    return Examined(task.name, size, digest, index, ambiguous, votes, counts, problems)


def _examine_sample(
    key: str, members: list[Member], content: bytes | mmap.mmap, task: ShardToExamine
) -> tuple[IndexRow, Turn]:
    where = f"{task.name}: sample {key}"
    sample = sort_members(key, members, where)
    offsets, lengths = sample.offsets, sample.lengths
    image, mask, described = (
        content[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True)
    )
    info, size = photo_header(image, where), mask_size(mask, where)  # before pixels are decoded
    try:
        turn = task.orientation.turn(info, *size)
    except BadPhoto:
        turned = f", EXIF orientation {info.orientation}," if info.orientation != 1 else ""
        raise DataError(
            f"{where}: image {info.width} x {info.height}{turned} and mask {size[0]} x {size[1]} "
            "differ in size"
        ) from None
    check_photo(image, where)
    class_pixels = count_classes(mask, where, size, task.taxonomy)
    if sample.json is not None:
        check_json(described, where)
    row = IndexRow(
        key=key,
        extension=sample.image.extension,
        offsets=offsets,
        lengths=lengths,
        digests=(member_digest(image), member_digest(mask), member_digest(described)),
        width=size[0],
        height=size[1],
        orientation=turn.value,
        class_pixels=class_pixels,
    )
    return row, turn


def _doubled(shard: Examined, keys: dict[str, str]) -> Iterator[str]:
    """Yield what is wrong with the keys of a shard, and add them to those of the others."""
    for key in map(bytes.decode, shard.index.samples["key"].tolist()):
        same, where = folded(key), f"{shard.name}: sample {key}"
        if same in keys:
            yield f"{where}: its key is there already, {keys[same]}"
        keys[same] = where


def _story(folder: str, problems: list[str]) -> str:
    places: dict[str, list[str]] = {}  # by what is wrong there
    for problem in problems[:_TOLD]:
        *place, wrong = problem.split(": ", 2)
        places.setdefault(wrong, []).append(": ".join(place))
    lines = []
    for wrong, found in places.items():
        others = f" (also {', '.join(found[1:])})" if found[1:] else ""
        lines.append(f"  {found[0]}: {wrong}{others}")
    if len(problems) >= _TOLD:
        lines.append("  … and the rest was not looked at")
    told = "\n".join(lines)
    return f"{folder}: cannot be indexed as it is, and nothing was written:\n{told}"


def _publish(plan: ForeignShards, config: IndexConfig, examined: list[Examined]) -> IndexResult:
    """Settle what the others decide, and write indices, report and manifests; these last."""
    votes: Counter[str] = Counter()
    for shard in examined:
        votes.update(shard.votes)
    if majority(votes) == "raw":
        for shard in examined:
            shard.index.samples["orientation"][shard.ambiguous] = 1
    folder, by_name = locate(plan.folder), {shard.name: shard for shard in examined}
    parts = {
        split: [by_name[name] for name in names] for split, names in _dealt(plan, config).items()
    }
    folders = {split: folder / split if split else folder for split in parts}
    for split in filter(None, parts):
        link_shards(folder, split, [shard.name for shard in parts[split]])
    for stale in (folder, *folders.values()):  # of an earlier index, which fits no longer
        for name in (shard_manifest.MANIFEST_NAME, *shard_manifest.INDEX_NAMES):
            (stale / name).remove()
    manifests: dict[str, Manifest] = {}
    warnings: list[str] = []
    for split, shards in parts.items():
        if split:
            unlink_others(folder, split, [shard.name for shard in shards])
        index = join_indices([shard.index for shard in shards])
        manifests[split] = _describe(plan, config, shards, folders[split], index)
        found = Census.of([index], plan.taxonomy.num_classes).warnings(plan.taxonomy, [index])
        warnings += [f"{split}: {warning}" if split else warning for warning in found]
    report = ShardsReport(
        f"Index of {folder.name}",
        list(manifests),
        list(folders.values()),
        list(manifests.values()),
        join_indices([shard.index for shards in parts.values() for shard in shards]),
        IndexConfig,
    )
    (folder / REPORT).publish_bytes(report.to_html())
    for split, manifest in manifests.items():
        manifest_file = folders[split] / shard_manifest.MANIFEST_NAME
        manifest_file.publish_bytes(manifest.to_json().encode())
    return IndexResult(plan.folder, manifests, tuple(warnings), str(folder / REPORT))


def _dealt(plan: ForeignShards, config: IndexConfig) -> dict[str, list[str]]:
    if config.split is None:
        return {"": list(plan.shards)}
    return deal_shards(plan.shards, parse_split(config.split))


def _describe(
    plan: ForeignShards,
    config: IndexConfig,
    examined: list[Examined],
    folder: Location,
    index: Index,
) -> Manifest:
    """Write the index of one folder and return its manifest."""
    counts: Counter[str] = Counter()
    for shard in examined:
        counts.update(shard.counts)
        counts["exif_ambiguous"] += len(shard.ambiguous)
        counts["turned_by_exif"] += int((shard.index.samples["orientation"] != 1).sum())
    index_entry, classes_entry = shard_manifest.publish_index(folder, index)
    pixels = np.zeros(plan.taxonomy.ignore_index + 1, np.int64)
    np.add.at(pixels, index.classes["train_id"], index.classes["pixels"])
    return Manifest(
        format=shard_manifest.FORMAT,
        version=shard_manifest.VERSION,
        taxonomy=plan.taxonomy.to_dict(),
        settings={
            "made_by": ADOPTED,
            "classes": config.classes if config.classes == "coco" else "file",
            "exif": config.exif,
            **({} if config.split is None else {"split": config.split}),
        },
        sources=(),
        versions={"cocoseg": __version__, **{name: version(name) for name in ("numpy", "pillow")}},
        samples=len(index),
        bytes=sum(shard.size for shard in examined),
        counts={name: count for name, count in sorted(counts.items()) if count},
        class_pixels=tuple(pixels[: plan.taxonomy.num_classes].tolist()),
        ignored_pixels=int(pixels[plan.taxonomy.ignore_index]),
        shards=tuple(
            ShardEntry(shard.name, shard.size, shard.sha256, len(shard.index)) for shard in examined
        ),
        index=index_entry,
        index_classes=classes_entry,
    )
