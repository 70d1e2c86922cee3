"""What of a network depends on its classes: labels, and the layers that score them."""

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSemanticSegmentation

from ..taxonomy import Taxonomy


def label_settings(taxonomy: Taxonomy) -> dict[str, Any]:
    """Return what a transformers configuration says of the classes."""
    return {
        "num_labels": taxonomy.num_classes,
        "id2label": dict(enumerate(taxonomy.names)),
        "label2id": {name: train_id for train_id, name in enumerate(taxonomy.names)},
        "semantic_loss_ignore_index": taxonomy.ignore_index,
    }


def classifier_keys(settings: Any) -> frozenset[str]:
    """Return the names of the weights whose first dimension is the classes, auxiliary heads' too.

    Found by building the network with one class more, without memory: those are the weights that
    then have one row more.
    """
    one, more = _shapes(settings, 0), _shapes(settings, 1)
    return frozenset(
        key
        for key, shape in one.items()
        if shape and more.get(key) == (shape[0] + 1, *shape[1:]) and shape[0] == settings.num_labels
    )


def renew_classifiers(network: nn.Module, keys: frozenset[str], settings: Any) -> None:
    """Draw new classifiers, as transformers initializes them.

    Explicitly: transformers' own _init_weights passes over what was loaded from a file.
    """
    deviation = getattr(settings, "initializer_range", 0.02)
    for key in sorted(keys):
        parameter = network.get_parameter(key)
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=deviation)
        else:
            nn.init.zeros_(parameter)


def _shapes(settings: Any, more_classes: int) -> dict[str, tuple[int, ...]]:
    changed = copy.deepcopy(settings)
    changed.num_labels = settings.num_labels + more_classes
    with torch.device("meta"):
        network = AutoModelForSemanticSegmentation.from_config(changed)
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
