"""What lies beside the shards: index, quarantine list, settings, report; the manifest last."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np

from .. import __version__
from ..config import to_yaml
from ..shards import manifest as shard_manifest
from ..shards.manifest import Manifest, ShardEntry, SourceEntry
from ..storage import Location, locate
from .build_folder import CONFIG, QUARANTINE
from .config import PrepareConfig
from .label_values import PRESETS, color_text
from .plan import BuildPlan, SplitPlan
from .report import write_report
from .shard import BuiltShard, shard_name


def draft_manifest(plan: BuildPlan, config: PrepareConfig) -> dict[str, Any]:
    """Return what the manifest says of inputs and settings; it tells one build from another."""
    named = config.classes if config.classes in ("auto", "coco", *PRESETS) else "file"
    labels = plan.labels
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
        "boxes": config.boxes,
        "check_images": config.check_images,
        "split": config.split,
        "group_by": config.group_by,
        "limit": config.limit,
        "only": config.only and locate(config.only).sha256(),
        "skip_empty": config.skip_empty,
        "max_side": config.max_side,
        "jpeg_quality": config.jpeg_quality if config.max_side else None,
        "masks": labels is not None,
        "image_suffix": config.image_suffix,
        "mask_suffix": config.mask_suffix,
        "colors": labels and {color_text(c): i for c, i in sorted(labels.colors.items())},
        "other_values": None if labels is None or labels.others is None else str(labels.others),
        "priorities": {
            plan.class_map.taxonomy.names[train_id]: rank
            for train_id, rank in plan.class_map.priorities.items()
        },
    }
    unset: tuple[object, ...] = (None, False, "header", "quarantine", "", {})
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
    libraries = ("pycocotools", "rlemasklib", "zlib-ng", "numpy", "pillow")
    return {
        "taxonomy": plan.class_map.taxonomy.to_dict(),
        "settings": settings,
        "sources": sources,
        "versions": {"cocoseg": __version__, **{name: version(name) for name in libraries}},
    }


def publish(
    plan: BuildPlan,
    config: PrepareConfig,
    folders: Sequence[Location],
    built: Sequence[BuiltShard],
    draft: Mapping[str, Any],
    check: Callable[[], None],
) -> list[Manifest]:
    """Write what lies beside the shards; each folder's manifest last.

    Parameters
    ----------
    folders
        Of the splits.
    built
        All shards, in order.
    draft
        See `draft_manifest`.
    check
        See `Hold.check`.

    Returns
    -------
    list
        The manifest of each folder.
    """
    check()
    manifests = []
    parts = list(_by_split(plan.splits, built))
    for (split, shards), folder in zip(parts, folders, strict=True):
        manifests.append(_describe(plan, split, shards, folder, draft))
        quarantined = [entry for shard in shards for entry in shard.quarantined]
        url = folder / QUARANTINE
        if quarantined:
            lines = b"".join(msgspec.json.encode(entry) + b"\n" for entry in quarantined)
            url.publish_bytes(lines)
        else:  # a killed run may have written one, before its images were fixed
            url.remove()
    output = locate(str(config.output))
    again = config.model_copy(update={"overwrite": False})  # asked for once
    settings = to_yaml({"prepare": again}).encode()
    (output / CONFIG).publish_bytes(settings)
    write_report(plan, output, folders, manifests, built)
    check()
    for manifest, folder in zip(manifests, folders, strict=True):
        (folder / shard_manifest.MANIFEST_NAME).publish_bytes(manifest.to_json().encode())
    return manifests


def _by_split(
    splits: Sequence[SplitPlan], built: Sequence[BuiltShard]
) -> Iterator[tuple[SplitPlan, Sequence[BuiltShard]]]:
    first = 0
    for split in splits:
        yield split, built[first : first + split.shards]
        first += split.shards


def _describe(
    plan: BuildPlan,
    split: SplitPlan,
    built: Sequence[BuiltShard],
    folder: Location,
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
        for source in plan.sources:
            counts["duplicate_annotation_ids"] += source.duplicate_annotation_ids
            counts.update(source.forms)
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
        masks=plan.labeled,
    )
