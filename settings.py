"""The whole configuration: one section for each stage, as a YAML file holds them."""

from typing import Self

from .config import Section
from .infer.config import InferConfig
from .infer.export.config import ExportConfig
from .model.config import ModelConfig
from .prepare.config import PrepareConfig
from .shards.config import IndexConfig
from .train.config import AugmentConfig, TrainConfig


class Settings(Section):
    """All sections; each command uses its own."""

    prepare: PrepareConfig = PrepareConfig()
    index: IndexConfig = IndexConfig()
    model: ModelConfig = ModelConfig()
    augment: AugmentConfig = AugmentConfig()
    train: TrainConfig = TrainConfig()
    infer: InferConfig = InferConfig()
    export: ExportConfig = ExportConfig()

    def effective(self) -> Self:
        """Return these settings with the defaults that depend on other settings."""
        return self.model_copy(update={"train": self.train.resolved(self.model)})
