"""Settings of ``cocoseg export``."""

from typing import Annotated, Literal

from pydantic import Field

from ...config import Flag, PathField, PathMarker, Section


class ExportConfig(Section):
    """From a checkpoint to a file or folder that other programs run."""

    checkpoint: Annotated[str | None, PathMarker(only_existing=True), Flag("CKPT")] = None
    """A run, a checkpoint folder, a Hugging Face name, or a file of weights (.pt …)."""
    output: Annotated[PathField | None, Flag("PATH")] = None
    """FILE.onnx, FILE.pt2, or for 'hf' a folder."""
    overwrite: Annotated[bool, Flag()] = False
    """Replace an output that is there."""
    input_type: Annotated[Literal["uint8", "float32"], Flag(commands=("onnx", "program"))] = "uint8"
    """What a graph takes: 'uint8' RGB images of shape (batch, height, width, 3), normalized in
    the graph; or 'float32' of shape (batch, 3, height, width), normalized by the caller."""
    output_type: Annotated[Literal["logits", "mask"], Flag(commands=("onnx", "program"))] = "logits"
    """What a graph gives: 'logits' at the network's own resolution, a quarter of the input's for
    SegFormer; or the 'mask' of train ids at the input's, upsampled bilinearly before the argmax."""
    opset: Annotated[int, Flag(commands=("onnx",))] = Field(18, ge=18, le=23)
    """ONNX operator set. 18 is the exporter's own, and what most runtimes know; others are
    converted from it."""
    metrics: Annotated[PathField | None, Flag("FILE", commands=("hf",))] = None
    """For 'hf': a metrics.json of 'cocoseg eval', whose scores go into the model card."""
