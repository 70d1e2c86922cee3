"""The predictor that ``infer`` and ``eval`` settings mean."""

import contextlib

import torch

from ..checkpoint.network import LoadedNetwork, load_network
from ..errors import ConfigError
from ..model.config import ModelConfig
from ..model.device import pick_device
from ..model.memory import explained_out_of_memory
from ..model.precision import resolve_precision
from ..model.predictor import Predictor
from ..model.sizes import check_sizes
from ..model.tiles import Tiling
from ..processes import keep_freed_memory
from .config import InferConfig
from .views import views_of

SLOW = "larger images, slower storage, or another program on this GPU or CPU"
"""Likely causes of a collapse of throughput; see `Meter`."""


def load_predictor(
    config: InferConfig, model: ModelConfig | None = None, device: torch.device | None = None
) -> tuple[LoadedNetwork, Predictor]:
    """Load ``infer.checkpoint`` onto a device, with the views and tiles of the settings.

    Parameters
    ----------
    config
        `checkpoint` must be set.
    model
        Architecture, classes and size for a lone file of weights, and how it is computed.
    device
        By default `config.device`.

    Raises
    ------
    ConfigError, DataError
        See `load_network`; also if the network cannot take the size of a view.
    CocosegError
        If the device has too little memory for it.
    """
    if config.checkpoint is None:
        raise ConfigError("--checkpoint: give a run, a checkpoint folder or a Hugging Face name")
    model = model or ModelConfig()
    device = device or pick_device(config.device)
    loaded = load_network(config.checkpoint, model)
    views = views_of(config)
    scales = sorted({view.scale for view in views})
    check_sizes(loaded.network, loaded.preprocess, config.checkpoint, scales)
    if device.type == "cpu":
        keep_freed_memory()
    size = config.tile_size or 2 * loaded.preprocess.input_size
    with explained_memory():
        network = loaded.network.to(device)
    return loaded, Predictor(
        network,
        loaded.preprocess,
        views,
        precision=resolve_precision(model.inference_precision, device),
        tiling=Tiling(size, config.tile_overlap) if config.tile_above else None,
        tile_above=config.tile_above,
        batch_size=config.batch_size,
        origin=loaded.origin,
    )


def explained_memory() -> contextlib.AbstractContextManager[None]:
    """Say which settings to change where a device has too little memory."""
    return explained_out_of_memory(
        "out of memory",
        "Use infer.device=cpu, free memory of the device, or need less of it: fewer or smaller "
        "infer.tta_scales, a smaller model.input_size, for tiles a larger infer.tile_size (fewer "
        "tiles)",
    )
