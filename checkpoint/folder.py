"""Hugging Face folders: a network, its image processor and our taxonomy, read and written.

Weights are float32 in memory and in what is saved, whatever type a checkpoint stores; in which type
a network computes is a matter of autocast (`model.precision`).
"""

import contextlib
import errno
import json
import logging
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoModelForSemanticSegmentation,
)

from ..errors import ConfigError, DataError, first_line
from ..model.config import ModelConfig
from ..model.preprocess import KIND_OF_NETWORK, SEGFORMER, Preprocess
from ..model.registry import names
from ..processes import of_leader
from ..storage import locate
from ..taxonomy import SemanticClass, Taxonomy
from .layout import PREPROCESS_NAME, STATE_NAME, TAXONOMY_NAME, may_be_on_hub

log = logging.getLogger(__name__)
log.addFilter(of_leader)

_UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, AttributeError, StrictDataclassError),
    *(TypeError, LookupError, ArithmeticError),
)
"""What transformers raises of a config.json that it cannot use."""


def save_network(
    folder: Path, network: nn.Module, preprocess: Preprocess, taxonomy: Taxonomy
) -> None:
    """Write a Hugging Face folder: config, weights, image processor, and our taxonomy.

    Raises
    ------
    OSError
        If the disk is full or fails.
    """
    model: Any = network
    try:
        with quiet():
            model.save_pretrained(folder)
    except SafetensorError as error:  # of the disk: it keeps the text alone
        found = re.search(r"os error (\d+)", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(folder)) from error
    for name, content in (
        (PREPROCESS_NAME, preprocess.to_dict()),
        (TAXONOMY_NAME, taxonomy.to_dict()),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def local_folder(reference: str) -> Iterator[str]:
    """Give a local folder, or a name of the hub, that transformers can load."""
    place = locate(reference)
    on_hub = may_be_on_hub(reference) or "/" not in reference
    if (os.path.isabs(place.url) or not on_hub) and not place.is_dir():
        raise ConfigError(f"{place}: no such folder")
    with place.fetched(leave_out=[STATE_NAME]) as folder:
        yield str(folder)


def read_settings(source: str, name: str) -> Any:
    """Read transformers' configuration of a network, and refuse one that does not segment."""
    settings = _pretrained(AutoConfig, source, name)
    if type(settings) not in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING:
        known = sorted(kind.model_type for kind in MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING)
        raise ConfigError(
            f"{name}: is a {settings.model_type}, of which transformers has no network for "
            f"semantic segmentation; it has {', '.join(known)}"
        )
    settings.dtype = torch.float32  # in which transformers builds a network; not that of the file
    return settings


def read_network(
    source: str, name: str, settings: Any, *, replaceable: frozenset[str] = frozenset()
) -> Any:
    """Load a network whole; of the `replaceable` weights a training run replaces the shape."""
    network, report = _pretrained(
        AutoModelForSemanticSegmentation,
        source,
        name,
        config=settings,
        dtype=torch.float32,  # else it is the config's, or that of the first weight
        ignore_mismatched_sizes=True,  # reported all the same, by name
        output_loading_info=True,
    )
    missing, unexpected = set(report["missing_keys"]), set(report["unexpected_keys"])
    mismatched = {
        key
        for key, there, here in report["mismatched_keys"]
        if key not in replaceable or tuple(there)[1:] != tuple(here)[1:]  # of the classes alone
    }
    if replaceable and settings.model_type == "segformer":
        head = {key for key, _ in network.named_parameters() if key.startswith("decode_head.")}
        if missing >= head:  # an encoder alone; half a head would be an accident
            missing = {key for key in missing if not key.startswith("decode_head.")}
            unexpected = {key for key in unexpected if not key.startswith("classifier.")}
    problems = {"missing": missing, "left over": unexpected, "of another shape": mismatched}
    told = [
        f"{len(keys)} {what} ({', '.join(sorted(keys)[:3])}{' …' if len(keys) > 3 else ''})"
        for what, keys in problems.items()
        if keys
    ]
    if told:
        raise DataError(f"{name}: weights do not fit the network: {'; '.join(told)}")
    # Out of the file's memory map: in memory of their own they are aligned as new weights are, and
    # sums come out to the last bit as in the run that saved them.
    for tensor in (*network.parameters(), *network.buffers()):
        dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
        tensor.data = tensor.data.to(dtype, copy=True)
    return network


def class_names(settings: Any) -> tuple[str, ...]:
    """Return the class names by train id; a JSON file may list them in any order."""
    return tuple(str(settings.id2label[i]) for i in sorted(settings.id2label))


def read_taxonomy(folder: str, settings: Any) -> Taxonomy:
    """Read the classes; those of another program's folder are the names in its configuration."""
    file = Path(folder) / TAXONOMY_NAME
    if not file.is_file():
        return Taxonomy(tuple(SemanticClass(name) for name in class_names(settings)))
    content = locate(file).read_json()
    try:
        taxonomy = Taxonomy.from_dict(content)
    except DataError as error:
        raise DataError(f"{file}: {error}") from None
    if taxonomy.num_classes != settings.num_labels:
        raise DataError(
            f"{file}: has {taxonomy.num_classes} classes, the network {settings.num_labels}"
        )
    return taxonomy


def read_preprocess(
    folder: str, name: str, settings: Any, config: ModelConfig | None
) -> Preprocess:
    """Read the image processor of a network; without one, sizes are those of `config`.

    Parameters
    ----------
    config
        None: a training, which has sizes of its own.
    """
    file = Path(folder) / PREPROCESS_NAME
    mixin = transformers.image_processing_base.ImageProcessingMixin
    try:
        with quiet():
            content = mixin.get_image_processor_dict(folder)[0]
        kind = KIND_OF_NETWORK.get(settings.model_type, SEGFORMER)
        return Preprocess.from_dict(content, kind, sizes=config is not None)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        if file.is_file() or not isinstance(error, OSError):
            raise DataError(f"{file}: {first_line(error)}") from None
    return assumed_preprocess(name, config)


def assumed_preprocess(name: str, config: ModelConfig | None) -> Preprocess:
    """Return what is assumed of a network without an image processor; see `read_preprocess`."""
    size = "" if config is None else f", resized to model.input_size {config.input_size}"
    log.warning(
        "%s: has no %s: assuming RGB images%s, and ImageNet's mean and standard deviation",
        name,
        PREPROCESS_NAME,
        size,
    )
    if config is None:
        return Preprocess.from_dict({}, sizes=False)
    return Preprocess(config.input_size, config.keep_ratio)


def _pretrained(kind: Any, source: str, name: str, **options: Any) -> Any:
    try:
        with quiet():
            return kind.from_pretrained(source, trust_remote_code=False, **options)
    except (SafetensorError, pickle.UnpicklingError, EOFError) as error:
        raise DataError(f"{name}: weights are damaged: {first_line(error)}") from None
    except _UNLOADABLE as error:
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"{name}: consists of Python code of its own (auto_map in config.json), which is "
                "never run; use a network that transformers has"
            ) from None
        elsewhere = "" if os.path.isdir(source) else "is not a folder here, and "
        raise ConfigError(
            f"{name}: {elsewhere}cannot be loaded: {first_line(error)}\n"
            "Give a local folder, a name of the Hugging Face hub (needs the network once), or, for "
            f"random weights, {', '.join(names())}."
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' reports and bars; what they say is checked by `read_network`."""
    theirs = transformers.utils.logging
    verbosity, bars = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        theirs.set_verbosity(verbosity)
        if bars:
            theirs.enable_progress_bar()
