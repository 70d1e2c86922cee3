"""Published layouts of SegFormer weights, and their conversion to the names of transformers.

Sources: NVlabs/SegFormer, ``mmseg/models/backbones/mix_transformer.py`` and ``…/decode_heads/
segformer_head.py``; open-mmlab/mmsegmentation (0.19 and later), ``mmseg/models/backbones/mit.py``
and ``…/decode_heads/segformer_head.py``.
"""

import logging
import re
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import DataError
from ..model import segformer
from ..processes import of_leader

log = logging.getLogger(__name__)
log.addFilter(of_leader)

_BLOCK = "segformer.encoder.block.{}.{}."
_ATTENTION = _BLOCK + "attention.self."


@dataclass(frozen=True, slots=True)
class _Rule:
    """What transformers calls the weights of one module."""

    pattern: re.Pattern[str]
    names: tuple[str, ...]
    """With places for the numbers in the pattern. Several: the rows of the tensor are divided
    evenly among them. None: the network does not use it."""

    @classmethod
    def of(cls, module: str, *names: str) -> "_Rule":
        numbered = re.escape(module).replace("N", r"(\d{1,4})")
        return cls(re.compile(rf"(?:backbone\.)?{numbered}[._](\w+)"), names)


_NVLABS = tuple(
    _Rule.of(*rule)
    for rule in (
        ("patch_embedN.proj", "segformer.encoder.patch_embeddings.{}.proj"),
        ("patch_embedN.norm", "segformer.encoder.patch_embeddings.{}.layer_norm"),
        ("blockN.N.norm1", _BLOCK + "layer_norm_1"),
        ("blockN.N.attn.q", _ATTENTION + "query"),
        ("blockN.N.attn.kv", _ATTENTION + "key", _ATTENTION + "value"),
        ("blockN.N.attn.sr", _ATTENTION + "sr"),
        ("blockN.N.attn.norm", _ATTENTION + "layer_norm"),
        ("blockN.N.attn.proj", _BLOCK + "attention.output.dense"),
        ("blockN.N.norm2", _BLOCK + "layer_norm_2"),
        ("blockN.N.mlp.fc1", _BLOCK + "mlp.dense1"),
        ("blockN.N.mlp.dwconv.dwconv", _BLOCK + "mlp.dwconv.dwconv"),
        ("blockN.N.mlp.fc2", _BLOCK + "mlp.dense2"),
        ("normN", "segformer.encoder.layer_norm.{}"),
        ("decode_head.linear_cN.proj", "decode_head.linear_c.{}.proj"),
        # Both concatenate the levels from the last to the first.
        ("decode_head.linear_fuse.conv", "decode_head.linear_fuse"),
        ("decode_head.linear_fuse.bn", "decode_head.batch_norm"),
        ("decode_head.linear_pred", "decode_head.classifier"),
        ("decode_head.conv_seg",),  # of the base class; its forward is never called
        ("head",),  # ImageNet's classifier
    )
)
_MMSEG = tuple(
    _Rule.of(*rule)
    for rule in (
        ("layers.N.0.projection", "segformer.encoder.patch_embeddings.{}.proj"),
        ("layers.N.0.norm", "segformer.encoder.patch_embeddings.{}.layer_norm"),
        ("layers.N.1.N.norm1", _BLOCK + "layer_norm_1"),
        (
            "layers.N.1.N.attn.attn.in_proj",
            *(_ATTENTION + part for part in ("query", "key", "value")),
        ),
        ("layers.N.1.N.attn.attn.out_proj", _BLOCK + "attention.output.dense"),
        ("layers.N.1.N.attn.sr", _ATTENTION + "sr"),
        ("layers.N.1.N.attn.norm", _ATTENTION + "layer_norm"),
        ("layers.N.1.N.norm2", _BLOCK + "layer_norm_2"),
        ("layers.N.1.N.ffn.layers.0", _BLOCK + "mlp.dense1"),
        ("layers.N.1.N.ffn.layers.1", _BLOCK + "mlp.dwconv.dwconv"),
        ("layers.N.1.N.ffn.layers.4", _BLOCK + "mlp.dense2"),
        ("layers.N.2", "segformer.encoder.layer_norm.{}"),
    )
)
_LINEAR = re.compile(r"\.mlp\.dense[12]\.weight$")
"""Weights of linear layers, which mmsegmentation keeps as 1×1 convolutions."""

_OF_MMSEG_HEAD = re.compile(r"(decode|auxiliary)_head\.")

_NVLABS_FIRST = ("backbone.patch_embed1.proj.weight", "patch_embed1.proj.weight")
_MMSEG_FIRST = ("backbone.layers.0.0.projection.weight", "layers.0.0.projection.weight")
_TRANSFORMERS_FIRST = (
    "segformer.encoder.patch_embeddings.0.proj.weight",  # in files
    "segformer.stages.0.patch_embeddings.proj.weight",  # in memory, since transformers 5
)
_WIDTH = re.compile(
    r"segformer\.(?:encoder\.patch_embeddings|stages)\.\d+\.(?:patch_embeddings\.)?proj\.weight"
)
_DEPTH = re.compile(r"segformer\.(?:encoder\.block|stages)\.(\d+)\.(?:blocks\.)?(\d+)\..+")


def is_segformer(names: Container[str]) -> bool:
    """Return whether these are names of a SegFormer's weights, in any known layout."""
    return any(name in names for name in (*_TRANSFORMERS_FIRST, *_NVLABS_FIRST, *_MMSEG_FIRST))


def to_transformers(
    path: str, weights: Mapping[str, Tensor], *, encoder_suffices: bool
) -> dict[str, Tensor]:
    """Convert SegFormer weights of NVlabs or mmsegmentation; others stay as they are.

    NVlabs' network is converted whole. mmsegmentation's decode head has a batch norm and a ReLU
    behind the projection of every level; transformers' SegFormer has neither, and no weights of its
    linear layers compute the same. Of such a file only the encoder can be used.

    Layer norms compute with ε = 1e-5 in transformers, those of the blocks with 1e-6 in both
    published layouts: logits agree to about 1e-5 of their range.

    Parameters
    ----------
    path
        The file that they are from, for messages.
    encoder_suffices
        Whether a decode head that transformers does not have may be left out.

    Returns
    -------
    dict
        By the names that transformers' files have. Unknown names stay as they are.

    Raises
    ------
    DataError
        If the decode head is needed, and is mmsegmentation's.
    """
    if any(name in weights for name in _NVLABS_FIRST):
        return _converted(path, weights, _NVLABS, first_stage=1)
    if not any(name in weights for name in _MMSEG_FIRST):
        return dict(weights)
    encoder = {name: one for name, one in weights.items() if not _OF_MMSEG_HEAD.match(name)}
    if len(encoder) < len(weights):
        if not encoder_suffices:
            raise DataError(
                f"{path}: is a SegFormer of mmsegmentation, whose decode head (a batch norm and a "
                "ReLU behind each projection) transformers' SegFormer cannot compute. Its encoder "
                "can start a training (model.name); for predictions use a SegFormer of NVlabs or "
                "of transformers"
            )
        log.warning("%s: using the encoder only: the decode head is mmsegmentation's", path)
    return _converted(path, encoder, _MMSEG, first_stage=0)


def published_name(weights: Mapping[str, Tensor]) -> str | None:
    """Return the name of the SegFormer with weights of these shapes, such as ``segformer-b0``.

    Attention heads do not show in the shapes: they are those of the published networks, so None is
    returned where widths and depths are not exactly those of one of them.

    Parameters
    ----------
    weights
        By the names of transformers.
    """
    widths = [one.shape[:1] for name, one in sorted(weights.items()) if _WIDTH.fullmatch(name)]
    blocks = {found.groups() for name in weights if (found := _DEPTH.fullmatch(name))}
    depths = [sum(stage == str(i) for stage, _ in blocks) for i in range(4)]
    for size, one in segformer.SIZES.items():
        if (widths, depths) == ([(width,) for width in one.hidden_sizes], list(one.depths)):
            return f"segformer-{size}"
    return None


def _converted(
    path: str, weights: Mapping[str, Tensor], rules: tuple[_Rule, ...], *, first_stage: int
) -> dict[str, Tensor]:
    """Return weights by the names of transformers.

    Parameters
    ----------
    first_stage
        The number that the layout gives to it; transformers counts from 0.
    """
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        for theirs, part in _renamed(name, value, rules, first_stage):
            if theirs in converted:
                raise DataError(f"{path}: contains {theirs} twice, once as {name}")
            converted[theirs] = part
    return converted


def _renamed(
    name: str, value: Tensor, rules: tuple[_Rule, ...], first_stage: int
) -> Iterator[tuple[str, Tensor]]:
    rule, found = next(
        ((rule, found) for rule in rules if (found := rule.pattern.fullmatch(name))),
        (None, None),
    )
    if rule is None or found is None:
        yield name, value
        return
    if not rule.names:
        return
    *numbers, parameter = found.groups()
    places = [int(number) for number in numbers]
    if places:
        places[0] -= first_stage
    parts = [value]
    if len(rule.names) > 1:
        rows, rest = divmod(len(value) if value.ndim else 0, len(rule.names))
        if rest or not rows:
            yield name, value  # refused later on, as it is left over
            return
        parts = list(value.split(rows))
    for form, part in zip(rule.names, parts, strict=True):
        theirs = f"{form.format(*places)}.{parameter}"
        is_1x1 = part.shape[2:] == (1, 1)
        yield theirs, part.flatten(1) if is_1x1 and _LINEAR.search(theirs) else part
