"""ONNX: converted from a program of `torch.export`, and run by onnxruntime."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ...storage import Location
from .program import quiet


def write_onnx(program: ExportedProgram, description: Mapping[str, Any], path: Path) -> None:
    """Convert a program and save it as one file, weights included.

    Parameters
    ----------
    description
        Goes into ``metadata_props``: text as it is, all else as JSON. Its `opset` is the model's.

    Raises
    ------
    Exception
        Of any kind, if an operator has no counterpart.
    """
    import onnx

    names = [str(description[side]).partition(":")[0] for side in ("input", "output")]
    with quiet():
        converted: Any = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=description["opset"],
            input_names=names[:1],
            output_names=names[1:],
            verbose=False,
        )
        model = converted.model_proto
    _name_axes(model.graph, description)
    for part in (model, *_parts(model.graph)):  # notes of the exporter, about its own graph
        del part.metadata_props[:]
    texts = {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for key, value in description.items()
    }
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def run_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    """Open a file with onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, too
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: torch.from_numpy(session.run(None, {name: pixels.numpy()})[0])


def describe_onnx(output: Location) -> Mapping[str, Any]:
    """Return the ``metadata_props`` of a file; empty where it is not an ONNX file."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(output.read_bytes())
    except DecodeError:
        return {}
    return {entry.key: entry.value for entry in model.metadata_props}


def _parts(graph: Any) -> Iterator[Any]:
    """Yield a graph, its values and nodes, and those of the graphs inside."""
    yield graph
    yield from (*graph.input, *graph.output, *graph.value_info, *graph.initializer)
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _parts(inner)


def _name_axes(graph: Any, description: Mapping[str, Any]) -> None:
    """Call open axes batch, height and width, instead of s40, s62 and s73."""
    _, _, axes = str(description["input"]).partition("(")
    names = axes.rstrip(")").split(", ")
    sizes = graph.input[0].type.tensor_type.shape.dim
    renamed = {
        size.dim_param: name for size, name in zip(sizes, names, strict=True) if size.dim_param
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(
                    r"\bs\d+\b", lambda found: renamed.get(found[0], found[0]), size.dim_param
                )
