"""From annotations and images to folders of shards.

    annotations → plan (which image goes into which shard) → shards, in parallel → index, manifest

A killed build is continued by running it again: each finished shard leaves a record (see
`journal`) and is kept if its bytes still have the recorded digest.
"""

import contextlib
import errno
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from .. import __version__, storage
from ..config import to_yaml
from ..errors import CocosegError, ConfigError, DataError, Interrupted
from ..shards import manifest as shard_manifest
from ..shards.manifest import Manifest, ShardEntry, SourceEntry
from . import journal
from .changes import changed_photos, mended_photos
from .config import PrepareConfig
from .forecast import refuse_full_disk
from .orientation import Orientation, majority
from .plan import BuildPlan, SplitPlan, image_task, plan_build, sample_rules
from .report import write_report
from .sample import Quarantined
from .shard import BuiltShard, ShardTask
from .workers import available_cores, run_shards


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """One complete folder of shards."""

    name: str
    """As in ``--split``; empty where nothing was split."""
    folder: str
    manifest: Manifest
    quarantined: tuple[Quarantined, ...]


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """The complete output."""

    output: str
    splits: tuple[PreparedSplit, ...]
    notes: tuple[str, ...]

    @property
    def manifest(self) -> Manifest:
        """The manifest of the only, or the first, folder of shards."""
        return self.splits[0].manifest

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """All images that were left out."""
        return tuple(entry for split in self.splits for entry in split.quarantined)


def prepare(config: PrepareConfig, progress: bool = False) -> PrepareResult:
    """Build the shards, or complete them, or find them complete.

    Parameters
    ----------
    config
        `images` and `output` must be set.
    progress
        Show a bar on stderr.

    Raises
    ------
    ConfigError
        If something is missing, or `output` holds shards of other inputs or settings.
    DataError
        If the data set cannot be trusted, or no image of it can.
    Interrupted
        After Ctrl-C or SIGTERM; what is finished is kept.
    CocosegError
        If the disk is full or fails, or workers die again and again.
    """
    if config.output is None:
        raise ConfigError("--output: give a folder for the shards")
    plan = plan_build(config)
    folders = [storage.join(config.output, split.name).rstrip("/") for split in plan.splits]
    draft = _draft_manifest(plan, config)
    build = _Build(plan, config, folders)

    def complete() -> list[Manifest]:
        return [] if config.overwrite else journal.finished(build.output, folders, draft)

    found = [] if journal.is_at_work(build.output) else complete()
    manifests = found
    if not found:
        with _story_of_an_end(build, draft), journal.locked(build.output):
            found = manifests = complete()  # by a run that was killed just after
            if not found:
                journal.begin(build.output, folders, draft, config.overwrite)
                build.begun = True
                built = build.run(progress)
                manifests = _publish(build, built, draft)
            journal.end(build.output)
    result = _result(build.output, plan, folders, manifests)
    if found:
        _refuse_changed_photos(plan, config, result)
    return result


class _Build:
    """The shards of one output: what they are called, which stand, how the others are made."""

    def __init__(self, plan: BuildPlan, config: PrepareConfig, folders: Sequence[str]) -> None:
        self.plan, self.config, self.folders = plan, config, folders
        self.output = storage.join(str(config.output), "").rstrip("/")
        self.shards = [
            (split, folder, number)
            for split, folder in zip(plan.splits, folders, strict=True)
            for number in range(split.shards)
        ]
        self.built: dict[int, BuiltShard] = {}
        self.begun = self.interrupted = False

    def run(self, progress: bool) -> list[BuiltShard]:
        """Build what is missing and return all shards, in order."""
        names = [self._names(number) for number in range(len(self.shards))]
        urls = [(storage.join(folder, name), record) for folder, name, record in names]
        self.built = self._unchanged(journal.kept_shards(self.output, urls))
        for folder in self.folders:
            storage.make_folder(folder)
        refuse_full_disk(self.plan, self.output, sum(s.size for s in self.built.values()))
        with tqdm(total=self.plan.images, unit="img", disable=not progress) as bar:
            todo = [number for number in range(len(self.shards)) if number not in self.built]
            self._build(todo, Orientation(self.config.exif), bar)
            votes: Counter[str] = Counter()
            for shard in self.built.values():
                votes.update(shard.votes)
            facing = Orientation(self.config.exif, majority(votes))
            todo = [
                shard.number
                for shard in self.built.values()
                if shard.ambiguous and shard.assumed != facing.ambiguous
            ]
            self._build(sorted(todo), facing, bar)
        return [self.built[number] for number in range(len(self.shards))]

    def _unchanged(self, kept: Mapping[int, BuiltShard]) -> dict[int, BuiltShard]:
        """Leave out the shards whose photographs are others now."""
        images = {image.key: image for split in self.plan.splits for image in split.images}
        return {
            number: shard
            for number, shard in kept.items()
            if not any(changed_photos(self.plan, self.config, images, shard.index))
            and not any(mended_photos(self.plan, self.config, images, shard.quarantined))
        }

    def _build(self, todo: Sequence[int], facing: Orientation, bar: "tqdm[Any]") -> None:
        for number in todo:
            self.built.pop(number, None)
        tasks = (self._task(number, facing) for number in todo)
        workers = min(self.config.workers or available_cores(), len(todo))

        def show(done: int, bad: int) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            if bar.disable:
                return
            finished = self.built.values()
            bar.n = sum(_images_of(shard) for shard in finished) + done
            bar.set_postfix_str(
                f"{sum(len(shard.quarantined) for shard in finished) + bad} bad", refresh=False
            )
            bar.refresh()

        shards = run_shards(tasks, workers, self.config.engine, show)
        with contextlib.closing(shards):  # type: ignore[type-var]
            for shard in shards:
                self.built[shard.number] = shard
                show(0, 0)

    def _names(self, number: int) -> tuple[str, str, str]:
        """Return the folder, the file name, and the name of the record of a shard."""
        split, folder, local = self.shards[number]
        name = shard_name(local)
        return folder, name, journal.record_name(split.name, name)

    def _task(self, number: int, facing: Orientation) -> ShardTask:
        split, _, local = self.shards[number]
        folder, name, record = self._names(number)
        size = self.plan.samples_per_shard
        return ShardTask(
            number=number,
            folder=folder,
            name=name,
            building=journal.building_folder(self.output),
            record=record,
            images=tuple(
                image_task(self.plan, image)
                for image in split.images[local * size : (local + 1) * size]
            ),
            rules=sample_rules(self.plan, self.config, facing),
        )


def shard_name(number: int) -> str:
    """Return the file name of a shard, as WebDataset's writers name them."""
    return f"shard-{number:06d}.tar"


def _images_of(shard: BuiltShard) -> int:
    return shard.samples + len(shard.quarantined)


@contextlib.contextmanager
def _story_of_an_end(build: _Build, draft: Mapping[str, Any]) -> Iterator[None]:
    """Turn an end before the end into what was kept and how to go on."""

    def interrupt(*_: object) -> None:
        build.interrupted = True  # what is raised inside a destructor gets lost
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        before[signal.SIGTERM] = signal.signal(signal.SIGTERM, interrupt)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            before[signal.SIGINT] = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        _tidy(build, draft)
        raise Interrupted(f"interrupted; {_kept(build)}: run the same command again") from None
    except OSError as error:
        _tidy(build, draft)
        if error.errno not in _MENDS:
            raise
        what = (error.strerror or str(error)).lower()
        where = f" ({error.filename})" if error.filename else ""
        raise CocosegError(
            f"--output {build.output}: {what}{where}; {_kept(build)}: {_MENDS[error.errno]}, "
            "and run the same command again"
        ) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _tidy(build: _Build, draft: Mapping[str, Any]) -> None:
    """Make good what an interrupt while tidying up, or an output that vanished, left undone."""
    with contextlib.suppress(OSError):
        for folder in (build.output, *build.folders, journal.building_folder(build.output)):
            storage.remove_scratch(folder, os.getpid())
        if build.begun:
            journal.renew_plan(build.output, build.folders, draft)


_MENDS = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "lower --samples-per-shard",
    errno.EIO: "mend the disk",
    errno.ESTALE: "mount it again",
    errno.ENOENT: "see where it has gone",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
"""What to do when a disk fails."""


def _kept(build: _Build) -> str:
    kept = max(len(build.built), journal.count_records(build.output))
    return f"{kept} of {len(build.shards)} shards are finished and kept"


def _refuse_changed_photos(plan: BuildPlan, config: PrepareConfig, result: PrepareResult) -> None:
    changes: list[str] = []
    for split_plan, split in zip(plan.splits, result.splits, strict=True):
        images = {image.key: image for image in split_plan.images}
        index = shard_manifest.read_index(split.folder, split.manifest)
        changes += changed_photos(plan, config, images, index)
        changes += mended_photos(plan, config, images, split.quarantined)
    if changes:
        more = f"\n  … and {len(changes) - 8} more" if len(changes) > 8 else ""
        shown = "\n".join(f"  {change}" for change in changes[:8])
        raise ConfigError(
            f"--output {result.output}: is complete, but images changed since:\n{shown}{more}\n"
            "Choose another --output, or --overwrite that one."
        )


def _draft_manifest(plan: BuildPlan, config: PrepareConfig) -> dict[str, Any]:
    """Return what the manifest says of inputs and settings; it tells one build from another."""
    named = config.classes if config.classes in ("auto", "coco") else "file"
    settings: dict[str, Any] = {
        "classes": named,
        "overlap": config.overlap,
        "crowd": config.crowd,
        "exif": config.exif,
        "samples_per_shard": config.samples_per_shard,
        "train_ids": [
            {str(category_id): train_id for category_id, train_id in sorted(ids.items())}
            for ids in plan.class_map.train_ids
        ],
    }
    chosen = {
        "check_images": config.check_images,
        "split": config.split,
        "group_by": config.group_by,
        "limit": config.limit,
        "skip_empty": config.skip_empty,
        "max_side": config.max_side,
        "jpeg_quality": config.jpeg_quality if config.max_side else None,
        "priorities": {
            plan.class_map.taxonomy.names[train_id]: rank
            for train_id, rank in plan.class_map.priorities.items()
        },
    }
    unset: tuple[object, ...] = (None, False, "header", {})
    settings |= {name: value for name, value in chosen.items() if value not in unset}
    sources = [
        {
            "name": source.name,
            "sha256": source.sha256,
            "images": len(source.images),
            "annotations": source.annotations,
        }
        for source in plan.sources
    ]
    # What decides the bytes of a mask file, or of an image that is shrunk.
    libraries = ("pycocotools", "rlemasklib", "isal", "numpy", "pillow")
    return {
        "taxonomy": plan.class_map.taxonomy.to_dict(),
        "settings": settings,
        "sources": sources,
        "versions": {"cocoseg": __version__, **{name: version(name) for name in libraries}},
    }


def _publish(
    build: _Build, built: Sequence[BuiltShard], draft: Mapping[str, Any]
) -> list[Manifest]:
    """Write what lies beside the shards; each folder's manifest last."""
    if not any(shard.samples for shard in built):
        _refuse_all_bad(build, built)
    _refuse_vanished(build, built, draft)
    manifests = []
    parts = list(_by_split(build.plan.splits, built))
    for (split, shards), folder in zip(parts, build.folders, strict=True):
        manifests.append(_describe(build.plan, split, shards, folder, draft))
        quarantined = [entry for shard in shards for entry in shard.quarantined]
        url = storage.join(folder, journal.QUARANTINE)
        if quarantined:
            lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in quarantined)
            storage.publish_bytes(url, lines)
        else:  # a killed run may have written one, before its images were mended
            storage.remove(url)
    settings = to_yaml({"prepare": build.config}).encode()
    storage.publish_bytes(storage.join(build.output, journal.CONFIG), settings)
    write_report(build.plan, build.output, build.folders, manifests, built)
    for manifest, folder in zip(manifests, build.folders, strict=True):
        url = storage.join(folder, shard_manifest.MANIFEST_NAME)
        storage.publish_bytes(url, manifest.to_json().encode())
    return manifests


def _by_split(
    splits: Sequence[SplitPlan], built: Sequence[BuiltShard]
) -> Iterator[tuple[SplitPlan, Sequence[BuiltShard]]]:
    first = 0
    for split in splits:
        yield split, built[first : first + split.shards]
        first += split.shards


def _refuse_vanished(build: _Build, built: Sequence[BuiltShard], draft: Mapping[str, Any]) -> None:
    """Look at every shard once more: an output may be removed, or unmounted, under a build."""
    sizes = {folder: storage.list_files(folder) for folder in build.folders}
    for (_, folder, local), shard in zip(build.shards, built, strict=True):
        name = shard_name(local)
        if sizes[folder].get(name) != shard.size:
            _tidy(build, draft)
            raise CocosegError(
                f"--output {build.output}: {storage.join(folder, name)} was changed or removed "
                "while others were built: run the same command again"
            )


def _refuse_all_bad(build: _Build, built: Sequence[BuiltShard]) -> None:
    quarantined = [entry for shard in built for entry in shard.quarantined]
    for split, folder, local in build.shards:
        storage.remove(storage.join(folder, shard_name(local)))
        if split.name and not storage.list_files(folder):
            storage.remove(folder)
    journal.end(build.output)
    first = "\n".join(f"  {q.file_name}: {q.reason}: {q.detail}" for q in quarantined[:3])
    raise DataError(f"all {len(quarantined)} images are bad; nothing was written. First:\n{first}")


def _describe(
    plan: BuildPlan,
    split: SplitPlan,
    built: Sequence[BuiltShard],
    folder: str,
    draft: Mapping[str, Any],
) -> Manifest:
    """Write the index of one folder and return its manifest."""
    index = shard_manifest.join_indices([shard.index for shard in built])
    index_entry, classes_entry = shard_manifest.publish_index(folder, index)
    taxonomy = plan.class_map.taxonomy
    pixels = np.zeros(taxonomy.ignore_index + 1, np.int64)
    np.add.at(pixels, index.classes["train_id"], index.classes["pixels"])
    counts: Counter[str] = Counter(quarantined=sum(len(shard.quarantined) for shard in built))
    instances: Counter[int] = Counter()
    for shard in built:
        counts.update(shard.counts)
        instances.update(shard.class_instances)
    if split is plan.splits[0]:
        counts.update(plan.left_out)
        counts["duplicate_annotation_ids"] += sum(
            source.duplicate_annotation_ids for source in plan.sources
        )
    return Manifest(
        format=shard_manifest.FORMAT,
        version=shard_manifest.VERSION,
        taxonomy=draft["taxonomy"],
        settings=draft["settings"],
        sources=tuple(msgspec.convert(s, SourceEntry) for s in draft["sources"]),
        versions=draft["versions"],
        samples=len(index),
        bytes=sum(shard.size for shard in built),
        counts={name: count for name, count in sorted(counts.items()) if count},
        class_pixels=tuple(pixels[: taxonomy.num_classes].tolist()),
        class_instances=tuple(instances[i] for i in range(taxonomy.num_classes)),
        ignored_pixels=int(pixels[taxonomy.ignore_index]),
        shards=tuple(
            ShardEntry(shard_name(number), shard.size, shard.sha256, shard.samples)
            for number, shard in enumerate(built)
        ),
        index=index_entry,
        index_classes=classes_entry,
        masks=plan.labelled,
    )


def _result(
    output: str, plan: BuildPlan, folders: Sequence[str], manifests: Iterable[Manifest]
) -> PrepareResult:
    splits = tuple(
        PreparedSplit(split.name, folder, manifest, _read_quarantine(folder))
        for split, folder, manifest in zip(plan.splits, folders, manifests, strict=True)
    )
    return PrepareResult(output, splits, plan.notes())


def _read_quarantine(folder: str) -> tuple[Quarantined, ...]:
    url = storage.join(folder, journal.QUARANTINE)
    if not storage.exists(url):
        return ()
    lines = storage.read_bytes(url).splitlines()
    return tuple(msgspec.json.decode(line, type=Quarantined) for line in lines)
