"""From a checkpoint to a folder for the Hugging Face hub, with a model card.

checkpoint → weights, config, image processor, card → loaded again, compared → published
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSemanticSegmentation

from ...checkpoint.folder import quiet, save_network
from ...checkpoint.network import LoadedNetwork, load_network, weights_digest
from ...checkpoint.provenance import Provenance
from ...errors import ConfigError, DataError
from ...model.config import ModelConfig
from ...results import Result, aligned
from ...storage import Location, locate
from .card import Card
from .config import ExportConfig
from .network import Reference, trial_shapes
from .parity import Parity, compare, refuse_difference
from .program import SMALLEST
from .publish import refuse_other, scratch_beside, wanted_output

CARD = "README.md"
_LAST = "config.json"
_OURS = ("*.safetensors", "model.safetensors.index.json", "*config.json", "taxonomy.json", CARD)


@dataclass(frozen=True, slots=True)
class FolderPlan(Result):
    """What ``--dry-run`` prints."""

    config: ExportConfig
    output: Location
    loaded: LoadedNetwork
    card: Card

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        known = self.card.provenance
        return {
            "checkpoint": self.config.checkpoint,
            "output": self.output.url,
            "format": "hf",
            "architecture": self.card.architecture,
            "classes": self.card.taxonomy.num_classes,
            "input_size": self.card.preprocess.input_size,
            "weights_began_from": known.base_model or known.weights,
            "license": self.card.license.get("license", "yours to choose"),
            "data_digest": known.data_digest,
            "scores": self.card.metrics and self.card.metrics.get("mIoU"),
        }


@dataclass(frozen=True, slots=True)
class FolderExport(Result):
    """A folder that was written, or was there."""

    plan: FolderPlan
    state: str
    files: Mapping[str, int]
    """Name → bytes."""
    parity: Parity

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            **self.plan.to_dict(),
            "state": self.state,
            "files": dict(self.files),
            "parity": self.parity.to_dict(),
        }

    def text(self) -> str:
        """Return it for people, with the largest difference instead of all."""
        lines = {
            key: "not recorded" if value is None else value
            for key, value in self.to_dict().items()
            if key != "parity"
        }
        return aligned({**lines, "largest_difference": str(self.parity)})


def plan_folder(config: ExportConfig, model: ModelConfig) -> FolderPlan:
    """Load the checkpoint, and read what its card tells.

    Raises
    ------
    ConfigError
        If a flag is missing, the checkpoint or the scores cannot be had, or the scores are of other
        weights.
    DataError
        If the checkpoint or the scores are damaged.
    """
    output = wanted_output(config)
    if output.is_file():
        raise ConfigError(f"--output {output}: is a file; give a folder")
    loaded = load_network(str(config.checkpoint), model)
    network: Any = loaded.network
    card = Card(
        name=output.name,
        architecture=network.config.model_type,
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        taxonomy=loaded.taxonomy,
        preprocess=loaded.preprocess,
        provenance=Provenance.of(loaded),
        metrics=None if config.metrics is None else _metrics(config.metrics, loaded),
    )
    return FolderPlan(config, output, loaded, card)


def export_folder(config: ExportConfig, model: ModelConfig) -> FolderExport:
    """Write a folder that transformers loads by itself, and load it before it is published.

    Raises
    ------
    ConfigError
        See `plan_folder`; also if the folder is there and differs, or holds other files.
    DataError
        See `plan_folder`.
    CocosegError
        If what transformers loads computes something else.
    """
    plan = plan_folder(config, model)
    with scratch_beside(plan.output) as scratch:
        folder = scratch / "export"
        folder.mkdir()
        save_network(folder, plan.loaded.network, plan.loaded.preprocess, plan.loaded.taxonomy)
        (folder / CARD).write_text(plan.card.text(), encoding="utf-8")
        for weights in folder.glob("*.safetensors"):  # safetensors lets nobody else read them
            weights.chmod((folder / CARD).stat().st_mode)
        parity = _parity(plan, folder)
        refuse_difference(parity, str(plan.output))
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        there = plan.output.list_files()
        if there and _same(folder, plan.output, there):
            return FolderExport(plan, "kept, it is there already", files, parity)
        if there or plan.output.list_folders():
            cut_short = _is_cut_short(plan.output, there, files)
            if not cut_short:
                _refuse_foreign_files(plan.output, there)
                refuse_other(plan.output, "and differs", overwrite=config.overwrite)
        if plan.output.remote:
            (plan.output / _LAST).remove()  # transformers takes a folder without it for none
        plan.output.publish_folder(folder, _LAST, folder.with_name("replaced"))
    return FolderExport(plan, "written", files, parity)


def _parity(plan: FolderPlan, folder: Path) -> Parity:
    """Run what transformers loads of the folder beside the checkpoint's own network."""
    with quiet():
        theirs: Any = AutoModelForSemanticSegmentation.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    theirs.eval()
    normalize = plan.loaded.preprocess.normalizer()

    def run(images: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = theirs(pixel_values=normalize(images)).logits
        return logits

    side = plan.loaded.preprocess.input_size
    any_size = plan.card.architecture == "segformer" and side >= SMALLEST
    return compare(run, Reference(plan.loaded), trial_shapes(side, any_size=any_size))


def _metrics(path: str, loaded: LoadedNetwork) -> Mapping[str, Any]:
    try:
        metrics = locate(path).read_json()
    except DataError as error:
        raise DataError(f"--metrics {error}") from None
    if not isinstance(metrics, dict) or not isinstance(metrics.get("mIoU"), (int, float)):
        raise DataError(f"--metrics {path}: has no mIoU; give a metrics.json of 'cocoseg eval'")
    scored = metrics.get("checkpoint")
    if not isinstance(scored, dict) or scored.get("digest") != weights_digest(loaded.network):
        raise ConfigError(
            f"--metrics {path}: are not scores of these weights; run 'cocoseg eval' on the same "
            "checkpoint (a run's best one changes while it trains)"
        )
    return metrics


def _same(folder: Path, output: Location, there: Mapping[str, int]) -> bool:
    ours = {path.name: path for path in folder.iterdir()}
    return there == {name: path.stat().st_size for name, path in ours.items()} and all(
        locate(path).sha256() == (output / name).sha256() for name, path in ours.items()
    )


def _is_cut_short(output: Location, there: Mapping[str, int], ours: Mapping[str, int]) -> bool:
    """Return whether a folder holds nothing but the first files of this export.

    In an object store they are written one after the other, the weights first.
    """
    weights = any(Path(name).match(_OURS[0]) for name in there)
    return output.remote and weights and _LAST not in there and there.keys() <= ours.keys()


def _refuse_foreign_files(output: Location, there: Mapping[str, int]) -> None:
    """Never replace a folder that holds what no export writes: a run, a repository, images."""
    ours = _OURS if _LAST in there else ()  # a README.md alone is not an export
    foreign = [name for name in there if not any(Path(name).match(form) for form in ours)]
    foreign += output.list_folders()
    if foreign:
        raise ConfigError(
            f"--output {output}: holds other files ({', '.join(sorted(foreign)[:3])}); choose "
            "another folder"
        )
