"""From COCO instance annotations to a trained semantic segmentation model.

``import cocoseg`` imports neither torch nor numpy: every public name is imported when it is used.

The repository root is this package: ``./shards/reader.py`` is ``cocoseg.shards.reader``.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":
    raise ImportError(
        "cocoseg runs on Linux and macOS; on Windows, use it in WSL (it needs POSIX file locks)"
    )

if TYPE_CHECKING:
    from .infer.config import InferConfig
    from .infer.evaluate.run import evaluate
    from .infer.export.config import ExportConfig
    from .infer.export.run import export_model
    from .infer.predict.run import predict
    from .infer.predictor import load_predictor
    from .model.config import ModelConfig
    from .model.predictor import Predictor
    from .prepare.build import prepare_shards
    from .prepare.config import PrepareConfig
    from .shards.config import IndexConfig
    from .shards.dataset import ShardDataset
    from .shards.index import index_shards
    from .shards.stream import stream_webdataset
    from .taxonomy import Taxonomy
    from .train.config import AugmentConfig, TrainConfig
    from .train.run import train_model
    from .viewer.run import view

__version__ = "0.1.0"

__all__ = [
    "AugmentConfig",
    "ExportConfig",
    "IndexConfig",
    "InferConfig",
    "ModelConfig",
    "Predictor",
    "PrepareConfig",
    "ShardDataset",
    "Taxonomy",
    "TrainConfig",
    "evaluate",
    "export_model",
    "index_shards",
    "load_predictor",
    "predict",
    "prepare_shards",
    "stream_webdataset",
    "train_model",
    "view",
]

_MODULES = {
    "infer.config": ("InferConfig",),
    "infer.evaluate.run": ("evaluate",),
    "infer.export.config": ("ExportConfig",),
    "infer.export.run": ("export_model",),
    "infer.predict.run": ("predict",),
    "infer.predictor": ("load_predictor",),
    "model.config": ("ModelConfig",),
    "model.predictor": ("Predictor",),
    "prepare.build": ("prepare_shards",),
    "prepare.config": ("PrepareConfig",),
    "shards.config": ("IndexConfig",),
    "shards.dataset": ("ShardDataset",),
    "shards.index": ("index_shards",),
    "shards.stream": ("stream_webdataset",),
    "taxonomy": ("Taxonomy",),
    "train.config": ("AugmentConfig", "TrainConfig"),
    "train.run": ("train_model",),
    "viewer.run": ("view",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
