"""From a checkpoint to one file with a graph, ONNX or a program, that was run and compared.

checkpoint → network → traced → converted → run again, compared with transformers' own → published
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ... import __version__
from ...checkpoint.network import LoadedNetwork, load_network, weights_digest
from ...errors import CocosegError, ConfigError
from ...model.config import ModelConfig
from ...model.preprocess import BILINEAR
from ...results import Result, aligned
from ...storage import Location
from .config import ExportConfig
from .network import INPUTS, ExportedNetwork, Reference, output_port, trial_shapes
from .onnx_model import describe_onnx, run_onnx, write_onnx
from .parity import Parity, compare, refuse_difference
from .program import SMALLEST, capture, describe_program, run_program, write_program
from .publish import refuse_other, scratch_beside, wanted_output

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GraphFormat:
    """A kind of file."""

    name: str
    suffix: str
    version: int
    """Grows with what is written of the same network; files of an earlier one are not kept."""
    packages: tuple[str, ...]
    """That are needed, beside our own dependencies."""
    write: Callable[[ExportedProgram, Mapping[str, Any], Path], None]
    run: Callable[[Path], Callable[[Tensor], Tensor]]
    describe: Callable[[Location], Mapping[str, Any]]


FORMATS = {
    "onnx": GraphFormat(
        "onnx",
        ".onnx",
        1,
        ("onnx", "onnxscript", "onnxruntime"),
        write_onnx,
        run_onnx,
        describe_onnx,
    ),
    # 2: without devices
    "program": GraphFormat("program", ".pt2", 2, (), write_program, run_program, describe_program),
}


@dataclass(frozen=True, slots=True)
class GraphPlan(Result):
    """What ``--dry-run`` prints."""

    format: GraphFormat
    config: ExportConfig
    output: Location
    loaded: LoadedNetwork
    description: Mapping[str, Any]
    """What the file says of itself; its `fingerprint` is of weights, settings and versions."""
    kept: bool
    """Whether the file is there already, made of the same by the same."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        told = self.description
        return {
            "checkpoint": self.config.checkpoint,
            "output": self.output.url,
            "format": self.format.name,
            **({"opset": self.config.opset} if self.format.name == "onnx" else {}),
            "architecture": told["architecture"],
            "input": told["input"],
            "result": told["output"],
            "normalization": told["normalization"],
            "classes": told["num_classes"],
            "input_size": told["input_size"],
            "state": "kept, it is there already" if self.kept else "to be written",
        }


@dataclass(frozen=True, slots=True)
class GraphExport(Result):
    """A file that was written, or was there."""

    plan: GraphPlan
    size: int
    """In bytes."""
    dynamic: tuple[str, ...]
    """The axes of the input that may have any size; height and width from 64 pixels on."""
    parity: Parity | None
    """None where the file was there."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.plan.to_dict(),
            "state": "written" if self.parity else "kept, it is there already",
            "dynamic": list(self.dynamic),
            "bytes": self.size,
            "parity": self.parity and self.parity.to_dict(),
        }

    def text(self) -> str:
        """Return it for people, with the largest difference instead of all."""
        difference = str(self.parity) if self.parity else "compared when it was written"
        lines = {key: value for key, value in self.to_dict().items() if key != "parity"}
        return aligned({**lines, "largest_difference": difference})


def plan_graph(kind: GraphFormat, config: ExportConfig, model: ModelConfig) -> GraphPlan:
    """Load the checkpoint and find out whether its export is there.

    Raises
    ------
    ConfigError
        If a package or a flag is missing, the output is there and differs, or the checkpoint cannot
        be loaded.
    DataError
        If the checkpoint is damaged.
    """
    _require(kind)
    output = wanted_output(config, kind.suffix)
    loaded = load_network(str(config.checkpoint), model)
    description = _description(kind, config, loaded)
    kept = False
    if output.exists():
        same = kind.describe(output).get("fingerprint") == description["fingerprint"]
        kept = same and not config.overwrite
        if not same:
            what = "and is of other weights, settings or versions"
            refuse_other(output, what, overwrite=config.overwrite)
    return GraphPlan(kind, config, output, loaded, description, kept)


def export_graph(kind: GraphFormat, config: ExportConfig, model: ModelConfig) -> GraphExport:
    """Export a checkpoint as one file, and compare what the file computes before it is published.

    The batch may have any size, height and width too if the network can be exported so; else they
    are the network's input size, and a warning says it.

    Raises
    ------
    ConfigError, DataError
        See `plan_graph`.
    CocosegError
        If the network cannot be exported, or the file computes something else. There is no file
        then.
    """
    plan = plan_graph(kind, config, model)
    if plan.kept:
        dynamic = kind.describe(plan.output).get("dynamic", [])
        names = json.loads(dynamic) if isinstance(dynamic, str) else dynamic
        return GraphExport(plan, plan.output.size(), tuple(names), None)
    reference = Reference(plan.loaded)
    with scratch_beside(plan.output) as scratch:
        path = scratch / f"export{kind.suffix}"
        any_size = plan.loaded.preprocess.input_size >= SMALLEST
        try:
            dynamic, parity = _written(plan, reference, path, any_size=any_size)
        except (CocosegError, OSError):
            raise
        except Exception as error:  # exporters fail of anything
            if not any_size:
                raise _cannot(plan, error) from error
            dynamic, parity = _at_one_size(plan, reference, path, error)
        size = path.stat().st_size
        plan.output.publish_file(path)
    return GraphExport(plan, size, dynamic, parity)


def _at_one_size(
    plan: GraphPlan, reference: Reference, path: Path, error: Exception
) -> tuple[tuple[str, ...], Parity]:
    try:
        written = _written(plan, reference, path, any_size=False)
    except (CocosegError, OSError):
        raise
    except Exception as again:  # exporters fail of anything
        raise _cannot(plan, again) from again
    size = plan.loaded.preprocess.input_size
    log.warning(
        "%s: height and width are fixed at %d: a %s cannot be exported for any size (%s)",
        plan.output,
        size,
        plan.description["architecture"],
        _brief(error),
    )
    return written


def _written(
    plan: GraphPlan, reference: Reference, path: Path, *, any_size: bool
) -> tuple[tuple[str, ...], Parity]:
    """Write the file and run it; tell the open axes of its input, and how it compares."""
    config, size = plan.config, plan.loaded.preprocess.input_size
    program = capture(ExportedNetwork.of(plan.loaded, config), size, any_size=any_size)
    dynamic = ("batch", "height", "width") if any_size else ("batch",)
    described = {**plan.description, "dynamic": list(dynamic)}
    plan.format.write(program, described, path)
    del program
    run = plan.format.run(path)
    normalize = plan.loaded.preprocess.normalizer()
    parity = compare(
        run if config.input_type == "uint8" else lambda images: run(normalize(images)),
        reference,
        trial_shapes(size, any_size=any_size),
        of_masks=config.output_type == "mask",
    )
    refuse_difference(parity, str(plan.output))
    return dynamic, parity


def _description(
    kind: GraphFormat,
    config: ExportConfig,
    loaded: LoadedNetwork,
) -> dict[str, Any]:
    network: Any = loaded.network
    preprocess, taxonomy = loaded.preprocess, loaded.taxonomy
    description = {
        "architecture": network.config.model_type,
        "input": str(INPUTS[config.input_type]),
        "output": str(output_port(config, taxonomy.num_classes)),
        "normalization": "in the graph" if config.input_type == "uint8" else "by the caller",
        "mean": list(preprocess.mean),
        "std": list(preprocess.std),
        "channel_order": "BGR" if preprocess.blue_first else "RGB",
        "input_size": preprocess.input_size,
        "keep_ratio": preprocess.keep_ratio,
        **({} if preprocess.resizing is None else preprocess.resizing.to_dict()),
        **({} if preprocess.resample == BILINEAR else {"resample": preprocess.resample}),
        **({} if preprocess.rescale == 1 / 255 else {"rescale_factor": preprocess.rescale}),
        "num_classes": taxonomy.num_classes,
        "class_names": list(taxonomy.names),
        "ignore_index": taxonomy.ignore_index,
        "weights": weights_digest(loaded.network),
        **({"opset": config.opset} if kind.name == "onnx" else {}),
        "format_version": kind.version,
        "made_by": f"cocoseg {__version__}, torch {torch.__version__}"
        + "".join(f", {name} {importlib.metadata.version(name)}" for name in kind.packages),
    }
    fingerprint = hashlib.sha256(json.dumps(description).encode()).hexdigest()
    return {**description, "fingerprint": fingerprint}


def _require(kind: GraphFormat) -> None:
    missing = [name for name in kind.packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"export {kind.name}: needs {', '.join(kind.packages)}; not installed: "
            f"{', '.join(missing)}. Install them: pip install 'cocoseg[export]'"
        )


def _cannot(plan: GraphPlan, error: Exception) -> CocosegError:
    return CocosegError(
        f"{plan.output}: is not written: a {plan.description['architecture']} cannot be exported "
        f"as {plan.format.name}: {_brief(error)}. 'cocoseg export hf' writes any network."
    )


def _brief(error: Exception) -> str:
    """Return the first line that says something; exporters write pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200].rstrip(".")
