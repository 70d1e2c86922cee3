"""A test of truth: a small network learns a few drawn photographs by heart."""

from pathlib import Path
from typing import Any

import pytest
from cocoseg.demo.scenes import draw_dataset
from cocoseg.model.config import ModelConfig
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.train.config import AugmentConfig, TrainConfig
from cocoseg.train.run import train_model


@pytest.mark.parametrize(
    ("images", "steps", "score"),
    [(2, 60, 0.7), pytest.param(16, 400, 0.9, marks=pytest.mark.long)],
)
def test_the_tiny_network_learns_drawn_photographs_by_heart(
    tmp_path: Path, images: int, steps: int, score: float, record_property: Any
) -> None:
    drawn = draw_dataset(tmp_path / "drawn", train_images=images, val_images=1, seed=0)
    shards = str(tmp_path / "shards")
    prepare_shards(
        PrepareConfig(
            annotations=(str(drawn.train.annotations),),
            images=(str(drawn.train.images),),
            output=shards,
            engine="inline",
        )
    )
    config = TrainConfig(
        shards=(shards,),
        val_shards=(shards,),
        save_dir=str(tmp_path / "run"),
        max_steps=steps,
        batch_size=min(8, images),
        accumulation_steps=1,
        workers=0,
        learning_rate=6e-3,
        backbone_lr_ratio=1.0,
        val_every=steps,
        pictures=0,
        device="cpu",
    )
    model = ModelConfig(name="segformer-tiny", input_size=128)
    result = train_model(config, model, AugmentConfig(enabled=False))
    assert result is not None
    assert result.best_score is not None
    record_property("figure", f"{images} images by heart in {steps} steps: {result.best_score:.3f}")
    assert result.best_score >= score
