"""The report of shards: what they hold, in pictures, tables and figures."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .. import photo
from ..config import Section
from ..errors import ConfigError, DataError
from ..report.blocks import (
    Block,
    Cell,
    Figure,
    Figures,
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
from ..report.page import PageSection, render
from ..report.sizes import size_overview
from ..report.thumbnails import overlay_thumbnail, thumbnail
from ..storage import Location
from ..taxonomy import Taxonomy
from .census import Census
from .decode import decode_mask
from .findings import described
from .manifest import Index, IndexRow, Manifest
from .reader import read_members

MAX_LETTERS = 240
"""Of a name or a detail: the JSON files hold what it says beyond."""
MAX_PIXELS = 50_000_000
"""Larger images are not decoded: 0.15 GB, and half a second each."""
UNREADABLE = (ConfigError, DataError, OSError)
"""A missing picture is no reason to end a build."""
_SAMPLES = 12  # pictures of samples
_TAGS = 8  # class names under a picture


@dataclass(frozen=True)
class ShardsReport:
    """What the report is about; sums over all splits."""

    title: str
    names: Sequence[str]
    """Of the splits; empty for shards that are not split."""
    folders: Sequence[Location]
    """Of the splits. Their manifests need not be published yet."""
    manifests: Sequence[Manifest]
    index: Index
    """All samples; the field ``shard`` counts through all splits."""
    settings: type[Section]
    """The section whose values the manifests hold."""
    notes: Sequence[str] = ()
    samples_per_shard: int | None = None
    """At most; None if it is not known."""
    quarantined: int | None = None
    """Images that were left out; None if nothing is known of such."""
    file_names: Mapping[str, str] | None = None
    """Of the images, by key, as far as they are known."""

    def to_html(self, quarantine: Sequence[Block] = ()) -> bytes:
        """Return the page; `quarantine` is a section of its own where it is given."""
        return render(self.title, list(self._sections(quarantine))).encode()

    @property
    def labeled(self) -> bool:
        """Whether the samples have masks."""
        return self.manifests[0].masks

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The classes, the same in all splits."""
        return self.manifests[0].classes

    @cached_property
    def shard_files(self) -> list[Location]:
        """All shards, those of the first split first."""
        return [
            folder / shard.name
            for folder, manifest in zip(self.folders, self.manifests, strict=True)
            for shard in manifest.shards
        ]

    def _sections(self, quarantine: Sequence[Block]) -> Iterator[PageSection]:
        yield PageSection("Overview", list(_overview(self)))
        yield PageSection("Samples", list(_samples(self)))
        if self.labeled:
            blocks = class_overview(
                self.taxonomy, self.pixels, self.ignored, self.instances_by_split
            )
            yield PageSection("Classes", list(blocks))
        sizes = self.index.samples
        yield PageSection("Image sizes", [size_overview(sizes["width"], sizes["height"])])
        if quarantine:
            yield PageSection("Quarantine", quarantine)
        yield PageSection("Inputs and settings", list(_settings(self)))

    @cached_property
    def warnings(self) -> list[str]:
        """See `Census.warnings`."""
        census = Census.of([self.index], self.taxonomy.num_classes)
        return list(census.warnings(self.taxonomy, [self.index])) if self.labeled else []

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
        """Pixels of the ignore index."""
        return sum(manifest.ignored_pixels for manifest in self.manifests)

    @cached_property
    def counts(self) -> Counter[str]:
        """See `Manifest.counts`."""
        return sum((Counter(m.counts) for m in self.manifests), Counter[str]())


def _column_sums(rows: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


# ---- overview


def _overview(report: ShardsReport) -> Iterator[Block]:
    manifests, most = report.manifests, report.samples_per_shard
    samples = sum(manifest.samples for manifest in manifests)
    figures = [
        Figure("samples", f"{samples:,}"),
        Figure("shards", f"{len(report.shard_files):,}", f"up to {most:,} each" if most else ""),
        Figure("size", f"{sum(manifest.bytes for manifest in manifests) / 1e6:,.1f} MB"),
    ]
    if (bad := report.quarantined) is not None:
        share = f"{bad / (bad + samples):.2%} of images" if bad else ""
        figures.append(Figure("quarantined", f"{bad:,}", share, alarming=bad > 0))
    if report.labeled:
        total = sum(report.pixels) + report.ignored
        seen = sum(pixels > 0 for pixels in report.pixels[1:])
        figures += [
            Figure("classes seen", f"{seen:,}", f"of {report.taxonomy.num_classes - 1:,}"),
            Figure("background", f"{report.pixels[0] / total:.1%}", "of the pixels"),
        ]
        if report.instances_by_split:
            figures.append(Figure("instances", f"{report.counts['instances']:,}"))
    yield Figures(figures)
    yield from map(Note, (*report.notes, *report.warnings))
    if len(manifests) > 1:
        yield _split_table(report)
    findings = list(described(report.counts))
    if findings:
        yield Table("Findings", ("what", "count"), findings)


def _split_table(report: ShardsReport) -> Table:
    rows: list[list[Cell]] = []
    for name, manifest in zip(report.names, report.manifests, strict=True):
        seen = sum(pixels > 0 for pixels in manifest.class_pixels[1:])
        megabytes = Number(manifest.bytes, f"{manifest.bytes / 1e6:,.1f}")
        bad = manifest.counts.get("quarantined", 0)
        rows.append([name, manifest.samples, len(manifest.shards), megabytes, bad, seen])
    columns = ("split", "samples", "shards", "MB", "quarantined", "classes seen")
    return Table("Splits", columns, rows)


# ---- samples


def _samples(report: ShardsReport) -> Iterator[Block]:
    samples, classes = report.index.samples, report.index.classes
    total = samples["width"].astype(np.int64) * samples["height"]
    owner = np.repeat(np.arange(len(samples)), samples["classes"])
    things = (classes["train_id"] > 0) & (classes["train_id"] < report.taxonomy.num_classes)
    owner, classes = owner[things], classes[things]
    chosen = diverse(
        shard=samples["shard"],
        sample=owner,
        train_id=classes["train_id"],
        share=classes["pixels"] / total[owner],
        excluded=total > MAX_PIXELS,
        count=_SAMPLES,
    )
    pictures = [_sample_picture(report, place) for place in chosen]
    spread = "spread over the shards" + (
        ", and chosen to show as many classes as possible" if report.labeled else ""
    )
    yield Paragraph(
        f"{len(chosen):,} of {len(samples):,}, {spread}. The command cocoseg view SHARDS shows "
        "every one of them in a browser."
    )
    yield Pictures(pictures)


def _sample_picture(report: ShardsReport, place: int) -> Picture:
    row = report.index.row(place)
    file = report.shard_files[int(report.index.samples["shard"][place])]
    tags = _tags(report, row)
    names = ", ".join(tag.text for tag in tags) or "no instances"
    caption = row.key
    if file_name := (report.file_names or {}).get(row.key):
        caption += f" · {shortened(file_name, MAX_LETTERS)}"
    try:
        image = _decode_sample(report, file, row)
    except UNREADABLE as error:
        return Picture(None, f"cannot be shown: {error}", caption, tags)
    alt = f"{row.key}: {names}" if report.labeled else row.key
    return Picture(image, alt, caption, tags)


def _decode_sample(report: ShardsReport, file: Location, row: IndexRow) -> Jpeg:
    read = file.read_range
    if not report.labeled:
        (stored,) = read_members(read, row, ("image",))
        return thumbnail(photo.decode(stored, row.orientation))
    stored, mask_file = read_members(read, row, ("image", "mask"))
    image = photo.decode(stored, row.orientation)
    mask = decode_mask(mask_file, row.key, expected=image.shape[:2])
    return overlay_thumbnail(image, mask, report.taxonomy.ignore_index)


def _tags(report: ShardsReport, row: IndexRow) -> list[Tag]:
    """Return the classes in a sample, the largest first."""
    things = sorted((-pixels, train_id) for train_id, pixels in row.class_pixels if train_id)
    tags = [class_tag(report.taxonomy, train_id) for _, train_id in things[:_TAGS]]
    return tags + [Tag(f"+{len(things) - _TAGS}")] * (len(things) > _TAGS)


# ---- inputs and settings


def _settings(report: ShardsReport) -> Iterator[Block]:
    manifest = report.manifests[0]
    sources = [
        (source.name, source.images, source.annotations, source.sha256[:16])
        for source in manifest.sources
    ]
    if sources:
        yield Table("Inputs", ("name", "images", "annotations", "SHA-256 begins"), sources)
    settings = {name: value for name, value in manifest.settings.items() if name != "train_ids"}
    fields = report.settings.model_fields
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
