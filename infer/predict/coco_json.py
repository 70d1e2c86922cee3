"""``coco.json``: predictions as a COCO data set, with a score for each annotation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle

from ...errors import ConfigError
from ...shards.png import Mask
from ...taxonomy import Taxonomy

SEGMENT_KEYS = ("category_id", "segmentation", "area", "bbox", "iscrowd", "score")
"""What `segments` says of each."""
Entry = tuple[str, int | None]
"""``file_name`` of an image, and its id where one is known."""


def category_ids(taxonomy: Taxonomy) -> list[int | None]:
    """Return the category id of each train id; None for background.

    Raises
    ------
    ConfigError
        If another class has no category id, or several.
    """
    first, *rest = [entry.category_ids for entry in taxonomy.classes]
    odd = [
        entry.name for entry in taxonomy.classes[bool(not first) :] if len(entry.category_ids) != 1
    ]
    if odd:
        raise ConfigError(
            f"category ids were asked for, and {', '.join(odd[:5])} {'…' * (len(odd) > 5)} of the "
            "checkpoint has none, or several: use train ids (infer.ids: train, no --coco-json)"
        )
    ids = [one[0] for one in rest]
    if max((*first, *ids), default=0) >= 65535:
        raise ConfigError(f"category id {max((*first, *ids))} does not fit into a mask of 16 bits")
    return [first[0] if first else None, *ids]


def segments(
    mask: Mask, confidence: NDArray[np.float32], ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Return an annotation without ids for each class in a mask.

    Parameters
    ----------
    mask
        Train ids, shape (H, W).
    confidence
        Probability of the mask's class, shape (H, W).
    ids
        See `category_ids`.

    Returns
    -------
    list
        ``category_id``, ``segmentation`` (compressed RLE), ``area`` [pixels], ``bbox`` (x, y,
        width, height [pixels]) and ``score``, the mean confidence.
    """
    found = []
    for train_id in np.unique(mask).tolist():
        if train_id >= len(ids) or ids[train_id] is None:  # ignored, or background
            continue
        region = mask == train_id
        encoded = rle.encode(np.asfortranarray(region, dtype=np.uint8))
        found.append(
            {
                "category_id": ids[train_id],
                "segmentation": {
                    "size": list(map(int, encoded["size"])),
                    "counts": encoded["counts"].decode(),
                },
                "area": int(rle.area(encoded)),
                "bbox": [float(value) for value in rle.toBbox(encoded)],
                "iscrowd": 0,
                "score": round(float(confidence[region].mean(dtype=np.float64)), 6),
            }
        )
    return found


def coco_dataset(
    taxonomy: Taxonomy,
    entries: Sequence[Entry],
    records: Sequence[Mapping[str, Any]],
    of_images: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[str, Any]:
    """Return the content of ``coco.json``.

    Images keep their ids where all have one and no two the same; else they are numbered.

    Parameters
    ----------
    entries, records, of_images
        Of each image: what it is called; ``height`` and ``width`` [pixels]; its `segments`.
    """
    known = [image_id for _, image_id in entries if image_id is not None]
    unique = len(set(known)) == len(entries)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, ((file_name, image_id), record, found) in enumerate(
        zip(entries, records, of_images, strict=True), start=1
    ):
        chosen = image_id if unique else number
        size = {"height": record["height"], "width": record["width"]}
        images.append({"id": chosen, "file_name": file_name, **size})
        for one in found:
            annotations.append({"id": len(annotations) + 1, "image_id": chosen, **one})
    categories = [
        {"id": category_id, "name": entry.name}
        for category_id, entry in zip(category_ids(taxonomy), taxonomy.classes, strict=True)
        if category_id is not None
    ]
    return {"images": images, "categories": categories, "annotations": annotations}
