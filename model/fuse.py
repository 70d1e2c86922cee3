"""From logits to the image's pixels, by strips of rows: upsampled, averaged, never all of it.

A full-resolution map of 81 classes takes 324 bytes per pixel. Here a few rows of it exist at a
time, classes innermost, small enough for a CPU's cache; the requested values are taken from each
strip.
"""

# V views of one size, C classes, H W pixels of the image, h w of a view's logits, R rows of a strip

import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .counts import loss_units, of_truth
from .view import View

# Numbers of a piece's rows: on a CPU what its second-level cache holds, on a GPU what fills it.
_STRIP_CPU, _STRIP_GPU = 2**19, 2**26
_MOST = 16  # times as many of all pieces together: an image may be wide, and its pieces narrow
_SIZES = 128  # pairs of lengths whose coordinates are kept


class Piece:
    """What the network says of a rectangle of an image, in one or several views.

    Parameters
    ----------
    logits
        Of each view: shape (C, h, w), each with an h and w of its own.
    top, left, height, width
        Where it lies [pixels].
    weight_down, weight_across
        Weights of rows and columns where pieces overlap, shapes (height,) and (width,): the
        products of all pieces add up to 1 at each pixel. None: there is no other piece.
    views
        How the logits are mirrored; None: not at all.
    """

    def __init__(
        self,
        logits: Sequence[Tensor],
        top: int,
        left: int,
        height: int,
        width: int,
        weight_down: Tensor | None = None,
        weight_across: Tensor | None = None,
        views: Sequence[View] | None = None,
    ) -> None:
        self.top, self.left, self.height, self.width = top, left, height, width
        self.weight_down, self.weight_across = weight_down, weight_across
        self.num_views = len(logits)
        self.like = logits[0]
        views = views or [View()] * len(logits)
        self._views = [_Views(group, height, width) for group in _of_one_size(logits, views)]

    def mean_probabilities(self, rows: range) -> Tensor:
        """Return the mean over the views, shape (R, width, C); `rows` count from the image's top.

        Weighted, where the piece has weights.
        """
        inside = slice(rows.start - self.top, rows.stop - self.top)
        total: Tensor | None = None
        for views in self._views:
            for one in views.upsampled(inside).softmax(dim=3):
                total = one if total is None else total.add_(one)
        assert total is not None
        if self.num_views > 1:
            total /= self.num_views
        if self.weight_down is not None and self.weight_across is not None:
            total *= self.weight_down[inside, None, None]
            total *= self.weight_across[:, None]
        return total


def class_strips(
    logits_Chw: Tensor,
    height: int,
    width: int,
    numbers: int | None = None,
    view: View = View(),  # noqa: B008 - frozen
) -> Iterator[Tensor]:
    """Yield the upsampled logits of one view of a whole image, from the top.

    Bilinear, as PyTorch's `interpolate` without `align_corners`.

    Parameters
    ----------
    numbers
        Size of a strip; by default what suits the device.
    view
        How the logits are mirrored.

    Yields
    ------
    Tensor
        float32 (float64 of such logits), shape (R, W, C).
    """
    views = _Views([(logits_Chw, view)], height, width)
    for strip in _strips(range(height), width, width, logits_Chw, numbers):
        yield views.upsampled(slice(strip.start, strip.stop))[0]


def probability_strips(
    pieces: Sequence[Piece], rows: range, width: int, numbers: int | None = None
) -> Iterator[Tensor]:
    """Yield the mean probability of all views, each upsampled as `class_strips` before softmax.

    Parameters
    ----------
    pieces
        All that touch the rows, with equally many views each.
    rows
        Of the image, consecutive.
    width
        W.
    numbers
        Size of a strip; by default what suits the device.

    Yields
    ------
    Tensor
        float32 (float64 of such logits), shape (R, W, C).
    """
    widest = max(piece.width for piece in pieces)
    for strip in _strips(rows, widest, width, pieces[0].like, numbers):
        mean: Tensor | None = None
        for piece in pieces:
            here = range(max(strip.start, piece.top), min(strip.stop, piece.top + piece.height))
            if not here:
                continue
            found = piece.mean_probabilities(here)
            if piece.weight_down is None:
                mean = found
                continue
            if mean is None:
                mean = found.new_zeros(len(strip), width, found.shape[2])
            columns = slice(piece.left, piece.left + piece.width)
            mean[here.start - strip.start : here.stop - strip.start, columns] += found
        assert mean is not None, "no piece touches these rows"
        yield mean


_Mirrored = Sequence[tuple[Tensor, View]]
"""Logits, shape (C, h, w) each, and how they are mirrored."""


def _of_one_size(logits: Sequence[Tensor], views: Sequence[View]) -> Iterator[_Mirrored]:
    """Group consecutive views that are upsampled together.

    On a GPU those of one size: fewer kernels. On a CPU none: a strip fits into its cache.
    """
    pairs = list(zip(logits, views, strict=True))
    if logits[0].device.type == "cpu":
        return iter([[pair] for pair in pairs])
    return (list(group) for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].shape))


class _Views:
    """Logits of views of one size, of which any rows can be had at the image's size."""

    def __init__(self, logits: _Mirrored, height: int, width: int) -> None:
        upright = [view.mirror(one_Chw.permute(1, 2, 0), 0, 1) for one_Chw, view in logits]
        stacked_VhwC = upright[0][None] if len(upright) == 1 else torch.stack(upright)
        if stacked_VhwC.dtype in (torch.float16, torch.bfloat16):
            stacked_VhwC = stacked_VhwC.float()
        self._logits_VhwC = stacked_VhwC.contiguous()
        low, narrow = self._logits_VhwC.shape[1:3]
        device, dtype = stacked_VhwC.device, stacked_VhwC.dtype
        self._down = _coordinates(height, low, device, dtype)
        self._across = _coordinates(width, narrow, device, dtype)

    def upsampled(self, rows: slice) -> Tensor:
        """Return rows of the image, shape (V, R, W, C)."""
        logits, down, across = self._logits_VhwC, self._down, self._across
        x_VRwC = torch.lerp(
            logits.index_select(1, down.before[rows]),
            logits.index_select(1, down.after[rows]),
            down.share[rows, None, None],
        )
        if x_VRwC.shape[2] == 1:
            return x_VRwC.expand(-1, -1, len(across.before), -1).contiguous()
        steps_VRwC = x_VRwC[:, :, 1:] - x_VRwC[:, :, :-1]
        left_VRWC = x_VRwC.index_select(2, across.before)
        steps_VRWC = steps_VRwC.index_select(2, across.before)
        return left_VRWC.addcmul_(steps_VRWC, across.share[:, None])


@dataclass(frozen=True, slots=True)
class _Coordinates:
    """Where many pixels of an axis lie among few."""

    before: Tensor
    """The one before each, int64; the last but one at most."""
    after: Tensor
    """The next one, the last at most."""
    share: Tensor
    """How far each is on its way to the next, 0…1."""


@functools.lru_cache(_SIZES)
def _coordinates(many: int, few: int, device: torch.device, dtype: torch.dtype) -> _Coordinates:
    """Compute coordinates on the device itself: a copy from the host would have to be waited for.

    In float64: PyTorch's own float32 is wrong by a hundred-thousandth of a step far from 0.
    """
    exact = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    at = (torch.arange(many, dtype=torch.float64, device=exact) + 0.5) * (few / many) - 0.5
    at = at.clamp_(0, few - 1)
    before = at.floor().clamp_(max=max(0, few - 2))
    after = (before + 1).clamp_(max=few - 1)
    share = (at - before).to(dtype)
    return _Coordinates(before.long().to(device), after.long().to(device), share.to(device))


def strip_numbers(device: torch.device) -> int:
    """Return how many numbers a strip of one piece has on a device."""
    return _STRIP_CPU if device.type == "cpu" else _STRIP_GPU


def _strips(
    rows: range, widest: int, width: int, like_Chw: Tensor, numbers: int | None
) -> Iterator[range]:
    numbers, classes = numbers or strip_numbers(like_Chw.device), len(like_Chw)
    length = max(1, min(numbers // (widest * classes), _MOST * numbers // (width * classes)))
    for first in range(rows.start, rows.stop, length):
        yield range(first, min(first + length, rows.stop))


@dataclass(frozen=True, slots=True)
class Readings:
    """What is taken from all strips of an image; tensors on their device."""

    mask: Tensor
    """Class of the largest value, of equal ones any: uint8, or int32 beyond 256 classes, (H, W)."""
    confidence: Tensor | None
    """Probability of that class, float32, shape (H, W)."""
    probabilities: NDArray[np.float16] | None
    """Of all classes, shape (H, W, C), on the host."""
    truth_probability: Tensor | None
    """Probability of the pixel's true class, float32, shape (H, W); 0 where the truth has none."""
    loss: Tensor | None
    """Cross entropy of the pixels' truth, added up; see `loss_units`."""
    finite: Tensor
    """Whether the largest value is a finite number at every pixel: a bool scalar. NaN and +inf in
    any class show there."""


def read_strips(
    strips: Iterable[Tensor],
    size: tuple[int, int],
    *,
    of_logits: bool,
    confidence: bool = False,
    probabilities: bool = False,
    truth: Tensor | None = None,
    loss: bool = False,
) -> Readings:
    """Take what is requested from strips of probabilities, or of one view's logits.

    The mask is that of the logits even where probabilities are requested: those of logits that
    hardly differ are equal in float32, and another class would win.

    Parameters
    ----------
    strips
        Of all rows, each (R, W, C).
    size
        (H, W).
    truth
        Train ids, shape (H, W): with `confidence`, their probability is taken too.
    loss
        Whether the loss of the truth is added up, from logits.
    """
    mask = sure = own = every = total = added = None
    first = 0
    for strip_RWC in strips:
        rows = slice(first, first + len(strip_RWC))
        first = rows.stop
        classes, device = strip_RWC.shape[2], strip_RWC.device
        if mask is None:
            mask = torch.empty(
                size, dtype=torch.uint8 if classes <= 256 else torch.int32, device=device
            )
        best = strip_RWC.max(dim=2)
        mask[rows] = best.indices
        total = best.values.sum() if total is None else total + best.values.sum()
        if loss:
            assert of_logits and truth is not None
            part = loss_units(strip_RWC, best.values, truth[rows])
            added = part if added is None else added + part
        if confidence or probabilities:
            p_RWC = strip_RWC.softmax(dim=2) if of_logits else strip_RWC
            if confidence:
                if sure is None:
                    sure = torch.empty(size, dtype=torch.float32, device=device)
                sure[rows] = p_RWC.amax(dim=2) if of_logits else best.values
                if truth is not None:
                    if own is None:
                        own = torch.empty_like(sure)
                    own[rows] = of_truth(p_RWC, truth[rows])
            if probabilities:
                if every is None:
                    every = np.empty((*size, classes), np.float16)
                torch.from_numpy(every[rows]).copy_(p_RWC)
    assert mask is not None and total is not None, "an image has rows"
    return Readings(mask, sure, every, own, added, total.isfinite())
