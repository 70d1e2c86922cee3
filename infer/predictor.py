"""A checkpoint, ready to turn photographs into masks."""

import functools
from dataclasses import dataclass

from ..errors import ConfigError
from ..model.config import ModelConfig
from ..model.device import pick_device
from ..model.score import Predictor, predict_plain
from ..model.weights import LoadedNetwork, load_network
from ..processes import keep_freed_memory
from .config import InferConfig
from .views import predict_views, views_of


@dataclass(frozen=True, slots=True)
class ReadyNetwork:
    """A network on its device and the function that predicts with it."""

    loaded: LoadedNetwork
    predict: Predictor


def ready_network(config: InferConfig, model: ModelConfig) -> ReadyNetwork:
    """Load ``infer.checkpoint`` and choose between TTA and a single view.

    Raises
    ------
    ConfigError, DataError
        See `load_network`.
    """
    if config.checkpoint is None:
        raise ConfigError("--checkpoint: give a run, a checkpoint folder or a Hugging Face name")
    loaded = load_network(config.checkpoint, model)
    device = pick_device(config.device)
    if device.type == "cpu":
        keep_freed_memory()
    network = loaded.network.to(device)
    if config.use_tta:
        views = views_of(config)
        return ReadyNetwork(
            loaded, functools.partial(predict_views, network, loaded.preprocess, views)
        )
    return ReadyNetwork(loaded, functools.partial(predict_plain, network, loaded.preprocess))
