"""Exports by the name of their format."""

from typing import Literal, get_args

from ...errors import ConfigError
from ...model.config import ModelConfig
from .config import ExportConfig
from .folder import FolderExport, FolderPlan, export_folder, plan_folder
from .graph import FORMATS, GraphExport, GraphPlan, export_graph, plan_graph

Format = Literal["onnx", "program", "hf"]
"""ONNX, a program of `torch.export`, or a folder for transformers and the Hugging Face hub."""


def plan_export(
    format: Format,  # noqa: A002
    config: ExportConfig,
    model: ModelConfig | None = None,
) -> GraphPlan | FolderPlan:
    """Say what `export_model` would write.

    Raises
    ------
    ConfigError, DataError
        See `plan_graph` and `plan_folder`; also for an unknown format.
    """
    _check(format)
    if format == "hf":
        return plan_folder(config, model or ModelConfig())
    return plan_graph(FORMATS[format], config, model or ModelConfig())


def export_model(
    format: Format,  # noqa: A002
    config: ExportConfig,
    model: ModelConfig | None = None,
) -> GraphExport | FolderExport:
    """Write a checkpoint for other programs, and compare what they will compute with the network.

    Parameters
    ----------
    config
        `checkpoint` and `output` must be set.
    model
        Architecture, classes and size for a lone file of weights.

    Raises
    ------
    ConfigError, DataError
        As `plan_export`.
    CocosegError
        If the export differs from the network, or cannot be written.
    """
    _check(format)
    if format == "hf":
        return export_folder(config, model or ModelConfig())
    return export_graph(FORMATS[format], config, model or ModelConfig())


def _check(name: str) -> None:
    if name not in get_args(Format):
        raise ConfigError(f"export: {name!r}: formats are {', '.join(get_args(Format))}")
