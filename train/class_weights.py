"""Weights of the classes in a loss: given, or derived from how many pixels each has."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ..errors import ConfigError
from ..shards.manifest import Manifest

_ENET_C = 1.02  # bounds the weights to 1.4 … 50


def class_weights(
    setting: Literal["none", "auto"] | tuple[float, ...],
    manifests: Sequence[Manifest],
    num_classes: int,
) -> tuple[float, ...] | None:
    """Return one weight a class, by train id, or None where all count the same.

    ``auto`` is ENet's 1 / ln(1.02 + p), p being the class's share of the valid pixels of all
    training shards. Of the published formulas it is the one that needs no more than a manifest
    tells, and it is bounded: median frequency balancing (Eigen & Fergus, 2015) gives a class of a
    few pixels a weight in the thousands, and with it the gradient to a few pixels of noise.

    A class without any pixel gets 0. It is never the truth, so its weight would matter to label
    smoothing alone, which would teach it with the greatest weight of all.

    Source: Paszke et al., "ENet" (2016), §5.2, "custom class weighting scheme".

    Parameters
    ----------
    setting
        `TrainConfig.class_weights`.
    manifests
        Of the training shards; all of one taxonomy.

    Raises
    ------
    ConfigError
        If there is not one weight for each class, or none above 0, or no pixels were counted.
    """
    if setting == "none":
        return None
    if setting == "auto":
        return _by_pixels(manifests, num_classes)
    assert not isinstance(setting, str)
    if len(setting) != num_classes:
        raise ConfigError(
            f"train.class_weights: holds {len(setting)} numbers; the shards have {num_classes} "
            "classes, background first"
        )
    if not any(setting):
        raise ConfigError("train.class_weights: all are 0, which teaches nothing")
    return setting


def _by_pixels(manifests: Sequence[Manifest], num_classes: int) -> tuple[float, ...]:
    pixels = np.zeros(num_classes, np.float64)
    for manifest in manifests:
        if not manifest.masks or len(manifest.class_pixels) != num_classes:
            raise ConfigError(
                "train.class_weights: 'auto' needs the pixels of each class, and a manifest does "
                "not tell them; give the weights as a list"
            )
        pixels += manifest.class_pixels
    if not pixels.any():
        raise ConfigError("train.class_weights: 'auto' finds no pixel that is not ignored")
    weights = 1 / np.log(_ENET_C + pixels / pixels.sum())
    return tuple(np.where(pixels > 0, weights, 0.0).tolist())
