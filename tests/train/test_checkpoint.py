"""Checkpoints: published whole, verified on reading, and readable by transformers alone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from cocoseg import storage
from cocoseg.errors import DataError
from cocoseg.model.weights import load_network
from cocoseg.taxonomy import coco_taxonomy
from cocoseg.train import checkpoint
from cocoseg.train.loop import RunResult
from transformers import AutoModelForSemanticSegmentation, pipeline


@pytest.fixture(scope="module")
def trained(
    train_small: Callable[..., RunResult], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    run = tmp_path_factory.mktemp("trained") / "run"
    train_small(run)
    return run


@pytest.fixture
def finished(trained: Path, tmp_path: Path) -> Path:
    """A finished run of two checkpoints, to be damaged."""
    return Path(shutil.copytree(trained, tmp_path / "run", symlinks=True))


def test_a_run_holds_what_the_design_promises(finished: Path) -> None:
    assert {path.name for path in finished.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "tensorboard", "checkpoints", "best", "last")
    }
    assert [path.name for path in sorted((finished / "checkpoints").iterdir())] == [
        *("step-00000003", "step-00000006")
    ]
    assert str((finished / "last").readlink()) == "checkpoints/step-00000006"
    assert (finished / "best").is_symlink()
    assert not (finished / "best").readlink().is_absolute()


@pytest.mark.usefixtures("image_processor")
def test_transformers_alone_reads_a_checkpoint(finished: Path, golden) -> None:
    model = AutoModelForSemanticSegmentation.from_pretrained(finished / "last")
    assert list(model.config.id2label.values()) == list(coco_taxonomy().names)
    ours = load_network(str(finished / "checkpoints" / "step-00000006"), None).network  # type: ignore[arg-type]
    for name, value in ours.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    photo = next(golden.images("val").glob("*.jpg"))
    found = pipeline("image-segmentation", model=str(finished / "last"))(str(photo))
    assert {entry["label"] for entry in found} <= set(coco_taxonomy().names)


@pytest.mark.parametrize("name", ["model.safetensors", "training_state.pt", "config.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    finished: Path, name: str, damage: str
) -> None:
    path = finished / "checkpoints" / "step-00000006" / name
    content = bytearray(path.read_bytes())
    if damage == "remove":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    found = checkpoint.load_newest(str(finished))
    assert found is not None
    assert found.state["step"] == 3


def test_where_every_checkpoint_is_damaged_nothing_is_started_over(
    finished: Path, train_small: Callable[..., RunResult]
) -> None:
    for path in (finished / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="no checkpoint of the run is whole"):
        train_small(finished)


def test_pruning_spares_best_and_last(tmp_path: Path) -> None:
    run = str(tmp_path)
    for step in range(1, 7):
        folder = tmp_path / "checkpoints" / checkpoint.checkpoint_name(step)
        folder.mkdir(parents=True)
        (folder / "digests.json").write_text("{}")
    checkpoint.point(run, "best", 1)
    checkpoint.point(run, "last", 6)
    checkpoint.prune(run, keep_last=2)
    assert checkpoint.list_steps(run) == [1, 5, 6]
    assert checkpoint.pointed_step(run, "best") == 1


def test_a_folder_without_its_digests_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000004").mkdir(parents=True)
    assert checkpoint.list_steps(str(tmp_path)) == []
    assert checkpoint.load_newest(str(tmp_path)) is None


def test_a_full_disk_leaves_the_checkpoint_before(
    finished: Path, train_small: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(local: Path, url: str, last: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "publish_folder", full)
    with pytest.raises(OSError, match="No space left"):
        train_small(finished, max_steps=9)
    assert checkpoint.pointed_step(str(finished), "last") == 6
    assert checkpoint.list_steps(str(finished)) == [3, 6]
    assert not list((finished / "checkpoints").glob(".tmp-*"))


def test_a_run_on_an_object_store_has_pointers_and_resumes(
    train_small: Callable[..., RunResult], tmp_path: Path
) -> None:
    run = "memory://checkpoint-test/run"
    storage.remove(run)
    config = {"save_dir": run}
    train_small(tmp_path, max_steps=6, val_every=3, **config)
    assert storage.read_bytes(f"{run}/last") == b"checkpoints/step-00000006\n"
    assert {"config.yaml", "metrics.jsonl", "best", "last"} <= set(storage.list_files(run))
    local = tmp_path / "local"
    train_small(local)
    for name in ("model.safetensors", "config.json"):
        there = storage.read_bytes(f"{run}/checkpoints/step-00000006/{name}")
        assert there == (local / "last" / name).read_bytes()
    assert train_small(tmp_path, max_steps=6, val_every=3, **config).step == 6
