"""From logits to the photograph's pixels, by strips of rows: upsampled, averaged, never all of it.

A full-resolution map of 81 classes takes 324 bytes a pixel. Here a few rows of it exist at a time,
classes innermost, small enough for a CPU's cache; what is wanted of them is kept.
"""

# C classes, H W pixels of the photograph, h w of a view's logits, R rows of a strip

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Numbers of a piece's rows: on a CPU what its second-level cache holds, on a GPU what fills it.
_STRIP_CPU, _STRIP_GPU = 2**19, 2**26
_MOST = 16  # times as many of all pieces together: a photograph may be wide, and its pieces narrow


@dataclass(frozen=True, slots=True)
class Piece:
    """What the network says of a rectangle of a photograph, in one or several views."""

    logits: tuple[Tensor, ...]
    """Of each view, mirrored back: shape (C, h, w), each with an h and w of its own."""
    top: int
    left: int
    height: int
    width: int
    """Where it lies [pixels]."""
    weight_down: Tensor | None = None
    weight_across: Tensor | None = None
    """What rows and columns count where pieces overlap, shapes (height,) and (width,): the products
    of all pieces add up to 1 at each pixel. None: there is no other piece."""


def class_strips(logits_Chw: Tensor, height: int, width: int) -> Iterator[Tensor]:
    """Yield the upsampled logits of one view of a whole photograph, from the top.

    Bilinear, as PyTorch's `interpolate` without `align_corners`.

    Yields
    ------
    Tensor
        float32 (float64 of such logits), shape (R, W, C).
    """
    rows = _Rows(logits_Chw, height, width)
    for strip in _strips(range(height), width, width, logits_Chw):
        yield rows.upsampled(strip)


def probability_strips(pieces: Sequence[Piece], rows: range, width: int) -> Iterator[Tensor]:
    """Yield the mean probability of all views, each upsampled as `class_strips` before softmax.

    Parameters
    ----------
    pieces
        All that touch the rows, with equally many views each.
    rows
        Of the photograph, one after the other.
    width
        W.

    Yields
    ------
    Tensor
        float32 (float64 of such logits), shape (R, W, C).
    """
    views = [[_Rows(one, piece.height, piece.width) for one in piece.logits] for piece in pieces]
    widest = max(piece.width for piece in pieces)
    for strip in _strips(rows, widest, width, pieces[0].logits[0]):
        mean: Tensor | None = None
        for piece, of_piece in zip(pieces, views, strict=True):
            here = range(max(strip.start, piece.top), min(strip.stop, piece.top + piece.height))
            if not here:
                continue
            inside = range(here.start - piece.top, here.stop - piece.top)
            total = of_piece[0].upsampled(inside).softmax(dim=2)
            for view in of_piece[1:]:
                total += view.upsampled(inside).softmax(dim=2)
            if len(of_piece) > 1:
                total /= len(of_piece)
            if piece.weight_down is None or piece.weight_across is None:
                mean = total
                continue
            total *= piece.weight_down[inside.start : inside.stop, None, None]
            total *= piece.weight_across[:, None]
            if mean is None:
                mean = total.new_zeros(len(strip), width, total.shape[2])
            columns = slice(piece.left, piece.left + piece.width)
            mean[here.start - strip.start : here.stop - strip.start, columns] += total
        assert mean is not None, "no piece touches these rows"
        yield mean


class _Rows:
    """A view's logits, of which any rows can be had at the photograph's size."""

    def __init__(self, logits_Chw: Tensor, height: int, width: int) -> None:
        if logits_Chw.dtype in (torch.float16, torch.bfloat16):
            logits_Chw = logits_Chw.float()
        self._logits_hwC = logits_Chw.permute(1, 2, 0).contiguous()
        low, narrow = self._logits_hwC.shape[:2]
        self._above_H, self._share_H = _places(height, low, logits_Chw)
        self._left_W, self._share_W = _places(width, narrow, logits_Chw)

    def upsampled(self, rows: range) -> Tensor:
        """Return rows of the photograph, shape (R, W, C)."""
        part, logits = slice(rows.start, rows.stop), self._logits_hwC
        above = self._above_H[part]
        below = (above + 1).clamp_(max=len(logits) - 1)
        x_RwC = torch.lerp(logits[above], logits[below], self._share_H[part, None, None])
        if x_RwC.shape[1] == 1:
            return x_RwC.expand(-1, len(self._left_W), -1).contiguous()
        steps_RwC = x_RwC[:, 1:] - x_RwC[:, :-1]
        left_RWC = x_RwC.index_select(1, self._left_W)
        return left_RWC.addcmul_(steps_RwC.index_select(1, self._left_W), self._share_W[:, None])


def _places(many: int, few: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each of `many` pixels lies behind, of `few`, and how far, 0…1 of a step.

    In float64: PyTorch's own float32 is wrong by a hundred-thousandth of a step far from 0.
    """
    at = (torch.arange(many, dtype=torch.float64) + 0.5) * (few / many) - 0.5
    at = at.clamp_(0, few - 1)
    behind = at.floor().clamp_(max=max(0, few - 2))
    return behind.long().to(like.device), (at - behind).to(like.device, like.dtype)


def _strips(rows: range, widest: int, width: int, like_Chw: Tensor) -> Iterator[range]:
    numbers, classes = _STRIP_GPU if like_Chw.is_cuda else _STRIP_CPU, len(like_Chw)
    length = max(1, min(numbers // (widest * classes), _MOST * numbers // (width * classes)))
    for first in range(rows.start, rows.stop, length):
        yield range(first, min(first + length, rows.stop))


def best_classes(strips: Iterator[Tensor], height: int, width: int) -> NDArray[np.integer]:
    """Return the class of the largest value of each pixel; of equal ones, any.

    Parameters
    ----------
    strips
        Of all rows, each (R, W, C).

    Returns
    -------
    ndarray
        uint8, or uint16 beyond 256 classes, shape (H, W).
    """
    best = np.empty((height, width), np.uint8)
    first = 0
    for strip_RWC in strips:
        if strip_RWC.shape[2] > 256 and best.dtype == np.uint8:
            best = best.astype(np.uint16)
        best[first : first + len(strip_RWC)] = strip_RWC.max(dim=2).indices.cpu().numpy()
        first += len(strip_RWC)
    return best
