"""Settings of the network, shared by training and inference."""

from typing import Annotated, ClassVar

from pydantic import PositiveInt, field_validator

from ..config import PathMarker, Section
from . import registry


class ModelConfig(Section):
    """Which network, and at which size it sees an image."""

    fixed_keys: ClassVar[tuple[str, ...]] = ("name", "num_classes", "input_size", "keep_ratio")

    name: Annotated[str, PathMarker(only_existing=True)] = (
        "nvidia/segformer-b5-finetuned-ade-640-640"
    )
    """A Hugging Face name or a local folder, SegFormer or another of transformers' networks for
    semantic segmentation: pretrained, with a new classifier where the classes differ. Or
    'segformer-tiny', 'segformer-b0' … 'segformer-b5': randomly initialised, needs no network."""
    num_classes: PositiveInt | None = None
    """Classes, background included; by default those of the shards, else it must equal them."""
    input_size: PositiveInt = 640
    """Side of training crops and of the square that an image is resized to [pixels]."""
    keep_ratio: bool = False
    """Resize the longer side to `input_size` and keep the shape, instead of a square."""

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        if registry.is_random(name) and name not in registry.names():
            raise ValueError(f"random initialisation knows {', '.join(registry.names())}")
        return name
