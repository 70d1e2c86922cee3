"""From annotations and images to a folder of shards.

    annotations → plan (which image goes into which shard) → shards, in parallel → index, manifest

A killed build is continued by running it again: each finished shard leaves a record under
``.building/`` and is kept if its bytes still have the recorded digest.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np
from tqdm import tqdm

from .. import __version__, photo, storage
from ..errors import ConfigError, DataError
from ..photo import BadPhoto
from ..shards import manifest as shard_manifest
from ..shards.manifest import Manifest, ShardEntry, SourceEntry
from ..shards.writer import Sample, ShardRecord, write_shard
from ..taxonomy import ClassMap, resolve_classes
from . import orientation
from .annotations import AnnotationFile, ImageEntry, read_annotations
from .config import PrepareConfig
from .engines import available_cores, run_tasks
from .orientation import Orientation
from .png import encode_mask
from .rasterize import BadAnnotation, Instance, PaintRules, rasterize

_SURVEY_CHUNK = 500  # images a task: 50 ms of headers, small beside a worker's start
_BUILDING = ".building"


@dataclass(frozen=True, slots=True)
class ImageTask:
    """One image to be painted and packed."""

    key: str
    source: int
    """Place of its annotation file on the command line."""
    image_id: int
    file_name: str
    folder: str
    width: int
    height: int
    """Size by the annotations [pixels]."""
    instances: tuple[Instance, ...]


@dataclass(frozen=True, slots=True)
class ShardTask:
    """One shard to be built; everything a worker needs."""

    number: int
    output: str
    images: tuple[ImageTask, ...]
    rules: PaintRules
    orientation: Orientation


class Quarantined(msgspec.Struct, frozen=True):
    """An image that was left out, whole, and why."""

    source: int
    image_id: int
    file_name: str
    reason: str
    detail: str
    annotation_id: int | None = None


class BuiltShard(msgspec.Struct, frozen=True):
    """What is known of a finished shard; stored under ``.building/`` until the manifest stands."""

    number: int
    record: ShardRecord
    quarantined: tuple[Quarantined, ...]
    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class BuildPlan:
    """Everything that is decided before the first image is opened."""

    sources: tuple[AnnotationFile, ...]
    class_map: ClassMap
    samples: tuple[tuple[str, int, ImageEntry], ...]
    """(key, source, image) in the order of the shards."""
    shards: int

    def to_dict(self) -> dict[str, Any]:
        """Return what ``--dry-run`` prints."""
        return {
            "images": len(self.samples),
            "annotations": sum(source.annotations for source in self.sources),
            "images_without_annotations": sum(
                len(source.images) - len(source.instances) for source in self.sources
            ),
            "shards": self.shards,
            "classes": list(self.class_map.taxonomy.names),
        }


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """A complete folder of shards."""

    output: str
    manifest: Manifest
    quarantined: tuple[Quarantined, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the summary that the command prints."""
        names = self.manifest.classes.names
        painted = {
            name: pixels
            for name, pixels in zip(names, self.manifest.class_pixels, strict=True)
            if pixels
        }
        return {
            "output": self.output,
            "samples": self.manifest.samples,
            "shards": len(self.manifest.shards),
            "bytes": self.manifest.bytes,
            "counts": self.manifest.counts,
            "quarantined": dict(Counter(entry.reason for entry in self.quarantined)),
            "classes": self.manifest.classes.num_classes,
            "class_pixels": painted,
        }


def plan_build(config: PrepareConfig) -> BuildPlan:
    """Read the annotations and decide classes, keys and the place of every image.

    Raises
    ------
    ConfigError, DataError
        See `read_annotations` and `resolve_classes`.
    """
    if not config.annotations:
        raise ConfigError("--annotations: give a COCO JSON file (and --images, its image folder)")
    if len(config.annotations) != len(config.images):
        raise ConfigError(
            f"--annotations and --images come in pairs: got {len(config.annotations)} and "
            f"{len(config.images)}"
        )
    for folder in config.images:
        if not storage.is_dir(folder):
            raise ConfigError(f"--images {folder}: no such folder")
    sources = tuple(read_annotations(path) for path in config.annotations)
    class_map = resolve_classes(config.classes, [source.categories for source in sources])
    prefixes = [f"{i}-" if len(sources) > 1 else "" for i in range(len(sources))]
    samples = [
        (f"{prefixes[i]}{image.id:012d}", i, image)
        for i, source in enumerate(sources)
        for image in source.images
    ]
    samples.sort(key=lambda sample: hashlib.sha256(sample[0].encode()).digest())
    shards = -(-len(samples) // config.samples_per_shard)
    return BuildPlan(sources, class_map, tuple(samples), shards)


def prepare(config: PrepareConfig, progress: bool = False) -> PrepareResult:
    """Build the shards, or complete them, or find them complete.

    Parameters
    ----------
    config
        `annotations`, `images` and `output` must be set.
    progress
        Show a bar on stderr.

    Raises
    ------
    ConfigError
        If something is missing, or `output` holds shards of other inputs or settings.
    DataError
        If the data set cannot be trusted, or no image of it can.
    """
    if config.output is None:
        raise ConfigError("--output: give a folder for the shards")
    plan = plan_build(config)
    draft = _draft_manifest(plan, config)
    finished = _finished_manifest(config.output, draft)
    if finished is not None:
        return PrepareResult(config.output, finished, _read_quarantine(config.output))

    _start_or_continue(config.output, draft)
    workers = config.workers or available_cores()
    facing = decide_orientation(plan, config, workers)
    built = _kept_shards(config.output)
    todo = (task for task in _shard_tasks(plan, config, facing) if task.number not in built)
    with tqdm(total=len(plan.samples), unit="img", disable=not progress) as bar:
        bar.update(sum(_images_of(shard) for shard in built.values()))
        for shard in run_tasks(build_shard, todo, workers, config.engine):
            built[shard.number] = shard
            bar.update(_images_of(shard))
    return _publish(config.output, draft, plan, [built[i] for i in range(plan.shards)])


def decide_orientation(plan: BuildPlan, config: PrepareConfig, workers: int) -> Orientation:
    """Look at every header before the first shard is built: ambiguous images follow the others."""
    if config.exif != "auto":
        return orientation.decide(config.exif, Counter())
    chunks = [
        tuple(
            (storage.join(config.images[source], image.file_name), image.width, image.height)
            for _, source, image in plan.samples[start : start + _SURVEY_CHUNK]
            if _file_name_problem(image.file_name) is None
        )
        for start in range(0, len(plan.samples), _SURVEY_CHUNK)
    ]
    votes: Counter[str] = Counter()
    for counted in run_tasks(survey_headers, chunks, min(workers, len(chunks)), config.engine):
        votes += counted
    return orientation.decide("auto", votes)


def survey_headers(images: Sequence[tuple[str, int, int]]) -> Counter[str]:
    """Count the EXIF votes of (file, width, height); see `orientation.survey`."""

    def contents() -> Iterator[tuple[bytes, int, int]]:
        for url, width, height in images:
            try:
                yield storage.read_bytes(url), width, height
            except (ConfigError, OSError):
                continue  # the build quarantines it, with the reason

    return orientation.survey(contents())


def build_shard(task: ShardTask) -> BuiltShard:
    """Paint and pack the images of one shard; runs in a worker.

    The record is written after the shard itself, so that a record vouches for finished bytes.
    """
    name = shard_name(task.number)
    quarantined: list[Quarantined] = []
    counts: Counter[str] = Counter()

    def samples() -> Iterator[Sample]:
        for image in task.images:
            made = build_sample(image, task.rules, task.orientation)
            if isinstance(made, Quarantined):
                quarantined.append(made)
            else:
                sample, met = made
                counts.update(met)
                yield sample

    building = storage.join(task.output, _BUILDING)
    with storage.scratch_folder(building) as scratch:
        record = write_shard(scratch / name, samples())
        storage.publish_file(scratch / name, storage.join(task.output, name))
    built = BuiltShard(task.number, record, tuple(quarantined), dict(counts))
    storage.publish_bytes(storage.join(building, f"{name}.json"), msgspec.json.encode(built))
    return built


def build_sample(
    image: ImageTask, rules: PaintRules, facing: Orientation
) -> tuple[Sample, Counter[str]] | Quarantined:
    """Check a photograph and paint its mask; an image that cannot be trusted is left out whole."""
    try:
        content = _read_photo(image)
        info = photo.check(content)
        turn = facing.turn(info, image.width, image.height)
        painting = rasterize(image.instances, image.width, image.height, rules)
    except BadPhoto as bad:
        return _quarantine(image, bad.reason, bad.detail)
    except BadAnnotation as bad:
        return _quarantine(image, bad.reason, bad.detail, bad.annotation_id)
    pixels = np.bincount(painting.mask.ravel())
    met = Counter(painting.counts)
    met["without_annotations"] += not image.instances
    met["turned_by_exif"] += turn != 1
    both = len(orientation.fitting_turns(info, image.width, image.height)) == 2
    met["exif_ambiguous"] += facing.mode == "auto" and both
    meta = {
        "image_id": image.image_id,
        "file_name": image.file_name,
        "source": image.source,
        "width": image.width,
        "height": image.height,
        "orientation": turn,
        "mode": info.mode,
        "instances": len(image.instances),
    }
    sample = Sample(
        key=image.key,
        photo=content,
        extension=info.extension,
        mask=encode_mask(painting.mask),
        meta=meta,
        width=image.width,
        height=image.height,
        orientation=turn,
        class_pixels=tuple((int(i), int(pixels[i])) for i in np.flatnonzero(pixels)),
    )
    return sample, met


def shard_name(number: int) -> str:
    """Return the file name of a shard, as WebDataset's writers name them."""
    return f"shard-{number:06d}.tar"


def _read_photo(image: ImageTask) -> bytes:
    problem = _file_name_problem(image.file_name)
    if problem:
        raise BadPhoto("bad-file-name", f"file_name {image.file_name!r} {problem}")
    if image.width < 1 or image.height < 1:
        raise BadPhoto("bad-size", f"annotated as {image.width} x {image.height}")
    url = storage.join(image.folder, image.file_name)
    try:
        return storage.read_bytes(url)
    except ConfigError as error:
        raise BadPhoto("missing-file", str(error)) from None
    except OSError as error:
        raise BadPhoto("unreadable-file", f"{url}: {error.strerror or error}") from None


def _file_name_problem(name: str) -> str | None:
    if not name or "\0" in name:
        return "is empty or holds a NUL"
    if "://" in name or PurePosixPath(name).is_absolute():
        return "is not relative to the image folder"
    if ".." in PurePosixPath(name).parts:
        return "leaves the image folder"
    return None


def _quarantine(
    image: ImageTask, reason: str, detail: str, annotation_id: int | None = None
) -> Quarantined:
    return Quarantined(image.source, image.image_id, image.file_name, reason, detail, annotation_id)


def _shard_tasks(
    plan: BuildPlan, config: PrepareConfig, facing: Orientation
) -> Iterator[ShardTask]:
    rules = PaintRules(config.overlap, config.crowd, plan.class_map.taxonomy.ignore_index)
    size = config.samples_per_shard
    for number in range(plan.shards):
        images = tuple(
            ImageTask(
                key=key,
                source=source,
                image_id=image.id,
                file_name=image.file_name,
                folder=config.images[source],
                width=image.width,
                height=image.height,
                instances=_instances(plan, source, image.id),
            )
            for key, source, image in plan.samples[number * size : (number + 1) * size]
        )
        yield ShardTask(number, str(config.output), images, rules, facing)


def _instances(plan: BuildPlan, source: int, image_id: int) -> tuple[Instance, ...]:
    train_ids = plan.class_map.train_ids[source]
    return tuple(
        Instance(
            id=entry.id,
            train_id=train_ids[entry.category_id],
            crowd=bool(entry.iscrowd),
            segmentation=bytes(entry.segmentation),
        )
        for entry in plan.sources[source].instances.get(image_id, ())
    )


def _images_of(shard: BuiltShard) -> int:
    return len(shard.record.rows) + len(shard.quarantined)


def _draft_manifest(plan: BuildPlan, config: PrepareConfig) -> dict[str, Any]:
    """Return what the manifest says of inputs and settings; it tells one build from another."""
    named = config.classes if config.classes in ("auto", "coco") else "file"
    settings = {
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
    sources = [
        {
            "name": source.name,
            "sha256": source.sha256,
            "images": len(source.images),
            "annotations": source.annotations,
        }
        for source in plan.sources
    ]
    libraries = ("pycocotools", "numpy", "pillow")  # what decides the bytes of a mask file
    return {
        "taxonomy": plan.class_map.taxonomy.to_dict(),
        "settings": settings,
        "sources": sources,
        "versions": {"cocoseg": __version__, **{name: version(name) for name in libraries}},
    }


def _finished_manifest(output: str, draft: Mapping[str, Any]) -> Manifest | None:
    if not storage.exists(storage.join(output, shard_manifest.MANIFEST_NAME)):
        return None
    manifest = shard_manifest.read_manifest(output)
    there = {name: msgspec.to_builtins(getattr(manifest, name)) for name in draft}
    _refuse_difference(output, "is complete, but was made from", there, draft)
    return manifest


def _start_or_continue(output: str, draft: Mapping[str, Any]) -> None:
    plan_url = storage.join(output, _BUILDING, "plan.json")
    if storage.exists(plan_url):
        there = json.loads(storage.read_bytes(plan_url))
        _refuse_difference(output, "holds an unfinished build of", there, draft)
        return
    strangers = [name for name in storage.list_files(output) if name.endswith(".tar")]
    if strangers:
        raise ConfigError(
            f"--output {output}: holds {strangers[0]} of unknown origin; choose an empty folder"
        )
    storage.make_folder(storage.join(output, _BUILDING))
    storage.publish_bytes(plan_url, json.dumps(draft).encode())


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
            + "\nChoose another --output, or remove that folder."
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


def _kept_shards(output: str) -> dict[int, BuiltShard]:
    """Return the shards that an earlier run finished and whose bytes are still what it recorded."""
    building = storage.join(output, _BUILDING)
    kept = {}
    for name in storage.list_files(building):
        if not name.startswith("shard-"):
            continue
        built = msgspec.json.decode(
            storage.read_bytes(storage.join(building, name)), type=BuiltShard
        )
        shard = storage.join(output, shard_name(built.number))
        if storage.exists(shard):
            digest = hashlib.sha256(storage.read_bytes(shard)).hexdigest()
            if digest == built.record.sha256:
                kept[built.number] = built
    return kept


def _publish(
    output: str, draft: Mapping[str, Any], plan: BuildPlan, built: Sequence[BuiltShard]
) -> PrepareResult:
    quarantined = tuple(entry for shard in built for entry in shard.quarantined)
    if not any(shard.record.rows for shard in built):
        for shard in built:
            storage.remove(storage.join(output, shard_name(shard.number)))
        storage.remove(storage.join(output, _BUILDING))
        first = "\n".join(f"  {q.file_name}: {q.reason}: {q.detail}" for q in quarantined[:3])
        raise DataError(
            f"all {len(quarantined)} images are bad; nothing was written. First:\n{first}"
        )

    index = shard_manifest.build_index([shard.record.rows for shard in built])
    index_entry, classes_entry = shard_manifest.publish_index(output, index)
    taxonomy = plan.class_map.taxonomy
    pixels = np.zeros(taxonomy.ignore_index + 1, np.int64)
    np.add.at(pixels, index.classes["train_id"], index.classes["pixels"])
    counts: Counter[str] = Counter(quarantined=len(quarantined))
    for shard in built:
        counts.update(shard.counts)
    counts["duplicate_annotation_ids"] += sum(s.duplicate_annotation_ids for s in plan.sources)
    manifest = Manifest(
        format=shard_manifest.FORMAT,
        version=shard_manifest.VERSION,
        taxonomy=draft["taxonomy"],
        settings=draft["settings"],
        sources=tuple(msgspec.convert(s, SourceEntry) for s in draft["sources"]),
        versions=draft["versions"],
        samples=len(index),
        bytes=sum(shard.record.bytes for shard in built),
        counts={name: count for name, count in sorted(counts.items()) if count},
        class_pixels=tuple(pixels[: taxonomy.num_classes].tolist()),
        ignored_pixels=int(pixels[taxonomy.ignore_index]),
        shards=tuple(
            ShardEntry(shard_name(s.number), s.record.bytes, s.record.sha256, len(s.record.rows))
            for s in built
        ),
        index=index_entry,
        index_classes=classes_entry,
    )
    if quarantined:
        lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in quarantined)
        storage.publish_bytes(storage.join(output, "quarantine.jsonl"), lines)
    storage.publish_bytes(
        storage.join(output, shard_manifest.MANIFEST_NAME), manifest.to_json().encode()
    )
    storage.remove(storage.join(output, _BUILDING))
    return PrepareResult(output, manifest, quarantined)


def _read_quarantine(output: str) -> tuple[Quarantined, ...]:
    url = storage.join(output, "quarantine.jsonl")
    if not storage.exists(url):
        return ()
    lines = storage.read_bytes(url).splitlines()
    return tuple(msgspec.json.decode(line, type=Quarantined) for line in lines)
