"""A sliding window over large photographs: tiles that overlap and are blended smoothly."""

# H W pixels of the photograph

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..model.fuse import Piece, probability_strips

Pieces = Callable[[Sequence[NDArray[np.uint8]]], list[tuple[Tensor, ...]]]
"""Photographs, uint8 RGB (H, W, 3) each, to the logits of every view of each."""


@dataclass(frozen=True, slots=True)
class Tiling:
    """Squares of `size` pixels, neighbours overlapping by at least a share of it."""

    size: int
    overlap: float
    """0 … below 1."""

    def axis(self, length: int) -> list[tuple[int, NDArray[np.float64]]]:
        """Cut one axis: where each tile starts, and what each of its pixels counts.

        Tiles are spread evenly. Over an overlap a tile's weight rises as sin² of the way into it;
        the weights of all tiles are divided by their sum, so that they add up to 1 at each pixel.
        """
        size = min(self.size, length)
        step = max(1, size - math.ceil(size * self.overlap))
        count = 1 + math.ceil((length - size) / step)
        starts = [round(i * (length - size) / max(1, count - 1)) for i in range(count)]
        total = np.zeros(length)
        raw = []
        for i, start in enumerate(starts):
            weight = np.ones(size)
            into = np.arange(size) + 0.5
            if i > 0:
                shared = max(1, starts[i - 1] + size - start)
                weight *= np.sin(np.minimum(into / shared, 1) * np.pi / 2) ** 2
            if i < count - 1:
                shared = max(1, start + size - starts[i + 1])
                weight *= np.sin(np.minimum(into[::-1] / shared, 1) * np.pi / 2) ** 2
            total[start : start + size] += weight
            raw.append(weight)
        return [
            (start, weight / total[start : start + size])
            for start, weight in zip(starts, raw, strict=True)
        ]

    def strips(self, image: NDArray[np.uint8], predict: Pieces) -> Iterator[Tensor]:
        """Yield the blended probabilities of a photograph's rows, from the top.

        The logits of the tiles below each other that touch a row are held, and no others.

        Yields
        ------
        Tensor
            As `fuse.probability_strips`.
        """
        height, width = image.shape[:2]
        down, across = self.axis(height), self.axis(width)
        size_down, size_across = (min(self.size, length) for length in (height, width))
        edges = sorted({start + end for start, _ in down for end in (0, size_down)})
        alive: dict[int, list[Piece]] = {}
        for first, last in itertools.pairwise(edges):
            touching = [(t, w) for t, w in down if t < last and t + size_down > first]
            for gone in alive.keys() - {top for top, _ in touching}:
                del alive[gone]
            for top, weight_down in touching:
                if top in alive:
                    continue
                views = predict(
                    [image[top : top + size_down, left : left + size_across] for left, _ in across]
                )
                alive[top] = [
                    Piece(
                        logits,
                        top,
                        left,
                        size_down,
                        size_across,
                        torch.from_numpy(weight_down).to(logits[0]),
                        torch.from_numpy(weight_across).to(logits[0]),
                    )
                    for logits, (left, weight_across) in zip(views, across, strict=True)
                ]
            pieces = [piece for row in alive.values() for piece in row]
            yield from probability_strips(pieces, range(first, last), width)
