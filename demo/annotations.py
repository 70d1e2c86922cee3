"""Annotates a drawn scene as COCO would have it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .composition import Scene
from .outlines import Outline, trace


def annotate(scene: Scene, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Annotate a scene as COCO's annotators would.

    Polygons around what is visible, several if something in front cuts an object in parts; at times
    the whole shape, where what lies in front will be painted over it anyway; run lengths (RLE),
    compressed or not, where the object has a hole; uncompressed run lengths for crowds.

    Returns
    -------
    list of dict
        COCO annotations without ids, the category by name, in shuffled order.
    """
    annotations = [_annotation(scene, number, rng) for number in range(len(scene.instances))]
    return [annotations[k] for k in rng.permutation(len(annotations))]


def _annotation(scene: Scene, number: int, rng: np.random.Generator) -> dict[str, Any]:
    instance = scene.instances[number]
    height, width = scene.owner.shape
    visible = scene.owner == number
    coverage = instance.coverage.copy()
    full = instance.coverage >= 0.5
    hiders = []
    for other in scene.instances[number + 1 :]:
        coverage *= 1 - other.coverage
        if np.any(full & (other.coverage >= 0.5)):
            hiders.append(other)
    outlines = () if instance.is_crowd else trace(visible, coverage)
    # The whole shape may stand only where the mask contract paints it before all that hides it; a
    # tenth is left for the pixels by which two rasterizations may differ.
    if outlines and hiders and all(other.area < 0.9 * instance.area for other in hiders):
        whole = trace(full, instance.coverage)
        if not _has_hole(whole) and (_has_hole(outlines) or rng.random() < 0.35):
            visible, outlines = full, whole
    compressed = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
    segmentation: Any
    if outlines and not _has_hole(outlines):
        segmentation = [outline.points.ravel().tolist() for outline in outlines]
        painted = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        corners = np.concatenate([outline.points for outline in outlines])
        low, high = corners.min(0), corners.max(0)
        bbox = [float(v) for v in (*low, *(high - low).round(2))]
    else:
        painted = compressed
        bbox = [float(v) for v in coco_mask.toBbox(compressed)]
        segmentation = {"size": [height, width], "counts": compressed["counts"].decode("ascii")}
        if instance.is_crowd or rng.random() < 0.4:
            segmentation["counts"] = run_lengths(visible)
    return {
        "category": instance.category,
        "segmentation": segmentation,
        "area": float(coco_mask.area(painted)),
        "bbox": bbox,
        "iscrowd": int(instance.is_crowd),
    }


def _has_hole(outlines: Sequence[Outline]) -> bool:
    return any(outline.is_hole for outline in outlines)


def run_lengths(region: NDArray[np.bool_]) -> list[int]:
    """Count runs of outside and inside in turn, column by column: COCO's uncompressed RLE."""
    flat = region.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    lengths = np.diff(bounds).tolist()
    return [0, *lengths] if flat[0] else [int(n) for n in lengths]
