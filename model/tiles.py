"""A sliding window over large images: tiles that overlap and are blended smoothly."""

# H W pixels of the image

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fuse import Piece, probability_strips
from .pipeline import read_ahead
from .view import View

Inputs = TypeVar("Inputs")


@dataclass(frozen=True, slots=True)
class Tiling:
    """Squares of `size` pixels, neighbors overlapping by at least a share of it."""

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

    def strips(
        self,
        image: NDArray[np.uint8],
        prepare: Callable[[Sequence[NDArray[np.uint8]]], Inputs],
        predict: Callable[[Inputs], Sequence[Sequence[Tensor]]],
        device: torch.device,
        views: Sequence[View] | None = None,
        numbers: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the blended probabilities of an image's rows, from the top.

        The logits of the tiles that touch a row are held, and no others. The tiles below are
        prepared by another thread meanwhile.

        Parameters
        ----------
        prepare
            Tiles, uint8 RGB (H, W, 3) each, to what `predict` takes.
        predict
            To the logits of every view of each tile.
        device
            Where those are.
        views
            How the logits are mirrored; None: not at all.
        numbers
            Size of a strip; by default what suits the device.

        Yields
        ------
        Tensor
            As `fuse.probability_strips`.
        """
        height, width = image.shape[:2]
        down, across = self.axis(height), self.axis(width)
        size_down, size_across = (min(self.size, length) for length in (height, width))

        def prepared(row: tuple[int, NDArray[np.float64]]) -> Inputs:
            tiles = image[row[0] : row[0] + size_down]
            return prepare([tiles[:, left : left + size_across] for left, _ in across])

        edges = sorted({start + end for start, _ in down for end in (0, size_down)})
        weights_across: list[Tensor] = []
        alive: list[list[Piece]] = []
        coming = read_ahead(down, prepared, device)
        for first, last in itertools.pairwise(edges):
            alive = [row for row in alive if row[0].top + size_down > first]
            if any(top == first for top, _ in down):  # a row of tiles begins here
                (top, weight_down), inputs = next(coming)
                row = predict(inputs)
                like = row[0][0]
                if not weights_across:
                    weights_across = [_on_device(weight, like) for _, weight in across]
                here = _on_device(weight_down, like)
                places = zip(row, across, weights_across, strict=True)
                alive.append(
                    [
                        Piece(logits, top, left, size_down, size_across, here, weights, views)
                        for logits, (left, _), weights in places
                    ]
                )
            pieces = [piece for row in alive for piece in row]
            yield from probability_strips(pieces, range(first, last), width, numbers)


def _on_device(weights: NDArray[np.float64], like: Tensor) -> Tensor:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return torch.from_numpy(weights).to(dtype).to(like.device, non_blocking=True)
