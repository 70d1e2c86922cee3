"""SegFormer's decode head, folded: the same function of the same parameters, several times faster.

transformers projects each of the encoder's maps to D channels, upsamples them to the largest,
concatenates 4 D channels and fuses them by a 1 × 1 convolution. Both steps are linear in the
channels, and bilinear upsampling is linear in the pixels with weights that sum to 1: so each
projection is multiplied by its slice of the fusion first, and only D channels are ever upsampled
and added.
"""

# B batch, D channels of the decoder, h w pixels of the largest map, C channels of a map

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.segformer import modeling_segformer as theirs

from .replace import Replacement, replace_layers
from .sync_batchnorm import SyncBatchNorm2d
from .upsample import upsample


class FoldedDecodeHead(theirs.SegformerDecodeHead):  # type: ignore[misc]
    """Replaces the forward of transformers' head; parameters and their names stay."""

    def forward(self, encoder_hidden_states: Sequence[Tensor], **kwargs: Any) -> Tensor:
        """Return logits, shape (B, classes, h, w), from maps (B, C, h, w), (B, C', h/2, w/2) …."""
        batch = encoder_hidden_states[-1].shape[0]
        size = encoder_hidden_states[0].shape[2:]
        statistics = self.batch_norm.running_mean is not None and not self.batch_norm.training
        weights, shift = self._folded(with_batch_norm=statistics)
        bias: Tensor | None = shift
        fused_BDhw = None
        # Smallest map first: the bias is the cheapest to add there.
        for level in reversed(range(len(weights))):
            tokens_BhwC = _channels_last(encoder_hidden_states[level], batch)
            part_BDhw = F.linear(tokens_BhwC, weights[level], bias).permute(0, 3, 1, 2)
            bias = None
            if part_BDhw.shape[2:] != size:
                part_BDhw = upsample(part_BDhw, *size)
            if fused_BDhw is None:
                fused_BDhw = part_BDhw
            elif level == len(weights) - 2:  # autograd forbids to change what `upsample` returned
                fused_BDhw = fused_BDhw + part_BDhw
            else:
                fused_BDhw += part_BDhw
        assert fused_BDhw is not None
        if not statistics:
            fused_BDhw = self.batch_norm(fused_BDhw)
        fused_BDhw = self._drop(F.relu(fused_BDhw, inplace=True))
        classifier = self.classifier
        logits = F.linear(
            fused_BDhw.permute(0, 2, 3, 1), classifier.weight.flatten(1), classifier.bias
        )
        logits_BChw = logits.permute(0, 3, 1, 2)
        # Losses read planes; strips of an inference read all classes of a pixel, as they are here.
        return logits_BChw.contiguous() if torch.is_grad_enabled() else logits_BChw

    def _folded(self, *, with_batch_norm: bool) -> tuple[list[Tensor], Tensor]:
        """Return each level's weight (D, C) and the bias (D) of them all.

        In float32 at least: what autocast rounds are the products, once.
        """
        with _no_autocast(self.linear_fuse.weight.device.type):
            fuse = self.linear_fuse.weight.flatten(1)
            dtype = torch.promote_types(fuse.dtype, torch.float32)
            fuse = fuse.to(dtype)
            shift = None
            if with_batch_norm:
                norm = self.batch_norm
                scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
                shift = norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale
                fuse = fuse * scale[:, None]
            projections = [level.proj for level in self.linear_projections]
            # The reference concatenates from the smallest map to the largest.
            slices = fuse.chunk(len(projections), dim=1)[::-1]
            weights = [s @ p.weight.to(dtype) for s, p in zip(slices, projections, strict=True)]
            bias = fuse @ torch.cat([p.bias.to(dtype) for p in projections[::-1]])
            bias = bias if shift is None else bias + shift
            kept = self.linear_fuse.weight.dtype
            return [weight.to(kept) for weight in weights], bias.to(kept)

    def _drop(self, fused_BDhw: Tensor) -> Tensor:
        """Drop the same elements as the reference does from the same seed.

        They are drawn in the order of its memory, which for a single image is (D, h, w).
        """
        dropout = self.dropout
        if not dropout.training or dropout.p == 0 or fused_BDhw.shape[0] > 1:
            return dropout(fused_BDhw)  # type: ignore[no-any-return]
        kept = torch.ones_like(fused_BDhw, memory_format=torch.contiguous_format)
        kept = F.dropout(kept, dropout.p).contiguous(memory_format=torch.channels_last)
        return fused_BDhw * kept


def _no_autocast(device: str) -> contextlib.AbstractContextManager[Any]:
    """Switch autocast off where it is on.

    Where it is off, a program of `torch.export` gets no region that is bound to a device.
    """
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _channels_last(map_: Tensor, batch: int) -> Tensor:
    """Return a map as (B, h, w, C); the last may be tokens, which transformers calls square."""
    if map_.ndim == 3:
        side = math.isqrt(map_.shape[-1])  # sic: the same as the reference, or an error as there
        return map_.reshape(batch, side, side, -1)
    return map_.permute(0, 2, 3, 1)


def _fits(head: Any) -> bool:
    """Return whether a head's parts have the shapes that folding counts on, and run unobserved."""
    projections = [level.proj for level in head.linear_projections]
    fuse, classifier = head.linear_fuse, head.classifier
    width = fuse.out_channels
    parts = (*projections, *head.linear_projections, fuse, classifier)
    return (
        all(type(level) is theirs.SegformerMLP for level in head.linear_projections)
        and all(type(p) is nn.Linear and p.bias is not None for p in projections)
        and all(p.out_features == width for p in projections)
        and fuse.weight.shape == (width, width * len(projections), 1, 1)
        and (fuse.bias, fuse.stride, fuse.padding) == (None, (1, 1), (0, 0))
        and head.batch_norm.num_features == width
        and head.batch_norm.affine
        and classifier.weight.shape[1:] == (width, 1, 1)
        and classifier.bias is not None
        and (classifier.stride, classifier.padding) == ((1, 1), (0, 0))
        # Of these the parameters are used, and no forward is called.
        and not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    )


_REPLACEMENTS = (
    Replacement(
        theirs.SegformerDecodeHead,
        FoldedDecodeHead,
        {
            "linear_projections": (nn.ModuleList,),
            "linear_fuse": (nn.Conv2d,),
            "batch_norm": (nn.BatchNorm2d, SyncBatchNorm2d, nn.SyncBatchNorm),
            "activation": (nn.ReLU,),
            "dropout": (nn.Dropout,),
            "classifier": (nn.Conv2d,),
        },
        _fits,
    ),
)


def fold_head(network: nn.Module) -> bool:
    """Fold the decode head of a SegFormer; False, and a warning, if it is not the one known."""
    return replace_layers(network, "SegFormer decode head", _REPLACEMENTS)
