"""Batch norm over the batches of all ranks, with two small collectives and no synchronization.

PyTorch's own `nn.SyncBatchNorm` runs on GPUs only, and indexes by a mask, for which the host waits
for the GPU. Here each rank contributes the mean, the squared deviations and the count of its own
batch; they are combined by the formula of Chan, Golub and LeVeque, "Updating Formulae and a
Pairwise Algorithm for Computing Sample Variances" (1979), which stays exact where the mean is much
larger than the deviations.
"""

# B batch, C channels, H W pixels, n values per channel on this rank, N on all ranks, W ranks

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Renamed in PyTorch 2.13, where the older name warns.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of all ranks of the default group.

    It is plain batch norm in eval mode, and where there is one process only. Every rank must hold
    at least one image, of any number of pixels. Gradients of weight and bias are those of this
    rank's part of the batch, to be added over the ranks as all others are.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (PyTorch's name)
        """Normalize (B, C, H, W)."""
        if not (self.training and dist.is_available() and dist.is_initialized()):
            return super().forward(input)
        if dist.get_world_size() == 1:
            return super().forward(input)
        normalized: Tensor = self._synchronized(input)
        return normalized

    def _synchronized(self, x_BCHW: Tensor) -> Tensor:
        self._check_input_dim(x_BCHW)
        apply: Any = _SyncBatchNorm.apply
        if torch.compiler.is_compiling():
            apply = torch.ops.cocoseg.sync_batch_norm
        out_BCHW, mean_C, var_C, count = apply(x_BCHW, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean_C.detach(), var_C.detach(), count.detach())
        normalized: Tensor = out_BCHW
        return normalized

    @torch.no_grad()
    def _follow(self, mean_C: Tensor, var_C: Tensor, count: Tensor) -> None:
        """Move the running statistics, as `nn.BatchNorm2d` does, but never wait for the count."""
        assert self.running_mean is not None
        assert self.running_var is not None
        share: Any = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if share is None:  # the mean over all batches
                share = self.num_batches_tracked.to(self.running_mean.dtype).reciprocal()
        unbiased_C = var_C * (count / (count - 1))
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased_C.to(self.running_var.dtype), share)


class _SyncBatchNorm(torch.autograd.Function):
    """Normalize by the statistics of all ranks; also returns mean, biased variance and N."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        found = _normalized(x_BCHW, weight_C, bias_C, eps)
        _save(ctx, (x_BCHW, weight_C, bias_C, eps), found)
        ctx.mark_non_differentiable(*found[1:])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BCHW: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x_BCHW, weight_C, mean_C, var_C, count = ctx.saved_tensors
        found = _gradients(d_BCHW, x_BCHW, weight_C, mean_C, var_C, count, ctx.eps)
        return _parts(ctx, *found)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x_BCHW, weight_C, _, ctx.eps = inputs
    ctx.save_for_backward(x_BCHW, weight_C, *output[1:])


def _parts(ctx: Any, d_x: Tensor, d_weight: Tensor, d_bias: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of the arguments, None for those that need none."""
    needed = ctx.needs_input_grad
    found = (d_x, d_weight, d_bias)
    return (*(one if asked else None for one, asked in zip(found, needed, strict=False)), None)


def _normalized(
    x_BCHW: Tensor, weight_C: Tensor | None, bias_C: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    exact = torch.promote_types(x_BCHW.dtype, torch.float32)
    channels = x_BCHW.shape[1]
    n = x_BCHW.numel() // channels
    var_C, mean_C = torch.var_mean(x_BCHW.to(exact), dim=(0, 2, 3), correction=0)
    own = torch.cat([mean_C, var_C * n, mean_C.new_full((1,), n)])
    parts = own.new_empty(dist.get_world_size() * len(own))
    _all_gather(parts, own)
    means_WC, squares_WC, counts_W1 = parts.view(-1, len(own)).split([channels, channels, 1], 1)
    count = counts_W1.sum()
    # Relative to one of the means, so that a large mean does not round the differences away.
    away_WC = means_WC - means_WC[0]
    off_C = (away_WC * counts_W1).sum(0) / count
    mean_C = means_WC[0] + off_C
    squares_C = (squares_WC + counts_W1 * (away_WC - off_C).square()).sum(0)
    var_C = squares_C / count
    out_BCHW = F.batch_norm(x_BCHW, mean_C, var_C, weight_C, bias_C, training=False, eps=eps)
    return out_BCHW, mean_C, var_C, count


def _gradients(
    d_BCHW: Tensor,
    x_BCHW: Tensor,
    weight_C: Tensor | None,
    mean_C: Tensor,
    var_C: Tensor,
    count: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through x̂ = (x − mean) / σ and w x̂ + b, where mean and σ depend on every x.

    With the sums over all ranks S = Σ dy and T = Σ dy x̂:

        dx = w / σ · (dy − S / N − x̂ T / N)
    """
    scale_C = torch.ones_like(mean_C) if weight_C is None else weight_C
    inverse_C = torch.rsqrt(var_C + eps)
    # This rank's T and S, which are its gradients of weight and bias, in one kernel. CUDA's demands
    # the saved statistics, although it does not read them outside of training.
    _, t_C, s_C = torch.ops.aten.native_batch_norm_backward(
        d_BCHW, x_BCHW, scale_C, mean_C, var_C, mean_C, inverse_C, False, eps, [False, True, True]
    )
    sums = torch.cat([s_C, t_C]).to(mean_C.dtype)
    dist.all_reduce(sums)
    all_s_C, all_t_C = (sums / count).chunk(2)
    factor_C = scale_C * inverse_C
    d_x_BCHW = torch.addcmul(_wide(-factor_C * all_s_C), d_BCHW, _wide(factor_C))
    d_x_BCHW.addcmul_(x_BCHW - _wide(mean_C), _wide(-factor_C * inverse_C * all_t_C))
    return d_x_BCHW.to(x_BCHW.dtype), t_C.to(scale_C.dtype), s_C.to(scale_C.dtype)


def _wide(values_C: Tensor) -> Tensor:
    """View one value per channel as (1, C, 1, 1)."""
    return values_C.view(1, -1, 1, 1)


# Under torch.compile both passes are opaque operators: collectives would break the graph in each of
# the modules that they are nested in, and all of them would be traced again.


@torch.library.custom_op("cocoseg::sync_batch_norm", mutates_args=())
def _operator(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _normalized(x, weight, bias, eps)


@_operator.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del weight, bias, eps
    exact = torch.promote_types(x.dtype, torch.float32)
    mean, var = (x.new_empty(x.shape[1], dtype=exact) for _ in range(2))
    return torch.empty_like(x), mean, var, x.new_empty((), dtype=exact)


@torch.library.custom_op("cocoseg::sync_batch_norm_backward", mutates_args=())
def _backward_operator(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    return _gradients(gradient, x, weight, mean, var, count, eps)


@_backward_operator.register_fake
def _(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor | None,
    mean: Tensor,
    var: Tensor,
    count: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    del var, count, eps
    d_weight = torch.empty_like(mean if weight is None else weight)
    return torch.empty_like(gradient, dtype=x.dtype), d_weight, torch.empty_like(d_weight)


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    apply: Any = torch.ops.cocoseg.sync_batch_norm_backward
    return _parts(ctx, *apply(gradient, *ctx.saved_tensors, ctx.eps))


_operator.register_autograd(_backward, setup_context=_save)


def synchronize_batch_norms(network: nn.Module) -> None:
    """Turn plain batch norms into synchronized ones, in place: names, weights and hooks stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm2d


def localise_batch_norms(network: nn.Module) -> None:
    """Turn synchronized batch norms into plain ones, in place: one rank alone can run them."""
    for module in network.modules():
        if isinstance(module, (SyncBatchNorm2d, nn.SyncBatchNorm)):
            plain: Any = module
            plain.__class__ = nn.BatchNorm2d
