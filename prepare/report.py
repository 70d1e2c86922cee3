"""The reports of ``prepare`` and ``index``: what the shards hold, and what was left out and why."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import photo
from ..errors import ConfigError, DataError
from ..photo import BadPhoto
from ..report.blocks import (
    Block,
    Cell,
    Figure,
    Figures,
    Items,
    Jpeg,
    Note,
    Number,
    Paragraph,
    Picture,
    Pictures,
    Table,
    Tag,
)
from ..report.choice import diverse
from ..report.classes import class_overview, class_tag
from ..report.markup import shortened
from ..report.page import Section, render
from ..report.sizes import size_overview
from ..report.thumbnails import overlay_thumbnail, thumbnail
from ..shards.census import Census
from ..shards.decode import decode_mask
from ..shards.manifest import Index, IndexRow, Manifest, join_indices
from ..shards.reader import read_members
from ..storage import Location
from ..taxonomy import Taxonomy
from .config import IndexConfig, PrepareConfig
from .findings import described
from .images import ImageStore, read_photo
from .journal import QUARANTINE, REPORT
from .plan import BuildPlan
from .sample import Quarantined
from .shard import BuiltShard

INDEX_REPORT = "index-report.html"
_SAMPLES = 12  # pictures of samples
_TAGS = 8  # class names under a picture
_MAX_QUARANTINED = 500  # rows of the quarantine list
_QUARANTINE_PICTURES, _QUARANTINE_SIDE = 48, 208  # at most so many, so large [pixels]
_MAX_LETTERS = 240  # of a name or a detail: what it says beyond is in the JSON files
_MAX_PIXELS = 50_000_000  # larger photographs are not decoded: 0.15 GB, and half a second each
_MAX_BYTES = 2**26  # nor are larger files read
_UNREADABLE = (ConfigError, DataError, OSError)  # a picture less is no reason to end a build


def write_report(
    plan: BuildPlan,
    output: Location,
    folders: Sequence[Location],
    manifests: Sequence[Manifest],
    built: Sequence[BuiltShard],
) -> None:
    """Write the report beside the shards; their manifests need not be published yet.

    Parameters
    ----------
    folders, manifests
        Of each split.
    built
        All shards, those of the first split first.
    """
    content = _Content(
        plan.class_map.taxonomy,
        [split.name for split in plan.splits],
        folders,
        manifests,
        join_indices([shard.index for shard in built]),
        plan.notes(),
        tuple(entry for shard in built for entry in shard.quarantined),
        plan,
    )
    names = ", ".join(source.name for source in plan.sources[:3])
    more = f" and {len(plan.sources) - 3} more" if len(plan.sources) > 3 else ""
    page = render(f"Prepared from {names}{more}", list(_sections(content)))
    (output / REPORT).publish_bytes(page.encode())


def write_index_report(
    folder: Location, manifests: Mapping[str, Manifest], indices: Sequence[Index]
) -> None:
    """Write the report of shards that another program wrote; they need no manifest yet.

    Parameters
    ----------
    manifests
        By split; of a folder that is not split under an empty name.
    indices
        Of each shard, those of the first split first.
    """
    taxonomy = next(iter(manifests.values())).classes
    folders = [folder / name if name else folder for name in manifests]
    index = join_indices(indices)
    content = _Content(taxonomy, list(manifests), folders, list(manifests.values()), index)
    page = render(f"Index of {folder.name}", list(_sections(content)))
    (folder / INDEX_REPORT).publish_bytes(page.encode())


@dataclass(frozen=True)
class _Content:
    """What the report is about; sums over all splits."""

    taxonomy: Taxonomy
    names: Sequence[str]
    """Of the splits."""
    folders: Sequence[Location]
    manifests: Sequence[Manifest]
    index: Index
    """All samples; the field ``shard`` counts through all splits."""
    notes: Sequence[str] = ()
    quarantined: Sequence[Quarantined] = ()
    plan: BuildPlan | None = None
    """None for shards of other programs."""

    @property
    def labeled(self) -> bool:
        return self.manifests[0].masks

    @cached_property
    def warnings(self) -> list[str]:
        census = Census.of([self.index], self.taxonomy.num_classes)
        return list(census.warnings(self.taxonomy, [self.index])) if self.labeled else []

    @cached_property
    def shard_files(self) -> list[Location]:
        return [
            folder / shard.name
            for folder, manifest in zip(self.folders, self.manifests, strict=True)
            for shard in manifest.shards
        ]

    @cached_property
    def pixels(self) -> list[int]:
        """By train id."""
        return _column_sums([manifest.class_pixels for manifest in self.manifests])

    @cached_property
    def instances_by_split(self) -> dict[str, Sequence[int]]:
        """By column of the class table, then by train id; empty where none were counted."""
        parts = [manifest.class_instances for manifest in self.manifests]
        if not all(parts):
            return {}
        names = [f"in {name}" for name in self.names] if len(parts) > 1 else []
        return {"instances": _column_sums(parts), **dict(zip(names, parts, strict=False))}

    @cached_property
    def ignored(self) -> int:
        return sum(manifest.ignored_pixels for manifest in self.manifests)

    @cached_property
    def counts(self) -> Counter[str]:
        return sum((Counter(m.counts) for m in self.manifests), Counter[str]())

    @cached_property
    def file_names(self) -> dict[str, str]:
        """By key; empty for shards of other programs."""
        splits = self.plan.splits if self.plan is not None else ()
        return {image.key: image.entry.file_name for split in splits for image in split.images}


def _column_sums(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _sections(content: _Content) -> Iterator[Section]:
    yield Section("Overview", list(_overview(content)))
    yield Section("Samples", list(_samples(content)))
    if content.labeled:
        blocks = class_overview(
            content.taxonomy, content.pixels, content.ignored, content.instances_by_split
        )
        yield Section("Classes", list(blocks))
    sizes = content.index.samples
    yield Section("Image sizes", [size_overview(sizes["width"], sizes["height"])])
    if content.plan is not None and content.quarantined:
        yield Section("Quarantine", list(_quarantine(content, content.plan)))
    yield Section("Inputs and settings", list(_settings(content)))


# ---- overview


def _overview(content: _Content) -> Iterator[Block]:
    manifests, plan = content.manifests, content.plan
    samples = sum(manifest.samples for manifest in manifests)
    most = "" if plan is None else f"up to {plan.samples_per_shard:,} each"
    figures = [
        Figure("samples", f"{samples:,}"),
        Figure("shards", f"{len(content.shard_files):,}", most),
        Figure("size", f"{sum(manifest.bytes for manifest in manifests) / 1e6:,.1f} MB"),
    ]
    if plan is not None:
        bad = len(content.quarantined)
        share = f"{bad / (bad + samples):.2%} of images" if bad else ""
        figures.append(Figure("quarantined", f"{bad:,}", share, alarming=bad > 0))
    if content.labeled:
        total = sum(content.pixels) + content.ignored
        seen = sum(pixels > 0 for pixels in content.pixels[1:])
        figures += [
            Figure("classes seen", f"{seen:,}", f"of {content.taxonomy.num_classes - 1:,}"),
            Figure("background", f"{content.pixels[0] / total:.1%}", "of the pixels"),
        ]
        if content.instances_by_split:
            figures.append(Figure("instances", f"{content.counts['instances']:,}"))
    yield Figures(figures)
    yield from map(Note, (*content.notes, *content.warnings))
    if len(manifests) > 1:
        yield _split_table(content)
    findings = list(described(content.counts))
    if findings:
        yield Table("Findings", ("what", "count"), findings)


def _split_table(content: _Content) -> Table:
    rows: list[list[Cell]] = []
    for name, manifest in zip(content.names, content.manifests, strict=True):
        seen = sum(pixels > 0 for pixels in manifest.class_pixels[1:])
        megabytes = Number(manifest.bytes, f"{manifest.bytes / 1e6:,.1f}")
        bad = manifest.counts.get("quarantined", 0)
        rows.append([name, manifest.samples, len(manifest.shards), megabytes, bad, seen])
    columns = ("split", "samples", "shards", "MB", "quarantined", "classes seen")
    return Table("Splits", columns, rows)


# ---- samples


def _samples(content: _Content) -> Iterator[Block]:
    samples, classes = content.index.samples, content.index.classes
    total = samples["width"].astype(np.int64) * samples["height"]
    owner = np.repeat(np.arange(len(samples)), samples["classes"])
    things = (classes["train_id"] > 0) & (classes["train_id"] < content.taxonomy.num_classes)
    owner, classes = owner[things], classes[things]
    chosen = diverse(
        shard=samples["shard"],
        sample=owner,
        train_id=classes["train_id"],
        share=classes["pixels"] / total[owner],
        excluded=total > _MAX_PIXELS,
        count=_SAMPLES,
    )
    pictures = [_sample_picture(content, place) for place in chosen]
    spread = "spread over the shards" + (
        ", and chosen to show as many classes as possible" if content.labeled else ""
    )
    yield Paragraph(f"{len(chosen):,} of {len(samples):,}, {spread}.")
    yield Pictures(pictures)


def _sample_picture(content: _Content, place: int) -> Picture:
    row = content.index.row(place)
    file = content.shard_files[int(content.index.samples["shard"][place])]
    tags = _tags(content, row)
    names = ", ".join(tag.text for tag in tags) or "no instances"
    caption = row.key
    if file_name := content.file_names.get(row.key):
        caption += f" · {shortened(file_name, _MAX_LETTERS)}"
    try:
        image = _decode_sample(content, file, row)
    except _UNREADABLE as error:
        return Picture(None, f"cannot be shown: {error}", caption, tags)
    alt = f"{row.key}: {names}" if content.labeled else row.key
    return Picture(image, alt, caption, tags)


def _decode_sample(content: _Content, file: Location, row: IndexRow) -> Jpeg:
    read = file.read_range
    if not content.labeled:
        (stored,) = read_members(read, row, ("image",))
        return thumbnail(photo.decode(stored, row.orientation))
    stored, mask_file = read_members(read, row, ("image", "mask"))
    image = photo.decode(stored, row.orientation)
    mask = decode_mask(mask_file, row.key, expected=image.shape[:2])
    return overlay_thumbnail(image, mask, content.taxonomy.ignore_index)


def _tags(content: _Content, row: IndexRow) -> list[Tag]:
    """Return the classes in a sample, the largest first."""
    things = sorted((-pixels, train_id) for train_id, pixels in row.class_pixels if train_id)
    tags = [class_tag(content.taxonomy, train_id) for _, train_id in things[:_TAGS]]
    return tags + [Tag(f"+{len(things) - _TAGS}")] * (len(things) > _TAGS)


# ---- quarantine


def _quarantine(content: _Content, plan: BuildPlan) -> Iterator[Block]:
    entries = content.quarantined
    lists = " and ".join(
        f"{name}/{QUARANTINE}" if name else QUARANTINE
        for name, manifest in zip(content.names, content.manifests, strict=True)
        if manifest.counts.get("quarantined")
    )
    yield Paragraph(f"These images were left out whole, since they cannot be trusted: see {lists}.")
    reasons = Counter(entry.reason for entry in entries)
    yield Items([f"{count:,} × {reason}" for reason, count in reasons.most_common()])
    several = len(plan.sources) > 1
    rows: list[list[Cell]] = [
        [
            *([plan.sources[entry.source].name] if several else []),
            shortened(entry.file_name, _MAX_LETTERS),
            _id(entry.image_id),
            _id(entry.annotation_id),
            entry.reason,
            shortened(entry.detail, _MAX_LETTERS),
        ]
        for entry in entries[:_MAX_QUARANTINED]
    ]
    columns = ["file", "image id", "annotation id", "reason", "detail"]
    yield Table("Quarantined images", ["source"] * several + columns, rows)
    if len(entries) > _MAX_QUARANTINED:
        yield Paragraph(f"Not listed: {len(entries) - _MAX_QUARANTINED:,} more.")
    pictures = list(_quarantine_pictures(content, plan))
    if pictures:
        yield Pictures(pictures)


def _id(value: int | None) -> Cell:
    return "" if value is None else Number(value, str(value))


def _quarantine_pictures(content: _Content, plan: BuildPlan) -> Iterator[Picture]:
    """Show some of each reason, if their files are there."""
    wanted = {entry.key for entry in content.quarantined}
    names = {
        image.key: image.name
        for split in plan.splits
        for image in split.images
        if image.name is not None and image.key in wanted
    }
    by_reason: dict[str, list[Quarantined]] = defaultdict(list)
    for entry in content.quarantined:
        if entry.key in names:
            by_reason[entry.reason].append(entry)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_reason.values()))
    for entry in itertools.islice(filter(None, in_turn), _QUARANTINE_PICTURES):
        store = plan.catalogs[entry.source].store
        name = names[entry.key]
        caption = f"{entry.reason}: {shortened(entry.file_name, _MAX_LETTERS)}"
        try:
            if entry.reason == "worker-died":  # and so might this process
                raise BadPhoto(entry.reason, "not opened: a worker died of it")
            yield Picture(_decode_bad(store, name), caption, caption)
        except _UNREADABLE as error:
            yield Picture(None, shortened(str(error), _MAX_LETTERS), caption)


def _decode_bad(store: ImageStore, name: str) -> Jpeg:
    if store.size(name) > _MAX_BYTES:
        raise BadPhoto("file-too-large", "too large a file to be shown")
    stored = read_photo(store.location(name))
    info = photo.inspect(stored)
    if info.width * info.height > _MAX_PIXELS:
        raise BadPhoto("image-too-large", f"not decoded: {info.width:,} × {info.height:,} pixels")
    return thumbnail(photo.decode(stored), _QUARANTINE_SIDE)


# ---- inputs and settings


def _settings(content: _Content) -> Iterator[Block]:
    manifest = content.manifests[0]
    sources = [
        (source.name, source.images, source.annotations, source.sha256[:16])
        for source in manifest.sources
    ]
    if sources:
        yield Table("Inputs", ("name", "images", "annotations", "SHA-256 begins"), sources)
    settings = {name: value for name, value in manifest.settings.items() if name != "train_ids"}
    config = IndexConfig if content.plan is None else PrepareConfig
    fields = config.model_fields
    rows: list[tuple[Cell, ...]] = []
    for name, value in settings.items():
        if name == "priorities":
            on_top = sorted(value, key=value.__getitem__, reverse=True)
            rows.append((name, ", ".join(on_top), "Classes that are on top, the first above all."))
        else:
            meaning = fields[name].description if name in fields else None
            rows.append((name, str(value), " ".join((meaning or "").split())))
    yield Table("Settings", ("setting", "value", "meaning"), rows)
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    yield Paragraph(f"Made with {versions}.")
