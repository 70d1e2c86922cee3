"""The full pipeline by the command line, on the golden set, as users run it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("road")


TINY = ("--set=model.input_size=64", "--set=train.max_steps=4", "--set=train.workers=1")


def test_prepare_train_infer_and_eval(golden, run_cocoseg, road: Path) -> None:
    for split in ("train", "val"):
        done = run_cocoseg(
            *("prepare", "--annotations", golden.annotations(split)),
            *("--images", golden.images(split), "--output", road / split, "--workers", 2),
        )
        assert done.code == 0, done.err
        assert run_cocoseg("verify", road / split).code == 0

    run = road / "run"
    command = ("train", "--config", "tiny", "--shards", road / "train", "--val-shards")
    done = run_cocoseg(*command, road / "val", "--output", run, *TINY, "--json")
    assert done.code == 0, done.err
    trained = json.loads(done.out)
    assert trained["steps"] == 4
    assert 0 <= trained["best_val_mIoU"] <= 1
    assert run_cocoseg(*command, road / "val", "--output", run, *TINY, "--json").out == done.out

    masks = road / "masks"
    done = run_cocoseg(
        *("infer", "--checkpoint", run, "--input", golden.images("val"), "--output", masks),
        *("--tta", "--color", "--overlay"),
    )
    assert done.code == 0, done.err
    photos = sorted(path for path in golden.images("val").iterdir() if path.is_file())
    predicted = sorted(masks.glob("*.png"))
    assert [path.stem for path in predicted] == [path.stem for path in photos]
    for path in predicted:
        with Image.open(path) as mask:
            assert mask.mode == "L"
            assert np.asarray(mask).max() <= 80
    assert len(list((masks / "color").iterdir())) == len(photos)
    assert len(list((masks / "overlay").iterdir())) == len(photos)

    scores = road / "scores"
    done = run_cocoseg(
        *("eval", "--checkpoint", run, "--shards", road / "val", "--output", scores),
        *("--no-tta", "--pictures", 2, "--json"),
    )
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads((scores / "metrics.json").read_text())
    assert json.loads(done.out)["mIoU"] == trained["best_val_mIoU"]
    assert len(list((scores / "pictures").iterdir())) == 2


@pytest.mark.parametrize("command", ["train", "infer", "eval"])
def test_a_dry_run_needs_no_network_and_writes_nothing(
    golden, run_cocoseg, tmp_path: Path, command: str
) -> None:
    inputs = {
        "train": ("--shards", golden.shards("train")),
        "infer": ("--checkpoint", "nobody/absent", "--input", golden.images("val")),
        "eval": ("--checkpoint", "nobody/absent", "--shards", golden.shards("val")),
    }
    out = tmp_path / "out"
    done = run_cocoseg(command, *inputs[command], "--output", out, "--dry-run", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)
    assert not out.exists()
