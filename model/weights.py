"""Networks from names, folders and files, and back into folders that transformers understands.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import xxhash
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import (
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoModelForSemanticSegmentation,
)

from ..errors import ConfigError, DataError, first_line
from ..processes import of_leader
from ..storage import LocalPath, Location, locate
from ..storage.lock import temporary_folder
from ..taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from .classes import classifier_keys, label_settings, renew_classifiers
from .config import ModelConfig
from .encoder import lighten_encoder
from .head import fold_head
from .layouts import is_segformer, published_name, to_transformers
from .preprocess import KIND_OF_NETWORK, SEGFORMER, Preprocess
from .registry import architecture, is_random, names
from .sizes import check_input_size, check_sizes
from .weight_file import SUFFIXES, read_weights

log = logging.getLogger(__name__)
log.addFilter(of_leader)

_NETWORK_NAME = "config.json"
PREPROCESS_NAME = "preprocessor_config.json"
TAXONOMY_NAME = "taxonomy.json"
STATE_NAME = "training_state.pt"
"""Beside the weights in a checkpoint of a run: optimizer and progress."""

_UNLOADABLE = (
    *(OSError, ValueError, RuntimeError, AttributeError, StrictDataclassError),
    *(TypeError, LookupError, ArithmeticError),
)
"""What transformers raises of a config.json that it cannot use."""
_OF_A_RUN = re.compile(r"best|last|checkpoints|step-\d+|.*\.(safetensors|bin|ckpt|json|onnx|pt2)")
"""Last parts of paths that are never models of the hub."""


@dataclass(frozen=True, slots=True)
class LoadedNetwork:
    """A network and all that must be known to use it."""

    network: nn.Module
    """One of transformers' networks for semantic segmentation, float32, in eval mode; SegFormers
    compute the same faster."""
    preprocess: Preprocess
    taxonomy: Taxonomy
    origin: str
    """Where it was read from: a folder, a file, or a name of the hub."""


def start_network(
    config: ModelConfig, taxonomy: Taxonomy, seed: int
) -> tuple[nn.Module, Preprocess]:
    """Return the network that a training run starts from.

    Pretrained weights are kept, all of them; the classifiers alone are new where the classes
    differ. A SegFormer's encoder without a decode head (``nvidia/mit-b0``, ``mit_b0.pth`` …) gets a
    new head.

    Raises
    ------
    ConfigError
        If the name is unknown, or the network does not segment or cannot take the input size, or a
        lone file of weights is not that of a published SegFormer.
    DataError
        If weights are damaged, missing, left over or of other shapes.
    """
    torch.manual_seed(seed)  # decides the new weights
    if is_random(config.name):
        settings = architecture(config.name)
        settings.update(label_settings(taxonomy))
        network = AutoModelForSemanticSegmentation.from_config(settings)
        preprocess = Preprocess(config.input_size, config.keep_ratio)
    else:
        with _pretrained_folder(config.name) as source:
            settings = _settings(source, config.name)
            same = _labels(settings) == taxonomy.names
            settings.update(label_settings(taxonomy))
            classifiers = classifier_keys(settings)
            network = _network(source, config.name, settings, replaceable=classifiers)
            preprocess = _preprocess_of(source, config.name, settings, None)
        if not same:  # the same number of other classes would slip in silently
            renew_classifiers(network, classifiers, settings)
        preprocess = preprocess.for_training(config.input_size, keep_ratio=config.keep_ratio)
    check_input_size(network, config.input_size, config.name)
    return _faster(network), preprocess


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


def load_network(checkpoint: str, config: ModelConfig) -> LoadedNetwork:
    """Load a network for inference.

    Parameters
    ----------
    checkpoint
        A run (its ``best``, else its ``last``), a checkpoint folder, a Hugging Face name, or a
        file of weights (``.pt``, ``.safetensors`` …, see `read_weights`).
    config
        Architecture, classes and size for a bare file of weights; a folder brings its own. With the
        default name, a file of the shapes of a published SegFormer is taken as that.

    Raises
    ------
    ConfigError
        If there is nothing of that name, it does not segment or not at its input size, or a bare
        file comes without an architecture.
    DataError
        If weights are damaged, missing, left over or of other shapes, or contradict what lies
        beside them.
    """
    found = find_checkpoint(checkpoint)
    if is_bare(found):
        return _load_file(found, config)
    with _local(found) as folder:
        settings = _settings(folder, checkpoint)
        network = _network(folder, checkpoint, settings)
        taxonomy = _taxonomy_of(folder, settings)
        preprocess = _preprocess_of(folder, checkpoint, settings, config)
    check_sizes(network, preprocess, checkpoint)
    return LoadedNetwork(_faster(network).eval(), preprocess, taxonomy, found)


def weights_digest(network: nn.Module) -> str:
    """Return the XXH3-128 of the names and values of all weights, in hex."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def is_bare(checkpoint: str) -> bool:
    """Tell whether it is a file of weights, which knows neither its network nor its classes."""
    return checkpoint.endswith(SUFFIXES)


def find_checkpoint(checkpoint: str) -> str:
    """Return the folder, file or name of the hub that is meant; nothing is loaded.

    Of a run it is what ``best``, else ``last``, points to.

    Raises
    ------
    ConfigError
        If a file or folder is not there, or is none of a network; the hub is not asked.
    """
    if is_bare(checkpoint):
        if not locate(checkpoint).is_file():
            raise ConfigError(f"--checkpoint {checkpoint}: no such file")
        return checkpoint
    found = _resolve_run(locate(checkpoint))
    if found.is_dir():
        if isinstance(found, LocalPath) and not os.access(found, os.X_OK):
            raise ConfigError(f"--checkpoint {checkpoint}: {os.strerror(errno.EACCES)}")
        if not (found / _NETWORK_NAME).exists():
            raise ConfigError(
                f"--checkpoint {checkpoint}: holds no {_NETWORK_NAME}: it is neither a run nor a "
                "folder that transformers saved"
            )
    elif found.exists():
        raise ConfigError(
            f"--checkpoint {checkpoint}: is a file; give a run, a checkpoint folder, or a file of "
            f"weights ({', '.join(SUFFIXES)})"
        )
    elif not _may_be_on_hub(found.url):
        raise ConfigError(f"--checkpoint {checkpoint}: no such folder")
    return found.url


def _may_be_on_hub(name: str) -> bool:
    """Return whether a name may be OWNER/NAME of the hub.

    It is not if OWNER is a local folder, or NAME is one that the checkpoints of runs have.
    """
    owner, slash, model = name.partition("/")
    if not (owner and slash and model) or "/" in model or locate(name).remote:
        return False
    return not (os.path.isdir(owner) or _OF_A_RUN.fullmatch(model))


def _resolve_run(checkpoint: Location) -> Location:
    for name in ("best", "last"):
        link = checkpoint / name
        if not link.exists():
            continue
        if link.is_dir():
            return link
        return checkpoint / link.read_bytes().decode(errors="replace").strip()
    if (checkpoint / "checkpoints").is_dir():
        raise ConfigError(f"--checkpoint {checkpoint}: is a run without a finished checkpoint yet")
    return checkpoint


def _load_file(path: str, config: ModelConfig) -> LoadedNetwork:
    weights = to_transformers(path, read_weights(path), encoder_suffices=False)
    settings, name = _architecture_of(path, weights, config)
    head = any(key.startswith("decode_head.") for key in weights)
    if is_segformer(weights) and not head:
        raise DataError(
            f"{path}: contains an encoder without a decode head: it can start a training "
            "(model.name), but predicts nothing"
        )
    taxonomy = _taxonomy_of_file(weights, settings, config.num_classes)
    settings.update(label_settings(taxonomy))
    with _as_folder(weights, settings) as folder:
        network = _network(folder, f"{path} as {name}", settings)
    check_input_size(network, config.input_size, name)
    return LoadedNetwork(_faster(network).eval(), _assumed(path, config), taxonomy, path)


def _architecture_of(
    path: str, weights: Mapping[str, torch.Tensor], config: ModelConfig
) -> tuple[Any, str]:
    """Return the configuration of the network that bare weights belong to, and its name."""
    name, published = config.name, published_name(weights)
    if published and name == ModelConfig.model_fields["name"].default:
        name = published
        log.info("%s: loaded as %s, according to the shapes of its weights", path, name)
    if is_random(name):
        if published not in (None, name):
            raise ConfigError(
                f"{path}: is a {published} according to the shapes of its weights, but model.name "
                f"is {name}: set model.name={published}"
            )
        return architecture(name), name
    try:
        with _local(name) as folder:
            return _settings(folder, name), name
    except ConfigError as error:
        raise ConfigError(
            f"{path}: contains weights alone: say by --config, or --set model.name=segformer-b0 …,"
            f" of which network; model.name is {name}, and:\n{error}"
        ) from None


def _taxonomy_of_file(
    weights: Mapping[str, torch.Tensor], settings: Any, num_classes: int | None = None
) -> Taxonomy:
    """Return the classes of bare weights: COCO's, or numbered ones where there are others."""
    classes = num_classes or _classes_of(weights, settings)
    taxonomy = coco_taxonomy()
    if classes == taxonomy.num_classes:
        return taxonomy
    beside = (f"class {i}" for i in range(1, classes))
    return Taxonomy(tuple(SemanticClass(name) for name in ("background", *beside)))


@contextlib.contextmanager
def _as_folder(weights: Mapping[str, torch.Tensor], settings: Any) -> Iterator[str]:
    """Give a folder of bare weights, from which transformers loads them.

    It converts the names of its older versions on the way.
    """
    with temporary_folder() as scratch:
        settings.save_pretrained(scratch)
        plain = {name: value.contiguous().clone() for name, value in weights.items()}
        save_file(plain, scratch / "model.safetensors", metadata={"format": "pt"})
        yield str(scratch)


@contextlib.contextmanager
def _pretrained_folder(name: str) -> Iterator[str]:
    """Give a folder of the weights that a training starts from; a lone file becomes one."""
    if not (is_bare(name) and locate(name).is_file()):
        with _local(name) as folder:
            yield folder
        return
    weights = to_transformers(name, read_weights(name), encoder_suffices=True)
    size = published_name(weights)
    if size is None:
        raise ConfigError(
            f"model.name {name}: its weights are not those of a published SegFormer "
            f"({', '.join(names())}), and a file of weights does not say of which network it is: "
            "give a folder with a config.json"
        )
    settings = architecture(size)
    if _classes_of(weights, settings):
        settings.update(label_settings(_taxonomy_of_file(weights, settings)))
    log.info("%s: loaded as %s, according to the shapes of its weights", name, size)
    with _as_folder(weights, settings) as folder:
        yield folder


def _faster(network: nn.Module) -> nn.Module:
    """Let a SegFormer compute the same in less time; what is none, or is unknown, stays."""
    fold_head(network)
    lighten_encoder(network)
    return network


def _classes_of(weights: Mapping[str, torch.Tensor], settings: Any) -> int:
    """Return how many classes bare weights score; 0 if they hold no classifier."""
    shapes = (weights[key].shape for key in sorted(classifier_keys(settings)) if key in weights)
    return next((shape[0] for shape in shapes if shape), 0)


def _settings(source: str, name: str) -> Any:
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


def _network(
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


def _labels(settings: Any) -> tuple[str, ...]:
    """Return the class names by train id; a JSON file may list them in any order."""
    return tuple(str(settings.id2label[i]) for i in sorted(settings.id2label))


def _taxonomy_of(folder: str, settings: Any) -> Taxonomy:
    file = Path(folder) / TAXONOMY_NAME
    if not file.is_file():  # another program's
        return Taxonomy(tuple(SemanticClass(name) for name in _labels(settings)))
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


@contextlib.contextmanager
def _local(reference: str) -> Iterator[str]:
    """Give a local folder, or a name of the hub, that transformers can load."""
    place = locate(reference)
    on_hub = _may_be_on_hub(reference) or "/" not in reference
    if (os.path.isabs(place.url) or not on_hub) and not place.is_dir():
        raise ConfigError(f"{place}: no such folder")
    with place.fetched(leave_out=[STATE_NAME]) as folder:
        yield str(folder)


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
        elsewhere = "" if os.path.isdir(source) else "is no folder here, and "
        raise ConfigError(
            f"{name}: {elsewhere}cannot be loaded: {first_line(error)}\n"
            "Give a local folder, a name of the Hugging Face hub (needs the network once), or, for "
            f"random weights, {', '.join(names())}."
        ) from None


def _preprocess_of(folder: str, name: str, settings: Any, config: ModelConfig | None) -> Preprocess:
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
    return _assumed(name, config)


def _assumed(name: str, config: ModelConfig | None) -> Preprocess:
    """Return what is assumed of a network without an image processor; see `_preprocess_of`."""
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


def has_processor(checkpoint: str) -> bool:
    """Tell whether a checkpoint brings its own sizes; a name of the hub is not looked up."""
    found = locate(find_checkpoint(checkpoint))
    return not found.is_dir() or (found / PREPROCESS_NAME).is_file()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' reports and bars; what they say is checked by `_network`."""
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
