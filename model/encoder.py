"""SegFormer's encoder with one memory layout, channels last, as its tokens are, and in less of it.

transformers' views of tokens as maps lose that layout for a single image, whose convolutions then
copy there and back, and every stage copies its map for the next one.

In training most of the memory goes into the wide middle of the blocks, four times as wide as their
tokens and held three times over: before the depth-wise convolution, before and after the
activation. Only the first is kept; the backward pass computes the others again, which are cheap.

A GPU's time goes into many small kernels as well. Where autocast would convert the same tokens for
each of several layers, they are converted once, and stochastic depth is one kernel with the
residual sum behind it.
"""

# B batch, N = H W tokens, C channels of a block, D channels of its wide middle, H W pixels of a map

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers.models.segformer import modeling_segformer as theirs

from .replace import ANY, Replacement, replace_layers


def _as_map(tokens_BNC: Tensor, height: int, width: int) -> Tensor:
    """View tokens as a map (B, C, H, W), channels last for a single image too."""
    batch, _, channels = tokens_BNC.shape
    return tokens_BNC.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def _as_tokens(map_BCHW: Tensor) -> Tensor:
    """View a map as tokens (B, N, C); copy it if its channels are not last."""
    return map_BCHW.permute(0, 2, 3, 1).flatten(1, 2)


def _cast(tensor: Tensor) -> Tensor:
    """Return a tensor in the type of autocast's products; without autocast, as it is."""
    device = tensor.device.type
    if not tensor.is_floating_point() or tensor.dtype == torch.float64 or not _autocast(device):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device))


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class PatchEmbeddings(theirs.SegformerOverlapPatchEmbeddings):  # type: ignore[misc]
    """Overlapping patches of a map, as tokens."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, int, int]:
        """Return tokens (B, N, C) and the H, W of their map."""
        embedded_BCHW = self.proj(pixel_values)
        height, width = embedded_BCHW.shape[2:]
        return self.layer_norm(_as_tokens(embedded_BCHW)), height, width


class SequenceReduction(theirs.SegformerSequenceReduction):  # type: ignore[misc]
    """Fewer keys and values, by a convolution whose stride is its kernel."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Return tokens (B, N / ratio², C)."""
        reduced_BCHW = self.sequence_reduction(_as_map(hidden_states, height, width))
        return _cast(self.layer_norm(_as_tokens(reduced_BCHW)))  # for keys and for values


class DepthWiseConv(theirs.SegformerDepthWiseConv):  # type: ignore[misc]
    """The convolution between the two linear layers of a block."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Return tokens (B, N, C)."""
        mixed_BCHW: Tensor = self.dwconv(_as_map(hidden_states, height, width))
        return _as_tokens(mixed_BCHW)


class MixMLP(theirs.SegformerMixMLP):  # type: ignore[misc]
    """The second half of a block: to four times the width and back, mixing neighbors between."""

    recompute = True
    """Whether the backward pass computes the wide middle again, instead of holding it."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Return tokens (B, N, C)."""
        wide = self.fc1(hidden_states)
        if not (self.recompute and self.training and torch.is_grad_enabled()):
            return self._narrow(wide, height, width)
        if self._is_plain():
            return self._recomputed(wide, height, width)
        narrow: Tensor = checkpoint(
            self._narrow,
            wide,
            height,
            width,
            use_reentrant=False,
            preserve_rng_state=self.dropout.p > 0,
        )
        return narrow

    def _narrow(self, wide: Tensor, height: int, width: int) -> Tensor:
        # Recomputation ends with what the last matrix product needs: it does not run twice.
        mixed = self.dropout(self.activation_fn(self.dwconv(wide, height, width)))
        narrow: Tensor = self.dropout(self.fc2(mixed))
        return narrow

    def _recomputed(self, wide: Tensor, height: int, width: int) -> Tensor:
        convolution = self.dwconv.dwconv
        parameters = (convolution.weight, convolution.bias, self.fc2.weight, self.fc2.bias)
        apply: Any = _Narrow.apply
        narrow: Tensor = apply(_cast(wide), *map(_cast, parameters), height, width)
        return narrow

    def _is_plain(self) -> bool:
        """Return whether `_Narrow` computes what the layers do: no dropout, no hooks, GELU."""
        layers = (self.dwconv, self.dwconv.dwconv, self.activation_fn, self.fc2, self.dropout)
        convolution = self.dwconv.dwconv
        return (
            self.dropout.p == 0
            and getattr(self.activation_fn, "act", None) is F.gelu
            and type(convolution) is nn.Conv2d
            and (convolution.kernel_size, convolution.padding_mode) == ((3, 3), "zeros")
            and (convolution.stride, convolution.padding) == ((1, 1), (1, 1))
            and convolution.dilation == (1, 1)
            and convolution.groups == convolution.in_channels == convolution.out_channels
            and convolution.bias is not None
            and self.fc2.bias is not None
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
        )


class _Narrow(torch.autograd.Function):
    """Depth-wise convolution, GELU and linear layer, of which only the input is kept.

    What `checkpoint` does with fewer kernels: the backward pass repeats the convolution and the
    activation, and neither the conversions of autocast nor the linear layer.
    """

    @staticmethod
    def forward(
        ctx: Any,
        wide_BND: Tensor,
        kernel: Tensor,
        shift_D: Tensor,
        weight_CD: Tensor,
        bias_C: Tensor,
        height: int,
        width: int,
    ) -> Tensor:
        ctx.save_for_backward(wide_BND, kernel, shift_D, weight_CD)
        ctx.size = (height, width)
        mixed_BND = _mixed(wide_BND, kernel, shift_D, height, width)
        with torch.autocast(wide_BND.device.type, enabled=False):
            return F.linear(F.gelu(mixed_BND).contiguous(), weight_CD, bias_C)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BNC: Tensor) -> tuple[Tensor | None, ...]:
        wide_BND, kernel, shift_D, weight_CD = ctx.saved_tensors
        needed = ctx.needs_input_grad
        mixed_BND = _mixed(wide_BND, kernel, shift_D, *ctx.size)
        d_MC = d_BNC.reshape(-1, d_BNC.shape[-1])
        d_weight_CD = d_bias_C = None
        if needed[3]:
            active_MD = F.gelu(mixed_BND).reshape(len(d_MC), -1)
            d_weight_CD = d_MC.t() @ active_MD
            del active_MD
        if needed[4]:
            d_bias_C = d_MC.sum(0)
        d_active_BND = (d_MC @ weight_CD).view(wide_BND.shape)
        d_mixed_BND = torch.ops.aten.gelu_backward(d_active_BND, mixed_BND)
        del mixed_BND, d_active_BND
        d_wide_BDHW, d_kernel, d_shift_D = torch.ops.aten.convolution_backward(
            _as_map(d_mixed_BND, *ctx.size),
            _as_map(wide_BND, *ctx.size),
            kernel,
            [len(kernel)],
            *([1, 1], [1, 1], [1, 1], False, [0, 0], len(kernel)),
            list(needed[:3]),
        )
        d_wide_BND = None if d_wide_BDHW is None else _as_tokens(d_wide_BDHW)
        return d_wide_BND, d_kernel, d_shift_D, d_weight_CD, d_bias_C, None, None


def _mixed(wide_BND: Tensor, kernel: Tensor, shift_D: Tensor, height: int, width: int) -> Tensor:
    """Mix neighbors depth-wise."""
    with torch.autocast(wide_BND.device.type, enabled=False):
        map_BDHW = _as_map(wide_BND, height, width)
        return _as_tokens(F.conv2d(map_BDHW, kernel, shift_D, padding=1, groups=len(kernel)))


class DropPath(theirs.SegformerDropPath):  # type: ignore[misc]
    """Stochastic depth: one factor a sample, 0 or 1 / (1 - p)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return tokens (B, N, C)."""
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        return hidden_states * self.factor(hidden_states)

    def factor(self, hidden_states: Tensor) -> Tensor:
        """Draw the samples' factors, shape (B, 1, 1)."""
        shape = (hidden_states.shape[0], *(1,) * (hidden_states.ndim - 1))
        drawn = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
        return drawn.ge_(self.drop_prob).div_(1 - self.drop_prob)


class EncoderBlock(theirs.SegformerLayer):  # type: ignore[misc]
    """Attention and `MixMLP`, each behind a norm and beside a residual."""

    def forward(self, hidden_states: Tensor, height: int, width: int, **kwargs: Any) -> Tensor:
        """Return tokens (B, N, C)."""
        normed = _cast(self.layernorm_before(hidden_states))  # for queries, keys and values
        attended, _ = self.attention(normed, height, width, **kwargs)
        hidden_states = self._added(self.hidden_dropout(attended), hidden_states)
        mixed = self.mlp(self.layernorm_after(hidden_states), height, width)
        return self._added(mixed, hidden_states)

    def _added(self, branch: Tensor, residual: Tensor) -> Tensor:
        path = self.drop_path
        if not isinstance(path, DropPath) or path.drop_prob == 0.0 or not path.training:
            return branch + residual
        apply: Any = _AddScaled.apply
        added: Tensor = apply(branch, residual, path.factor(branch))
        return added


class _AddScaled(torch.autograd.Function):
    """residual + branch · factor, whose gradient is rounded once, in one kernel each."""

    @staticmethod
    def forward(ctx: Any, branch_BNC: Tensor, residual_BNC: Tensor, factor_B11: Tensor) -> Tensor:
        ctx.save_for_backward(factor_B11)
        with torch.autocast(residual_BNC.device.type, enabled=False):  # it would convert first
            return torch.addcmul(residual_BNC, branch_BNC, factor_B11)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_BNC: Tensor) -> tuple[Tensor | None, ...]:
        (factor_B11,) = ctx.saved_tensors
        d_branch_BNC = torch.empty_like(d_BNC, dtype=factor_B11.dtype)  # the factor's is its own
        torch.mul(d_BNC, factor_B11, out=d_branch_BNC)
        return d_branch_BNC, d_BNC, None


class Stage(theirs.SegformerStage):  # type: ignore[misc]
    """Patch embeddings, blocks and a norm; its map stays a view of the tokens."""

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        """Return a map (B, C, H, W), or tokens after the last stage of some networks."""
        hidden_states, height, width = self.patch_embeddings(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, height, width, **kwargs)
        hidden_states = self.layer_norm(hidden_states)
        if not self.reshape:
            return hidden_states
        return _as_map(hidden_states, height, width)


_REPLACEMENTS = (
    Replacement(
        theirs.SegformerOverlapPatchEmbeddings,
        PatchEmbeddings,
        {"proj": (nn.Conv2d,), "layer_norm": (nn.LayerNorm,)},
    ),
    Replacement(
        theirs.SegformerSequenceReduction,
        SequenceReduction,
        {"sequence_reduction": (nn.Conv2d,), "layer_norm": (nn.LayerNorm,)},
    ),
    Replacement(theirs.SegformerDepthWiseConv, DepthWiseConv, {"dwconv": (nn.Conv2d,)}),
    Replacement(
        theirs.SegformerMixMLP,
        MixMLP,
        {
            "fc1": (nn.Linear,),
            "dwconv": (theirs.SegformerDepthWiseConv, DepthWiseConv),
            "activation_fn": ANY,
            "fc2": (nn.Linear,),
            "dropout": (nn.Dropout,),
        },
    ),
    Replacement(theirs.SegformerDropPath, DropPath, {}),
    Replacement(
        theirs.SegformerLayer,
        EncoderBlock,
        {
            "layernorm_before": (nn.LayerNorm,),
            "attention": (theirs.SegformerAttention,),
            "drop_path": (theirs.SegformerDropPath, DropPath, nn.Identity),
            "layernorm_after": (nn.LayerNorm,),
            "mlp": (theirs.SegformerMixMLP, MixMLP),
            "hidden_dropout": (nn.Dropout,),
        },
    ),
    Replacement(
        theirs.SegformerStage,
        Stage,
        {
            "patch_embeddings": (theirs.SegformerOverlapPatchEmbeddings, PatchEmbeddings),
            "blocks": (nn.ModuleList,),
            "layer_norm": (nn.LayerNorm,),
        },
    ),
)


def lighten_encoder(network: nn.Module) -> bool:
    """Replace a SegFormer's encoder; False, and a warning, if it is not the one known."""
    return replace_layers(network, "SegFormer encoder", _REPLACEMENTS)
