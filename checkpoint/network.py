"""Networks to train and to predict with, from names, folders and lone files of weights."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from ..errors import ConfigError, DataError
from ..model.classes import classifier_keys, label_settings, renew_classifiers
from ..model.config import ModelConfig
from ..model.encoder import lighten_encoder
from ..model.head import fold_head
from ..model.preprocess import Preprocess
from ..model.registry import architecture, is_random, names
from ..model.sizes import check_input_size, check_sizes
from ..processes import of_leader
from ..storage import locate
from ..storage.lock import temporary_folder
from ..taxonomy import SemanticClass, Taxonomy, coco_taxonomy
from .folder import (
    assumed_preprocess,
    class_names,
    local_folder,
    read_network,
    read_preprocess,
    read_settings,
    read_taxonomy,
)
from .layout import find_checkpoint, is_bare
from .published import is_segformer, published_name, to_transformers
from .weight_file import read_weights

log = logging.getLogger(__name__)
log.addFilter(of_leader)


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
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)  # decides the new weights
        make = _random_network if is_random(config.name) else _pretrained_network
        network, preprocess = make(config, taxonomy)
    check_input_size(network, config.input_size, config.name)
    return _faster(network), preprocess


def _random_network(config: ModelConfig, taxonomy: Taxonomy) -> tuple[nn.Module, Preprocess]:
    settings = architecture(config.name)
    settings.update(label_settings(taxonomy))
    network = AutoModelForSemanticSegmentation.from_config(settings)
    return network, Preprocess(config.input_size, config.keep_ratio)


def _pretrained_network(config: ModelConfig, taxonomy: Taxonomy) -> tuple[nn.Module, Preprocess]:
    with _pretrained_folder(config.name) as source:
        settings = read_settings(source, config.name)
        same = class_names(settings) == taxonomy.names
        settings.update(label_settings(taxonomy))
        classifiers = classifier_keys(settings)
        network = read_network(source, config.name, settings, replaceable=classifiers)
        preprocess = read_preprocess(source, config.name, settings, None)
    if not same:  # the same number of other classes would slip in silently
        renew_classifiers(network, classifiers, settings)
    return network, preprocess.for_training(config.input_size, keep_ratio=config.keep_ratio)


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
    with local_folder(found) as folder:
        settings = read_settings(folder, checkpoint)
        network = read_network(folder, checkpoint, settings)
        taxonomy = read_taxonomy(folder, settings)
        preprocess = read_preprocess(folder, checkpoint, settings, config)
    check_sizes(network, preprocess, checkpoint)
    return LoadedNetwork(_faster(network).eval(), preprocess, taxonomy, found)


def weights_digest(network: nn.Module) -> str:
    """Return the XXH3-128 of the names and values of all weights, in hex."""
    digest = xxhash.xxh3_128()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


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
        network = read_network(folder, f"{path} as {name}", settings)
    check_input_size(network, config.input_size, name)
    return LoadedNetwork(_faster(network).eval(), assumed_preprocess(path, config), taxonomy, path)


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
        with local_folder(name) as folder:
            return read_settings(folder, name), name
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

    It converts the names that its older versions used.
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
        with local_folder(name) as folder:
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
