"""Settings of the network, shared by training and inference."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, ClassVar, Literal

from pydantic import PositiveInt, field_validator

from ..config import PathMarker, Section
from . import registry

COMPUTATION_KEYS = frozenset({"inference_precision", "tf32"})
"""Settings that say how a loaded network computes, and not which one it is."""


class ModelConfig(Section):
    """Which network, and at which size it sees an image."""

    fixed_keys: ClassVar[tuple[str, ...]] = ("name", "num_classes", "input_size", "keep_ratio")
    synonyms: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            **dict.fromkeys(("crop_size", "image_size", "img_size", "imgsz"), "input_size"),
            **dict.fromkeys(("resolution", "size"), "input_size"),
            **dict.fromkeys(("arch", "architecture", "model", "network", "backbone"), "name"),
            **dict.fromkeys(("model_name", "model_name_or_path", "pretrained"), "name"),
            **dict.fromkeys(("nc", "n_classes", "num_labels"), "num_classes"),
        }
    )

    name: Annotated[str, PathMarker(only_existing=True)] = (
        "nvidia/segformer-b5-finetuned-ade-640-640"
    )
    """A Hugging Face name or a local folder, SegFormer or another of transformers' networks for
    semantic segmentation: pretrained, with a new classifier where the classes differ. Or a file of
    weights of a published SegFormer, with or without a decode head ('mit_b0.pth'). Or
    'segformer-tiny', 'segformer-b0' … 'segformer-b5': randomly initialized, needs no network."""
    num_classes: PositiveInt | None = None
    """Classes, background included; by default those of the shards, else it must equal them."""
    input_size: PositiveInt = 640
    """Side of training crops and of the square that an image is resized to [pixels]. For 'infer'
    and 'eval' only of files of weights, and of folders without an image processor."""
    keep_ratio: bool = False
    """Resize the longer side to `input_size` and keep the shape, instead of a square."""

    inference_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the network computes in when it is scored or predicts, in validation, 'infer' and 'eval'
    alike: 'auto' is bfloat16 where a GPU has it natively, float16 on other GPUs, and float32 on a
    CPU. Weights, softmax, upsampling and averages are float32 in any case."""
    tf32: bool = False
    """Let a GPU compute float32 matrix products and convolutions in TF32, in training and
    inference: faster, with 10 bits of mantissa instead of 23."""

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        if registry.is_random(name) and name not in registry.names():
            raise ValueError(f"random initialization knows {', '.join(registry.names())}")
        return name
