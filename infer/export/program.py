"""`torch.export`: the program of a network, and the ``.pt2`` file that holds it."""

import contextlib
import io
import json
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from ...storage import Location
from .devices import bound_operators, remove_devices
from .network import ExportedNetwork

log = logging.getLogger(__name__)

DESCRIPTION = "cocoseg.json"
"""Extra file of a ``.pt2`` that says what the program is."""
SMALLEST = 64
"""Smallest side [pixels] of inputs of any size: below, maps of one pixel need a program of their
own."""


def capture(network: ExportedNetwork, input_size: int, *, any_size: bool) -> ExportedProgram:
    """Trace a network.

    Parameters
    ----------
    any_size
        Whether height and width stay open, from `SMALLEST` on; the batch always does.

    Raises
    ------
    Exception
        Of any kind, if the network cannot be traced so.
    """
    height, width = (input_size + 32, input_size + 96) if any_size else (input_size, input_size)
    if network.normalize is not None:
        example, first = torch.zeros(2, height, width, 3, dtype=torch.uint8), 1
    else:
        example, first = torch.zeros(2, 3, height, width), 2
    axes: dict[int, Any] = {0: Dim.DYNAMIC(min=1)}
    if any_size:
        axes |= {axis: Dim.DYNAMIC(min=SMALLEST) for axis in (first, first + 1)}
    with torch.no_grad(), quiet():
        program = torch.export.export(network, (example,), dynamic_shapes=(axes,), strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, GraphModule):
            for node in module.graph.nodes:  # the paths of this computer
                node.meta.pop("stack_trace", None)
    return program


def write_program(program: ExportedProgram, description: Mapping[str, Any], path: Path) -> None:
    """Save a program as ``.pt2``; no device is left in it, or a warning names where."""
    remove_devices(program)
    if bound := bound_operators(program):
        log.warning("the program runs on the CPU only (%s)", ", ".join(bound[:3]))
    # By way of memory: of a full disk, torch's writer says "unexpected pos 704 vs 598" and, when it
    # is collected, ends the process.
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files={DESCRIPTION: json.dumps(description)})
    # Not by `write_bytes`: its frame, which an error keeps, holds the buffer; CPython 3.12.1 then
    # crashes in its garbage collector.
    with path.open("wb") as file:
        file.write(buffer.getbuffer())


def run_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Read a ``.pt2`` back, ready to run."""
    with quiet():
        module: Any = torch.export.load(path).module()

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = module(pixels)
        return out

    return run


def describe_program(output: Location) -> Mapping[str, Any]:
    """Return the description in a ``.pt2``; empty where there is none."""
    with (
        contextlib.suppress(zipfile.BadZipFile, ValueError, KeyError, RecursionError),
        output.open_seekable() as file,
        zipfile.ZipFile(file) as archive,
    ):
        for name in archive.namelist():
            if name.endswith(f"/extra/{DESCRIPTION}"):
                found: Mapping[str, Any] = json.loads(archive.read(name))
                return found
    return {}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence what torch's exporters say of packages that are not there and of their own code."""
    import warnings

    names = ("torch", "torch.export", "torch.onnx", "torch.fx", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
