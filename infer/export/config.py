"""Settings of ``cocoseg export``."""

from typing import Annotated, Literal

from pydantic import Field

from ...config import PathField, PathMarker, Section


class ExportConfig(Section):
    """From a checkpoint to a file or folder that other programs run."""

    checkpoint: Annotated[str, PathMarker(only_existing=True)] | None = None
    """A run, a checkpoint folder, a Hugging Face name, or a file of weights (.pt …)."""
    output: PathField | None = None
    """FILE.onnx, FILE.pt2, or for 'hf' a folder."""
    overwrite: bool = False
    """Replace an output that is there."""
    input_type: Literal["uint8", "float32"] = "uint8"
    """What a graph takes: 'uint8' RGB photographs of shape (batch, height, width, 3), normalized in
    the graph; or 'float32' of shape (batch, 3, height, width), normalized by the caller."""
    output_type: Literal["logits", "mask"] = "logits"
    """What a graph gives: 'logits' at the network's own resolution, a quarter of the input's for
    SegFormer; or the 'mask' of train ids at the input's, upsampled bilinearly before the argmax."""
    opset: int = Field(18, ge=18, le=23)
    """ONNX operator set. 18 is the exporter's own, and what most runtimes know; others are
    converted from it."""
    metrics: PathField | None = None
    """For 'hf': a metrics.json of 'cocoseg eval', whose scores go into the model card."""
