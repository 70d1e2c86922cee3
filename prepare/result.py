"""What ``cocoseg prepare`` has made, and says at the end."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..results import Result
from ..shards.findings import described
from ..shards.manifest import Manifest
from ..storage import locate
from ..taxonomy import Taxonomy
from .build_folder import QUARANTINE, REPORT
from .sample import Quarantined


@dataclass(frozen=True, slots=True)
class PreparedSplit:
    """One complete folder of shards."""

    name: str
    """As in ``--split``; empty where nothing was split."""
    folder: str
    manifest: Manifest
    quarantined: tuple[Quarantined, ...]


@dataclass(frozen=True, slots=True)
class PrepareResult(Result):
    """The complete output."""

    output: str
    splits: tuple[PreparedSplit, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """What makes training learn less than expected; see `Census.warnings`."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the only, or the first, folder of shards."""
        return self.splits[0].manifest

    @property
    def quarantined(self) -> tuple[Quarantined, ...]:
        """All images that were left out."""
        return tuple(entry for split in self.splits for entry in split.quarantined)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        content: dict[str, Any] = {"output": self.output, **_describe_folders(self.splits)}
        if self.splits[0].name:
            content["splits"] = {
                split.name: {"folder": split.folder, **_describe_folders((split,))}
                for split in self.splits
            }
        content["notes"] = list(self.notes)
        content["warnings"] = list(self.warnings)
        content["report"] = str(locate(self.output) / REPORT)
        return content

    def text(self) -> str:
        """Return the summary for people: classes, totals, where to look."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        content = self.to_dict()
        yield from _class_table(content, self.manifest.classes)
        for split in self.splits:
            manifest = split.manifest
            yield (
                f"{split.folder}: {manifest.samples:,} samples in {len(manifest.shards):,} shards, "
                f"{manifest.bytes / 1e6:,.1f} MB"
            )
        yield from (f"{n:>9,} {what}" for what, n in described(content["counts"]))
        if content["quarantined"]:
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in content["quarantined"].items())
            yield f"quarantined: {reasons}"
        yield from (f"note: {note}" for note in self.notes)
        yield f"look at {content['report']}"

    def advice(self, max_bad: int) -> Iterator[str]:
        """Yield what to do about images that were left out, if they are too many."""
        if len(self.quarantined) > max_bad:
            lists = ", ".join(
                str(locate(split.folder) / QUARANTINE) for split in self.splits if split.quarantined
            )
            yield (
                f"{len(self.quarantined)} images were left out: see {lists}. Fix them and prepare "
                f"again with --overwrite, or accept them with --max-bad {len(self.quarantined)}"
            )


def _describe_folders(splits: tuple[PreparedSplit, ...]) -> dict[str, Any]:
    manifests = [split.manifest for split in splits]
    counts: Counter[str] = Counter()
    for manifest in manifests:
        counts.update(manifest.counts)
    names = manifests[0].classes.names
    pixels = [sum(column) for column in zip(*(m.class_pixels for m in manifests), strict=True)]
    instances = [
        sum(column) for column in zip(*(m.class_instances for m in manifests), strict=True)
    ]
    return {
        "samples": sum(manifest.samples for manifest in manifests),
        "shards": sum(len(manifest.shards) for manifest in manifests),
        "bytes": sum(manifest.bytes for manifest in manifests),
        "counts": dict(sorted(counts.items())),
        "quarantined": dict(
            Counter(entry.reason for split in splits for entry in split.quarantined)
        ),
        "classes": len(names),
        "class_pixels": {name: n for name, n in zip(names, pixels, strict=True) if n},
        "class_instances": {name: n for name, n in zip(names, instances, strict=True) if n},
        "ignored_pixels": sum(manifest.ignored_pixels for manifest in manifests),
    }


def _class_table(content: dict[str, Any], classes: Taxonomy) -> Iterator[str]:
    pixels, instances = content["class_pixels"], content["class_instances"]
    total = sum(pixels.values()) + content["ignored_pixels"]
    if not total:
        return
    names = classes.names
    width = max([10, *map(len, pixels)])
    counted = bool(instances)  # label images have none
    heading = f"  {'instances':>10}" * counted
    yield f"{'id':>5}  {'class':<{width}}{heading}  {'pixels':>15}  {'share':>8}"
    for train_id, name in enumerate(names):
        if name in pixels or name in instances:
            count = pixels.get(name, 0)
            number = f"  {instances.get(name, 0):>10,}" * counted
            yield (f"{train_id:>5}  {name:<{width}}{number}  {count:>15,}  {count / total:>8.3%}")
    if content["ignored_pixels"]:
        ignored, index = content["ignored_pixels"], classes.ignore_index
        yield (
            f"{index:>5}  {'(ignored)':<{width}}{'':{12 * counted}}  {ignored:>15,}"
            f"  {ignored / total:>8.3%}"
        )
    unseen = [name for name in names[1:] if name not in pixels and name not in instances]
    if unseen:
        shown = ", ".join(unseen[:8]) + (" …" if len(unseen) > 8 else "")
        yield f"       without {'instances' if counted else 'pixels'}: {len(unseen)} ({shown})"
    yield ""
