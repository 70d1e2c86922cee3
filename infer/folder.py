"""What the output folders of ``infer`` and ``eval`` hold beside the masks, and their settings."""

import json
from collections.abc import Iterable
from typing import Any

from ..checkpoint.layout import has_processor, is_bare
from ..colors import colormap
from ..config import parse_yaml, to_yaml
from ..errors import ConfigError
from ..model.config import COMPUTATION_KEYS, ModelConfig
from ..storage import Location
from ..storage.output import FILES, OutputFolder, read_ledger
from ..taxonomy import Taxonomy
from .config import InferConfig

SETTINGS, CLASSES = "config.yaml", "classes.json"
PREDICTIONS, COCO_JSON = "predictions.jsonl", "coco.json"
FOLDERS = ("color", "overlay", "confidence", "probabilities")
"""Folders of an inference for everything but masks."""
PROGRESS = ".progress"
"""Folder of an inference for what is done so far."""


def mask_file(name: str) -> str:
    """Return the relative path of an image's mask."""
    return f"{name}.png"


def refuse_loss(output: OutputFolder) -> None:
    """Make sure that no masks of an inference of another source will be removed as left over.

    Raises
    ------
    ConfigError
        If they would. Masks of the same source, whose images are gone, may go, too.
    """
    if output.source == output.source_before:
        return
    masks = sorted(
        name
        for name in (output.ours & output.there) - output.wanted
        if name.endswith(".png") and name.partition("/")[0] not in FOLDERS
    )
    if masks:
        more = f" and {len(masks) - 1:,} more" * (len(masks) > 1)
        raise ConfigError(
            f"--output {output.location}: holds masks of another --input, {output.source_before}, "
            f"and they would be removed: {masks[0]}{more}; choose a folder of its own"
        )


def files_of_outputs(folder: Location, names: Iterable[str]) -> set[str]:
    """Return the files that outputs within a folder account for as theirs.

    Parameters
    ----------
    names
        Relative paths of all files below it.
    """
    found: set[str] = set()
    for name in names:
        inner, _, last = name.rpartition("/")
        if last == FILES and inner:
            files = read_ledger(folder / name).get("files", ())
            found |= {f"{inner}/{file}" for file in files}
    return found


def used_settings(config: InferConfig, model: ModelConfig) -> str:
    """Return the content of config.yaml: of the ``model`` section what had an effect.

    A bare file of weights needs all of it; any other checkpoint brings its own sizes and classes,
    and masks that are scored need none of it.
    """
    if config.checkpoint is None:
        return to_yaml({"infer": config})
    only = {"model": COMPUTATION_KEYS}
    if is_bare(config.checkpoint):
        only = {}
    elif not has_processor(config.checkpoint):
        only = {"model": COMPUTATION_KEYS | {"input_size", "keep_ratio"}}
    return to_yaml({"model": model, "infer": config}, only)


def recorded_settings(folder: Location) -> dict[str, Any]:
    """Return the ``infer`` section of a folder's config.yaml; empty where it has none."""
    file = folder / SETTINGS
    if not file.is_file():
        return {}
    try:
        found = parse_yaml(file.read_bytes())["infer"]
    except (ConfigError, KeyError, TypeError):  # another program's
        return {}
    return found if isinstance(found, dict) else {}


def classes_json(config: InferConfig, taxonomy: Taxonomy) -> str:
    """Return the content of ``classes.json``: names, category ids and colors by train id."""
    content = taxonomy.to_dict()
    colors = colormap(config.palette, max(256, taxonomy.num_classes))
    for entry in content["classes"]:
        entry["color"] = f"#{colors[entry['train_id']].tobytes().hex()}"
    return json.dumps(content, indent=1) + "\n"
