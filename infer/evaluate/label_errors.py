"""Where the network contradicts the annotations: label quality, and regions to look at first.

Source: Lad and Mueller, "Estimating label quality and errors in semantic segmentation data via any
model" (2023): the soft-minimum of the probability of the annotated class. Regions, and the order in
which they are listed, are our own.
"""

# C classes, H W pixels, N pixels in a row

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from ...model.score import Scored

TEMPERATURE = 0.1
"""Of the soft-minimum; the paper's."""
LISTED = 1000
"""How many suspicious regions are listed."""
_SMALLEST = 0.0005  # of an image's pixels, and 16 at least: smaller regions are not suspected
_HALF = 0.002  # of an image's pixels: the inscribed circle of this area halves a suspicion
_OUTLINE = 0.008  # of the image's diagonal: the largest radius inside a region called outline
_MARGIN = 0.1  # regions with less are left out: either class is possible there

Kind: TypeAlias = Literal["missing object", "wrong class", "extra object", "outline"]


def label_quality(
    truth: NDArray[np.integer], truth_probability: NDArray[np.float32], num_classes: int
) -> NDArray[np.float64]:
    """Return how well the annotation of each class in an image agrees with the network.

    Parameters
    ----------
    truth
        Train ids, shape (H, W); other values are left out.
    truth_probability
        Of the annotated class, float32, shape (H, W), 0…1.

    Returns
    -------
    ndarray
        Shape (C + 1,): the soft-minimum over the pixels of each class, 0…1; the last over all
        pixels. NaN where there are none.
    """
    valid = truth.ravel() < num_classes
    truth_N = truth.ravel()[valid].astype(np.int64)
    p_N = truth_probability.ravel()[valid].astype(np.float64)
    weight_N = np.exp(-p_N / TEMPERATURE)
    weights = np.bincount(truth_N, weight_N, num_classes)
    sums = np.bincount(truth_N, weight_N * p_N, num_classes)
    weights, sums = np.append(weights, weights.sum()), np.append(sums, sums.sum())
    quality = np.full(num_classes + 1, np.nan)
    np.divide(sums, weights, out=quality, where=weights > 0)
    return quality


@dataclass(frozen=True, slots=True)
class SuspiciousRegion:
    """A connected region that is annotated as one class and predicted as another."""

    position: int
    """Of the sample in the shards."""
    key: str
    file_name: str
    kind: Kind
    annotated: int
    """Train id."""
    predicted: int
    """Train id."""
    suspicion: float
    """0…1; see `suspicious_regions`."""
    pixels: int
    box: tuple[int, int, int, int]
    """Left, top, width, height [pixels]."""

    @property
    def rank(self) -> tuple[float, int, tuple[int, int, int, int]]:
        """The sort key: the most suspicious first, equal ones in the order of the shards."""
        return -self.suspicion, self.position, self.box


def suspicious_regions(scored: Scored, file_name: str) -> Iterator[SuspiciousRegion]:
    """Yield the regions of an image where the network contradicts the annotation.

    A region is a connected component (8 neighbors) of the pixels of one annotated and one predicted
    class. Its suspicion is m · a ÷ (a + a₀): m is the mean over its pixels of the predicted minus
    the annotated class's probability, a the area of its largest inscribed circle, a₀ 0.2 % of
    the image. So a region counts if the network is sure of it, and if it is larger than the
    seams that outlines leave.

    Without probabilities there is none.
    """
    if scored.confidence is None or scored.truth_probability is None:
        return
    truth, prediction = scored.sample.mask, scored.mask
    num_classes = len(scored.confusion)
    height, width = truth.shape
    smallest = max(16.0, _SMALLEST * truth.size)
    half, outline = _HALF * truth.size, _OUTLINE * float(np.hypot(height, width))
    wrong = (truth != prediction) & (truth < num_classes) & (prediction < num_classes)
    pair = np.where(wrong, truth.astype(np.int64) * num_classes + prediction, -1)
    pairs, counts = np.unique(pair[wrong], return_counts=True)
    margin = scored.confidence - scored.truth_probability
    for code in pairs[counts >= smallest].tolist():
        annotated, predicted = divmod(code, num_classes)
        count, labels, stats, _ = cv2.connectedComponentsWithStats((pair == code).astype(np.uint8))
        for label in range(1, count):
            left, top, across, down, pixels = stats[label].tolist()
            if pixels < smallest:
                continue
            window = (slice(top, top + down), slice(left, left + across))
            region = labels[window] == label
            mean = float(margin[window][region].mean(dtype=np.float64))
            if mean < _MARGIN:
                continue
            padded = np.pad(region.astype(np.uint8), 1)
            radius = float(cv2.distanceTransform(padded, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).max())
            circle = np.pi * radius**2
            kind: Kind = "wrong class"
            if radius <= outline:
                kind = "outline"
            elif annotated == 0:
                kind = "missing object"
            elif predicted == 0:
                kind = "extra object"
            yield SuspiciousRegion(
                position=scored.position,
                key=scored.sample.key,
                file_name=file_name,
                kind=kind,
                annotated=annotated,
                predicted=predicted,
                suspicion=mean * circle / (circle + half),
                pixels=pixels,
                box=(left, top, across, down),
            )


def most_suspicious(regions: Iterable[SuspiciousRegion]) -> list[SuspiciousRegion]:
    """Return the `LISTED` most suspicious regions in their order.

    The first of all are among the first of each part: so parts can be dealt to processes.
    """
    return heapq.nsmallest(LISTED, regions, key=lambda region: region.rank)
