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


def paint(annotations, train_ids, height, width, overlap="area", crowd="paint"):
    """The mask of one image; `annotations` in JSON order, with segmentation, category and crowd."""
    mask = np.zeros((height, width), np.uint8)
    instances = []
    for position, annotation in enumerate(annotations):
        pixels = instance_pixels(annotation["segmentation"], height, width)
        area = int(pixels.sum()) if overlap == "area" else 0
        instances.append((-area, position, pixels, annotation))
    instances.sort(key=lambda instance: instance[:2])
    crowds = [instance for instance in instances if instance[3].get("iscrowd")]
    singles = [instance for instance in instances if not instance[3].get("iscrowd")]
    order = {
        "paint": instances,
        "beneath": crowds + singles,
        "ignore": crowds + singles,
        "drop": singles,
    }[crowd]
    for _, _, pixels, annotation in order:
        ignored = crowd == "ignore" and annotation.get("iscrowd")
        mask[pixels] = IGNORED if ignored else train_ids[annotation["category_id"]]
    return mask
