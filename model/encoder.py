"""SegFormer's encoder with one memory layout, channels last, as its tokens are, and in less of it.

transformers' views of tokens as maps lose that layout for a single image, whose convolutions then
copy there and back, and every stage copies its map for the next one.

In training most of the memory goes into the wide middle of the blocks, four times as wide as their
tokens and held three times over: before the depth-wise convolution, before and after the
activation. Only the first is kept; the backward pass computes the others again, which are cheap.
"""

# B batch, N = H W tokens, C channels, H W pixels of a map

from typing import Any

import torch
from torch import Tensor, nn
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
        return self.layer_norm(_as_tokens(reduced_BCHW))  # type: ignore[no-any-return]


class DepthWiseConv(theirs.SegformerDepthWiseConv):  # type: ignore[misc]
    """The convolution between the two linear layers of a block."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Return tokens (B, N, C)."""
        mixed_BCHW: Tensor = self.dwconv(_as_map(hidden_states, height, width))
        return _as_tokens(mixed_BCHW)


class MixMLP(theirs.SegformerMixMLP):  # type: ignore[misc]
    """The second half of a block: to four times the width and back, mixing neighbours between."""

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        """Return tokens (B, N, C)."""
        wide = self.fc1(hidden_states)
        if not (self.training and torch.is_grad_enabled()):
            return self._narrow(wide, height, width)
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


class DropPath(theirs.SegformerDropPath):  # type: ignore[misc]
    """Stochastic depth: one factor a sample, 0 or 1 / (1 - p)."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Return tokens (B, N, C)."""
        if self.drop_prob == 0.0 or not self.training:
            return hidden_states
        keep = 1 - self.drop_prob
        shape = (hidden_states.shape[0], *(1,) * (hidden_states.ndim - 1))
        drawn = torch.rand(shape, dtype=hidden_states.dtype, device=hidden_states.device)
        factor: Tensor = (drawn + keep).floor_().div_(keep)
        return hidden_states * factor


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
