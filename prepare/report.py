"""The report of ``prepare``: what the shards hold, and what was left out and why."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from .. import photo
from ..photo import BadPhoto
from ..report.blocks import Block, Cell, Items, Jpeg, Number, Paragraph, Picture, Pictures, Table
from ..report.markup import shortened
from ..report.thumbnails import thumbnail
from ..shards.manifest import Manifest, join_indices
from ..shards.report import MAX_LETTERS, MAX_PIXELS, UNREADABLE, ShardsReport
from ..storage import Location
from .build_folder import QUARANTINE, REPORT
from .config import PrepareConfig
from .images import ImageStore, read_photo
from .plan import BuildPlan
from .sample import Quarantined
from .shard import BuiltShard

_MAX_QUARANTINED = 500  # rows of the quarantine list
_QUARANTINE_PICTURES, _QUARANTINE_SIDE = 48, 208  # at most so many, so large [pixels]
_MAX_BYTES = 2**26  # larger files are not read


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
    names = ", ".join(source.name for source in plan.sources[:3])
    more = f" and {len(plan.sources) - 3} more" if len(plan.sources) > 3 else ""
    quarantined = [entry for shard in built for entry in shard.quarantined]
    report = ShardsReport(
        f"Prepared from {names}{more}",
        [split.name for split in plan.splits],
        folders,
        manifests,
        join_indices([shard.index for shard in built]),
        PrepareConfig,
        plan.notes(),
        plan.samples_per_shard,
        len(quarantined),
        {image.key: image.entry.file_name for split in plan.splits for image in split.images},
    )
    blocks = list(_quarantine(plan, manifests, quarantined)) if quarantined else []
    (output / REPORT).publish_bytes(report.to_html(blocks))


def _quarantine(
    plan: BuildPlan, manifests: Sequence[Manifest], entries: Sequence[Quarantined]
) -> Iterator[Block]:
    lists = " and ".join(
        f"{split.name}/{QUARANTINE}" if split.name else QUARANTINE
        for split, manifest in zip(plan.splits, manifests, strict=True)
        if manifest.counts.get("quarantined")
    )
    yield Paragraph(f"These images were left out whole, since they cannot be trusted: see {lists}.")
    reasons = Counter(entry.reason for entry in entries)
    yield Items([f"{count:,} × {reason}" for reason, count in reasons.most_common()])
    several = len(plan.sources) > 1
    rows: list[list[Cell]] = [
        [
            *([plan.sources[entry.source].name] if several else []),
            shortened(entry.file_name, MAX_LETTERS),
            _id(entry.image_id),
            _id(entry.annotation_id),
            entry.reason,
            shortened(entry.detail, MAX_LETTERS),
        ]
        for entry in entries[:_MAX_QUARANTINED]
    ]
    columns = ["file", "image id", "annotation id", "reason", "detail"]
    yield Table("Quarantined images", ["source"] * several + columns, rows)
    if len(entries) > _MAX_QUARANTINED:
        yield Paragraph(f"Not listed: {len(entries) - _MAX_QUARANTINED:,} more.")
    pictures = list(_quarantine_pictures(plan, entries))
    if pictures:
        yield Pictures(pictures)


def _id(value: int | None) -> Cell:
    return "" if value is None else Number(value, str(value))


def _quarantine_pictures(plan: BuildPlan, entries: Sequence[Quarantined]) -> Iterator[Picture]:
    """Show some of each reason, if their files are there."""
    wanted = {entry.key for entry in entries}
    names = {
        image.key: image.name
        for split in plan.splits
        for image in split.images
        if image.name is not None and image.key in wanted
    }
    by_reason: dict[str, list[Quarantined]] = defaultdict(list)
    for entry in entries:
        if entry.key in names:
            by_reason[entry.reason].append(entry)
    in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_reason.values()))
    for entry in itertools.islice(filter(None, in_turn), _QUARANTINE_PICTURES):
        store = plan.catalogs[entry.source].store
        name = names[entry.key]
        caption = f"{entry.reason}: {shortened(entry.file_name, MAX_LETTERS)}"
        try:
            if entry.reason == "worker-died":  # and so might this process
                raise BadPhoto(entry.reason, "not opened: a worker died of it")
            yield Picture(_decode_bad(store, name), caption, caption)
        except UNREADABLE as error:
            yield Picture(None, shortened(str(error), MAX_LETTERS), caption)


def _decode_bad(store: ImageStore, name: str) -> Jpeg:
    if store.size(name) > _MAX_BYTES:
        raise BadPhoto("file-too-large", "too large a file to be shown")
    stored = read_photo(store.location(name))
    info = photo.inspect(stored)
    if info.width * info.height > MAX_PIXELS:
        raise BadPhoto("image-too-large", f"not decoded: {info.width:,} × {info.height:,} pixels")
    return thumbnail(photo.decode(stored), _QUARANTINE_SIDE)
