"""Annotates a drawn scene as COCO would have it."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .composition import Scene
from .sketch import Floats

FINER = 4  # outlines are traced on pixels this many times smaller
TOLERANCE = 0.3  # pixels; how far a simplified outline may leave the traced one
SPECK = 2.0  # square pixels; smaller parts and holes are not outlined, as no annotator would


@dataclass(frozen=True, slots=True)
class Outlines:
    """The lines around a region, as an annotator would click them.

    Attributes
    ----------
    parts
        Closed lines: float64, shape (n, 2), x and y [pixels] from the image's top left corner.
    has_hole
        Whether the region surrounds a part of the background.
    """

    parts: list[NDArray[np.float64]]
    has_hole: bool


def trace(coverage: Floats) -> Outlines:
    """Outline the region where the coverage (H, W) of the pixels, 0-1, is one half or more."""
    fine = cv2.resize(coverage, None, fx=FINER, fy=FINER, interpolation=cv2.INTER_LINEAR)
    region = (fine >= 0.5).astype(np.uint8)
    lines, tree = cv2.findContours(region, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts, has_hole = [], False
    for line, (*_, parent) in zip(lines, () if tree is None else tree[0], strict=True):
        points = cv2.approxPolyDP(line, TOLERANCE * FINER, closed=True)[:, 0]
        if cv2.contourArea(points) < SPECK * FINER**2:
            continue
        if parent >= 0:
            has_hole = True
        else:
            parts.append(((points + 0.5) / FINER).round(2))
    return Outlines(parts, has_hole)


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
    outlines = trace(coverage)
    # The whole shape may stand only where the mask contract paints it before all that hides it; a
    # tenth is left for the pixels by which two rasterizations may differ.
    if hiders and all(other.area < 0.9 * instance.area for other in hiders):
        whole = trace(instance.coverage)
        if not whole.has_hole and (outlines.has_hole or rng.random() < 0.35):
            visible, outlines = full, whole
    compressed = coco_mask.encode(np.asfortranarray(visible.astype(np.uint8)))
    segmentation: Any
    if outlines.parts and not outlines.has_hole and not instance.is_crowd:
        segmentation = [points.ravel().tolist() for points in outlines.parts]
        painted = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
        corners = np.concatenate(outlines.parts)
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


def run_lengths(region: NDArray[np.bool_]) -> list[int]:
    """Count runs of outside and inside in turn, column by column: COCO's uncompressed RLE."""
    flat = region.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    bounds = np.concatenate([[0], changes, [flat.size]])
    lengths = np.diff(bounds).tolist()
    return [0, *lengths] if flat[0] else [int(n) for n in lengths]
