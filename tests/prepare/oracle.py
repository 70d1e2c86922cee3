"""Masks painted the plain way, as COCO's own `annToMask` does: the oracle of `rasterize`.

Nothing of cocoseg is imported here.
"""

import numpy as np
from pycocotools import mask as coco_mask

IGNORED = 255


def coco_train_ids(categories):
    """Category id → train id: 1, 2, 3 … in ascending category id."""
    return {c: i for i, c in enumerate(sorted(entry["id"] for entry in categories), start=1)}


def instance_pixels(segmentation, height, width):
    """The pixels of one instance on the full canvas, bool (height, width)."""
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return coco_mask.decode(rle).astype(bool)


def paint(
    annotations,
    train_ids,
    height,
    width,
    overlap="area",
    crowd="paint",
    priorities=None,
    ignored_as=IGNORED,
):
    """The mask of one image; `annotations` in JSON order, with segmentation, category and crowd.

    `priorities` maps train ids to ranks: a higher one is painted later, whatever the areas say.
    """
    mask = np.zeros((height, width), np.uint8 if ignored_as == 255 else np.uint16)
    ranks = priorities or {}
    instances = []
    for position, annotation in enumerate(annotations):
        pixels = instance_pixels(annotation["segmentation"], height, width)
        area = int(pixels.sum()) if overlap == "area" else 0
        rank = ranks.get(train_ids[annotation["category_id"]], 0)
        instances.append((rank, -area, position, pixels, annotation))
    instances.sort(key=lambda instance: instance[:3])
    crowds = [instance for instance in instances if instance[4].get("iscrowd")]
    singles = [instance for instance in instances if not instance[4].get("iscrowd")]
    order = {
        "paint": instances,
        "beneath": crowds + singles,
        "ignore": crowds + singles,
        "drop": singles,
    }[crowd]
    for *_, pixels, annotation in order:
        ignored = crowd == "ignore" and annotation.get("iscrowd")
        mask[pixels] = ignored_as if ignored else train_ids[annotation["category_id"]]
    return mask
