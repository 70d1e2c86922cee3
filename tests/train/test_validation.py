"""Validation counts each sample once at any number of processes, and all of the pixels."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cocoseg.errors import CocosegError, DataError
from cocoseg.train.run import RunResult
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from warm import Warm

Train = Callable[..., RunResult]
SCRIPT = Path(__file__).with_name("validation_cells.py")
SAMPLES = (1, 2, 3, 7)


@pytest.fixture(scope="module")
def network(train_small: Train, tmp_path_factory: pytest.TempPathFactory, sets: Path) -> Path:
    """A checkpoint that knows the three classes of the sets a little."""
    run = tmp_path_factory.mktemp("validation") / "run"
    train_small(run, max_steps=2, shards=(str(sets / "7"),), val_shards=(), learning_rate=1e-2)
    return run / "last"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, coco_set_class: Any) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    for count in SAMPLES:
        coco_set = coco_set_class(folder / f"set-{count}")
        for image_id in range(1, count + 1):
            width, height = 40 + 7 * image_id, 30 + 5 * (image_id % 3)
            coco_set.photo(image_id, width, height)
            box = [3, 3, 20 + image_id, 3, 20 + image_id, 25, 3, 25]
            coco_set.annotate(image_id, [box], category_id=(1, 2, 7)[image_id % 3])
        coco_set.prepare(folder / str(count), samples_per_shard=3)
    return folder


def scores(warm: Warm, network: Path, sets: Path, world_size: int) -> list[dict[str, Any]]:
    ran = warm.start(
        world_size, SCRIPT, network, json.dumps([str(sets / str(count)) for count in SAMPLES])
    )
    out, err = ran.communicate()
    assert ran.returncode == 0, err[-3000:]
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def test_one_two_and_four_processes_count_the_same(warm: Warm, network: Path, sets: Path) -> None:
    """With fewer samples than processes, and with uneven counts."""
    one = scores(warm, network, sets, 1)
    assert len(one) == len(SAMPLES)
    for count, told in zip(SAMPLES, one, strict=True):
        manifest = json.loads((sets / str(count) / "manifest.json").read_text())
        assert [entry["pixels"] for entry in told["classes"]] == manifest["class_pixels"]
    assert len({told["pixel_accuracy"] for told in one}) > 1
    assert len({told["loss"] for told in one}) == len(SAMPLES)
    for world_size in (2, 4):
        assert scores(warm, network, sets, world_size) == one


def test_pixels_that_the_manifest_does_not_count_end_validation(
    train_small: Train, sets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cocoseg.train import validation

    totals_of = validation.totals_of

    def forgetful(predicts: Any, shards: Any, batches: Any, check: Any) -> Any:
        return totals_of(predicts, shards, batches[:-1], check)  # one batch is lost

    monkeypatch.setattr(validation, "totals_of", forgetful)
    with pytest.raises(DataError, match=r"validation scored .* pixels of .* the manifests count"):
        train_small(
            tmp_path, shards=(str(sets / "7"),), val_shards=(str(sets / "7"),), val_batch_size=2
        )


def test_a_damaged_validation_sample_ends_the_run_by_name(
    train_small: Train, sets: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(sets / "7", broken)
    shard = broken / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[600:700] = bytes(100)
    shard.write_bytes(content)
    with pytest.raises(CocosegError, match=r"shard-000001\.tar"):
        train_small(tmp_path / "run", shards=(str(sets / "7"),), val_shards=(str(broken),))


def test_classes_that_neither_are_there_nor_predicted_are_listed(
    train_small: Train, tmp_path: Path
) -> None:
    train_small(tmp_path, max_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = next(line for line in lines if "val_mIoU" in line)
    assert 0 < len(told["val_absent_classes"]) < 81
    assert "background" not in told["val_absent_classes"]
    assert np.isfinite(told["val_mIoU"])


def test_loss_and_scores_of_each_class_are_recorded(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, max_steps=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    told = next(line for line in lines if "val_mIoU" in line)
    assert 0 < told["val_loss"] < 10
    assert len(told["val_IoU"]) == 81
    known = {name: iou for name, iou in told["val_IoU"].items() if iou is not None}
    assert np.mean(list(known.values())) == pytest.approx(told["val_mIoU"])
    assert sorted({*told["val_IoU"]} - {*known}) == sorted(told["val_absent_classes"])
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert board.Scalars("val_loss")[0].value == pytest.approx(told["val_loss"])
    shown = {tag.removeprefix("val_IoU/") for tag in board.Tags()["scalars"] if "val_IoU/" in tag}
    assert shown == set(known)


def test_the_loss_falls_with_training(train_small: Train, tmp_path: Path) -> None:
    train_small(tmp_path, max_steps=30, val_every=10, learning_rate=3e-3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = (line["val_loss"] for line in lines if "val_loss" in line)
    assert last < first
