"""A damaged sample ends the run on every rank, or is a slot of weight 0 that is listed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cocoseg.errors import DataError
from cocoseg.shards.reader import ShardSet

STEP = 4  # global batch of the small run


@pytest.fixture
def damaged(golden: Any, tmp_path: Path) -> tuple[Path, str]:
    """Copied training shards, and the key of a sample whose photograph has one wrong bit."""
    folder = shutil.copytree(golden.shards("train"), tmp_path / "damaged")
    return folder, damage(folder, 4)


def damage(folder: Path, number: int) -> str:
    row = ShardSet([str(folder)]).row(number)
    path = folder / f"shard-{number // 3:06d}.tar"
    content = bytearray(path.read_bytes())
    content[row.offsets[0] + row.lengths[0] // 2] ^= 8
    path.write_bytes(content)
    return row.key


def listed(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "bad-samples.jsonl").read_text().splitlines()]


def test_all_ranks_stop_and_name_shard_and_key(torchrun: Any, damaged: Any, tmp_path: Path) -> None:
    folder, key = damaged
    ran = torchrun(tmp_path / "run", 2, shards=folder, workers=1)
    _, err = ran.communicate(timeout=600)
    assert ran.returncode != 0
    assert f"shard-000001.tar: sample {key}: the shard differs from the index in its image" in err
    assert err.count("bad samples: 1, train.max_bad is 0") == 1  # both stop, one tells
    assert "exitcode  : 3 " in err
    assert "DataLoader worker" not in err
    assert [one["key"] for one in listed(tmp_path / "run")] == [key]


def test_the_run_goes_on_with_one_that_is_allowed(
    train_small: Any, damaged: Any, tmp_path: Path
) -> None:
    folder, key = damaged
    settings = {"shards": (str(folder),), "max_bad": 1, "max_steps": 6}
    train_small(tmp_path / "run", **settings)
    (record,) = listed(tmp_path / "run")  # once, though three epochs met it
    assert record["key"] == key
    assert record["shard"].endswith("shard-000001.tar")
    assert "differs from the index in its image" in record["problem"]
    assert 0 <= record["step"] < 2  # of the first epoch


def test_what_was_left_out_is_told(
    train_small: Any, damaged: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, key = damaged
    result = train_small(tmp_path / "run", shards=(str(folder),), max_bad=1)
    assert result.to_dict()["bad_samples"] == 1
    assert [record.levelname for record in caplog.records if key in record.message] == ["WARNING"]


def test_a_run_of_mended_shards_lists_nothing(
    train_small: Any, golden: Any, damaged: Any, tmp_path: Path
) -> None:
    folder, _ = damaged
    with pytest.raises(DataError):
        train_small(tmp_path / "run", shards=(str(folder),))
    assert listed(tmp_path / "run")
    shutil.copytree(golden.shards("train"), folder, dirs_exist_ok=True)
    train_small(tmp_path / "run", shards=(str(folder),))
    assert not (tmp_path / "run" / "bad-samples.jsonl").exists()


def test_those_that_are_known_count_on_after_a_resume(
    train_small: Any, damaged: Any, tmp_path: Path
) -> None:
    folder, key = damaged
    settings = {"shards": (str(folder),), "max_bad": 1}
    train_small(tmp_path / "run", max_steps=3, **settings)
    another = damage(folder, 1)
    with pytest.raises(DataError, match=rf"bad samples: 2, train\.max_bad is 1(.|\n)*{another}"):
        train_small(tmp_path / "run", max_steps=6, **settings)
    assert {one["key"] for one in listed(tmp_path / "run")} == {key, another}


def test_a_damaged_validation_sample_ends_the_run(
    train_small: Any, golden: Any, tmp_path: Path
) -> None:
    folder = shutil.copytree(golden.shards("val"), tmp_path / "val")
    key = damage(folder, 1)
    with pytest.raises(DataError, match=rf"shard-000000\.tar: sample {key}"):
        train_small(tmp_path / "run", val_shards=(str(folder),), max_bad=5)
