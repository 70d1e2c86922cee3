"""What losses need of an image's probabilities, without ever holding all of them.

The full softmax of one image is 81 numbers a pixel. Losses here need but three small things of
it, and their gradient goes back through the softmax in one pass.
"""

# C classes, H W pixels, N = H · W, n pixels of a strip

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...model.device import exact_dtype

# Numbers that are worked on at a time: few enough to need little memory, enough that a GPU is full
# and a CPU's threads rarely wait for one another. With two threads on two cores beside three busy
# processes, ce_dice of 4 × 81 × 640² took 5.2 s at 2**20 and at 2**22, 3.2 s at 2**24 (a plain
# formula 4.5 s); alone, 0.9 s at each.
_STRIP = 2**24


class PixelScores(NamedTuple):
    """Of one image; all differentiable."""

    log_p: Tensor
    """Log probability of the true class, 0 where ignored, shape (H, W)."""
    class_sums: Tensor
    """Probability of each class summed over the valid pixels, shape (C,)."""
    log_p_all: Tensor
    """Σ w log p over all classes, 0 where ignored, shape (H, W); 0 without weights."""


def score_pixels(
    logits_CHW: Tensor,
    truth_HW: Tensor,
    valid_HW: Tensor,
    *,
    sums: bool = False,
    weights_C: Tensor | None = None,
) -> PixelScores:
    """Return what losses need of an image's softmax.

    Parameters
    ----------
    logits_CHW
        float32 or float64.
    truth_HW
        Train ids, 0 where ignored, int64.
    valid_HW
        bool.
    sums
        Whether `class_sums` are wanted; else they are 0.
    weights_C
        w of `log_p_all`, if that is wanted.
    """
    apply: Any = _ScorePixels.apply
    return PixelScores(*apply(logits_CHW, truth_HW, valid_HW, sums, weights_C))


class _ScorePixels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits_CHW: Tensor,
        truth_HW: Tensor,
        valid_HW: Tensor,
        sums: bool,
        weights_C: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        z_CN = logits_CHW.flatten(1)
        truth_N, valid_N = truth_HW.flatten(), valid_HW.flatten().to(z_CN.dtype)
        log_normalizer_N = torch.empty_like(z_CN[0])
        exact = exact_dtype(z_CN.device)
        class_sums = torch.zeros(len(z_CN), dtype=exact, device=z_CN.device)
        for strip in _strips(z_CN):
            z_Cn = z_CN[:, strip]
            largest_n = z_Cn.amax(dim=0)
            e_Cn = (z_Cn - largest_n).exp_()
            normalizer_n = e_Cn.sum(dim=0)
            if sums:
                class_sums += e_Cn @ (valid_N[strip] / normalizer_n)
            log_normalizer_N[strip] = normalizer_n.log_().add_(largest_n)
        log_p_N = z_CN.gather(0, truth_N[None])[0].sub_(log_normalizer_N).mul_(valid_N)
        log_p_all_N = torch.zeros_like(log_p_N)
        if weights_C is not None:
            log_p_all_N = (weights_C @ z_CN).sub_(log_normalizer_N * weights_C.sum()).mul_(valid_N)
        ctx.save_for_backward(z_CN, truth_N, valid_N, log_normalizer_N, weights_C)
        ctx.sums = sums
        shape = truth_HW.shape
        return log_p_N.view(shape), class_sums.to(z_CN.dtype), log_p_all_N.view(shape)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_log_p_HW: Tensor, d_sums_C: Tensor, d_all_HW: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Go back through log p = z - log Σ exp z and p = exp(log p).

        With d_y of the true class, d_c of the class sums and e of `log_p_all`:

            ∂z_k = [k = y] d_y + p_k (d_k − d_y − Σ_c d_c p_c − e Σ w) + e w_k
        """
        z_CN, truth_N, valid_N, log_normalizer_N, weights_C = ctx.saved_tensors
        d_true_N = d_log_p_HW.flatten() * valid_N
        d_all_N = d_all_HW.flatten() * valid_N
        every_N = -d_true_N if weights_C is None else -d_true_N - d_all_N * weights_C.sum()
        d_CN = torch.empty_like(z_CN)
        for strip in _strips(z_CN):
            p_Cn = torch.sub(z_CN[:, strip], log_normalizer_N[strip]).exp_()
            every_n, valid_n = every_N[strip], valid_N[strip]
            if ctx.sums:
                every_n = every_n - valid_n * (d_sums_C @ p_Cn)
                p_Cn.mul_(torch.addr(every_n.expand_as(p_Cn), d_sums_C, valid_n))
            else:
                p_Cn.mul_(every_n)
            if weights_C is not None:
                p_Cn.addr_(weights_C, d_all_N[strip])
            d_CN[:, strip] = p_Cn
        d_CN.scatter_add_(0, truth_N[None], d_true_N[None])
        return d_CN.view(len(z_CN), *d_log_p_HW.shape), None, None, None, None


def _strips(z_CN: Tensor) -> Iterator[slice]:
    classes, pixels = z_CN.shape
    length = max(1, _STRIP // classes)
    for first in range(0, pixels, length):
        yield slice(first, min(first + length, pixels))
