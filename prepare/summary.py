"""What ``cocoseg prepare`` says at the end."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from ..shards.findings import described
from ..storage import locate
from .build import PreparedSplit, PrepareResult
from .build_folder import QUARANTINE, REPORT


def describe(result: PrepareResult) -> dict[str, Any]:
    """Return the JSON that the command prints."""
    content: dict[str, Any] = {"output": result.output, **_describe_folders(result.splits)}
    if result.splits[0].name:
        content["splits"] = {
            split.name: {"folder": split.folder, **_describe_folders((split,))}
            for split in result.splits
        }
    content["notes"] = list(result.notes)
    content["warnings"] = list(result.warnings)
    content["report"] = str(locate(result.output) / REPORT)
    return content


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


def table(result: PrepareResult) -> str:
    """Return the summary for people: classes with pixels and instances, totals, where to look."""
    return "\n".join(_table(result))


def _table(result: PrepareResult) -> Iterator[str]:
    content = describe(result)
    pixels, instances = content["class_pixels"], content["class_instances"]
    total = sum(pixels.values()) + content["ignored_pixels"]
    if total:
        names = result.manifest.classes.names
        width = max([10, *map(len, pixels)])
        counted = bool(instances)  # label images have none
        heading = f"  {'instances':>10}" * counted
        yield f"{'id':>5}  {'class':<{width}}{heading}  {'pixels':>15}  {'share':>8}"
        for train_id, name in enumerate(names):
            if name in pixels or name in instances:
                count = pixels.get(name, 0)
                number = f"  {instances.get(name, 0):>10,}" * counted
                yield (
                    f"{train_id:>5}  {name:<{width}}{number}  {count:>15,}  {count / total:>8.3%}"
                )
        if content["ignored_pixels"]:
            ignored, index = content["ignored_pixels"], result.manifest.classes.ignore_index
            yield (
                f"{index:>5}  {'(ignored)':<{width}}{'':{12 * counted}}  {ignored:>15,}"
                f"  {ignored / total:>8.3%}"
            )
        unseen = [name for name in names[1:] if name not in pixels and name not in instances]
        if unseen:
            shown = ", ".join(unseen[:8]) + (" …" if len(unseen) > 8 else "")
            yield f"       without {'instances' if counted else 'pixels'}: {len(unseen)} ({shown})"
        yield ""
    for split in result.splits:
        manifest = split.manifest
        yield (
            f"{split.folder}: {manifest.samples:,} samples in {len(manifest.shards):,} shards, "
            f"{manifest.bytes / 1e6:,.1f} MB"
        )
    yield from (f"{n:>9,} {what}" for what, n in described(content["counts"]))
    if content["quarantined"]:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in content["quarantined"].items())
        yield f"quarantined: {reasons}"
    yield from (f"note: {note}" for note in result.notes)
    yield f"look at {content['report']}"


def advice(result: PrepareResult, max_bad: int) -> Iterator[str]:
    """Yield what to do about images that were left out, if they are too many."""
    if len(result.quarantined) > max_bad:
        lists = ", ".join(
            str(locate(split.folder) / QUARANTINE) for split in result.splits if split.quarantined
        )
        yield (
            f"{len(result.quarantined)} images were left out: see {lists}. Mend them and prepare "
            f"again with --overwrite, or accept them with --max-bad {len(result.quarantined)}"
        )
