"""SegFormers of the published sizes, randomly initialized, and one that is smaller still.

Source: Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with
Transformers" (2021), Table 6; decoder widths as in the published checkpoints (256 up to B1, 768
from B2).
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Size:
    """What tells one SegFormer from another."""

    hidden_sizes: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    decoder: int
    drop_path: float = 0.1


_NARROW, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
_HEADS = (1, 2, 5, 8)

SIZES = {
    "tiny": Size((16, 32, 64, 128), (1, 1, 1, 1), (1, 2, 4, 8), 128, drop_path=0.0),
    "b0": Size(_NARROW, (2, 2, 2, 2), _HEADS, 256),
    "b1": Size(_WIDE, (2, 2, 2, 2), _HEADS, 256),
    "b2": Size(_WIDE, (3, 4, 6, 3), _HEADS, 768),
    "b3": Size(_WIDE, (3, 4, 18, 3), _HEADS, 768),
    "b4": Size(_WIDE, (3, 8, 27, 3), _HEADS, 768),
    "b5": Size(_WIDE, (3, 6, 40, 3), _HEADS, 768),
}


def architecture(size: str) -> Any:
    """Return transformers' configuration of a SegFormer.

    Parameters
    ----------
    size
        ``tiny`` (0.5 M parameters), ``b0`` … ``b5``.
    """
    from transformers import SegformerConfig  # slow to import, and names alone need none of it

    shape = SIZES[size]
    return SegformerConfig(
        hidden_sizes=list(shape.hidden_sizes),
        depths=list(shape.depths),
        num_attention_heads=list(shape.heads),
        decoder_hidden_size=shape.decoder,
        drop_path_rate=shape.drop_path,
    )
