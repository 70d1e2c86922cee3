"""Which network is scored, and whether its classes are those of the shards."""

import os
from dataclasses import dataclass

import torch

from ...checkpoint.layout import find_checkpoint, is_bare
from ...checkpoint.network import weights_digest
from ...errors import ConfigError
from ...model.config import ModelConfig
from ...model.precision import dtype_name
from ...model.predictor import Predictor
from ...storage import LocalPath, locate
from ...taxonomy import Taxonomy
from ..config import InferConfig
from ..predictor import load_predictor


@dataclass(frozen=True, slots=True)
class ScoredNetwork:
    """A network that was scored."""

    path: str
    """As it was given: a run, say, whose best checkpoint changes."""
    name: str
    """Of the checkpoint's own folder or file, or on the hub."""
    precision: str
    """What the network computed in: ``bfloat16``, say."""
    digest: str
    """XXH3-128 of the names and values of all weights, in hex."""


def load_scored(
    config: InferConfig, model: ModelConfig, taxonomy: Taxonomy, device: torch.device
) -> tuple[Predictor, ScoredNetwork]:
    """Load ``infer.checkpoint`` to score it on shards of a taxonomy.

    Raises
    ------
    ConfigError, DataError
        If it cannot be loaded (see `load_network`), or has other classes.
    """
    given = str(config.checkpoint)
    resolved, name = _resolved(given)
    found = config.model_copy(update={"checkpoint": resolved})
    loaded, predictor = load_predictor(found, model, device)
    _check_classes(given, loaded.taxonomy, taxonomy)
    precision, digest = dtype_name(predictor.precision), weights_digest(loaded.network)
    return predictor, ScoredNetwork(given, name, precision, digest)


def _resolved(given: str) -> tuple[str, str]:
    """Return what a run or a link stands for now, and its name.

    A run that is still training may exchange its best checkpoint at any time.
    """
    found = find_checkpoint(given)
    place = locate(found)
    if not isinstance(place, LocalPath):
        return found, place.name
    if not place.exists():  # on the hub, or nowhere
        return found, found
    real = os.path.realpath(place)
    return given if is_bare(given) else real, os.path.basename(real)


def _check_classes(given: str, theirs: Taxonomy, ours: Taxonomy) -> None:
    same = theirs.num_classes == ours.num_classes if is_bare(given) else theirs.names == ours.names
    if same:
        return
    raise ConfigError(
        f"--checkpoint {given}: has {theirs.num_classes} classes ({_first(theirs)}), "
        f"the shards {ours.num_classes} ({_first(ours)}): they differ, so no score would mean "
        "anything; give the shards that it was trained for, or a checkpoint of these classes"
    )


def _first(taxonomy: Taxonomy) -> str:
    return ", ".join(taxonomy.names[:4]) + (" …" if taxonomy.num_classes > 4 else "")
