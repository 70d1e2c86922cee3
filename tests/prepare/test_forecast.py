"""What --dry-run tells comes true."""

import json

import pytest
from cocoseg.errors import CocosegError
from cocoseg.storage import LocalPath


@pytest.fixture
def drawn(coco_set):
    for image_id in range(30):
        coco_set.photo(image_id, 64, 48)
        coco_set.annotate(image_id, [[1, 1, 40, 1, 40, 40]])
    (coco_set.images / "7.jpg").write_bytes(b"<html>")
    (coco_set.images / "8.jpg").unlink()
    coco_set.annotate(9, [[1, 1, 2]])
    coco_set.write()
    return coco_set


def test_a_dry_run_tells_what_prepare_then_does(drawn, tmp_path, run_cocoseg):
    flags = ("prepare", *drawn.flags, "--output", tmp_path / "shards", "--samples-per-shard", 7)
    expected = json.loads(run_cocoseg(*flags, "--dry-run", "--json").out)
    assert not (tmp_path / "shards").exists()
    done = json.loads(run_cocoseg(*flags, "--engine", "inline", "--json").out)
    assert expected["images"] == done["samples"] + sum(done["quarantined"].values()) == 30
    assert expected["shards"] == done["shards"] == 5
    assert expected["problems"] == done["quarantined"]
    assert 0.9 < expected["bytes"] / done["bytes"] < 1.2
    assert expected["seconds"] > 0
    assert expected["free_bytes"] > 0


def test_a_dry_run_reads_like_a_story(drawn, tmp_path, run_cocoseg):
    flags = ("prepare", *drawn.flags, "--output", tmp_path / "shards", "--dry-run")
    out = run_cocoseg(*flags, "--split", "train=0.5,val=0.5").out
    for fragment in (
        "1 undecodable-image", "1 missing-file", "1 bad-polygon", "8.jpg: missing-file",
        "images: train", "images: val", "4: background, cat, dog, fish",
    ):  # fmt: skip
        assert fragment in out


@pytest.mark.parametrize(
    ("spoil", "flags", "code"),
    [
        (lambda made: None, (), 4),
        (lambda made: None, ("--max-bad", 2), 4),
        (lambda made: None, ("--max-bad", 3), 0),
        (lambda made: [path.write_bytes(b"") for path in made.images.iterdir()], (), 3),
        (lambda made: [path.unlink() for path in made.images.iterdir()], (), 3),
        (lambda made: made.json.write_text("{"), (), 3),
        (lambda made: None, ("--classes", "coco"), 3),
        (lambda made: None, ("--split", "train=0.5"), 2),
    ],
    ids=["three bad", "one too many", "allowed", "all bad", "no image", "no JSON", "no COCO",
         "bad split"],
)  # fmt: skip
def test_a_dry_run_ends_with_the_code_of_the_run(drawn, tmp_path, run_cocoseg, spoil, flags, code):
    spoil(drawn)
    flags = ("prepare", *drawn.flags, "--output", tmp_path / "shards", "--engine", "inline", *flags)
    assert run_cocoseg(*flags, "--dry-run").code == code
    assert not (tmp_path / "shards").exists()
    assert run_cocoseg(*flags).code == code
    assert run_cocoseg(*flags, "--dry-run").code == code  # of what is complete, where it is


def test_a_dry_run_of_other_settings_than_those_of_the_output_is_refused(
    drawn, tmp_path, run_cocoseg
):
    flags = ("prepare", *drawn.flags, "--output", tmp_path / "shards", "--engine", "inline")
    assert run_cocoseg(*flags).code == 4
    for more, code in ((("--crowd", "drop"), 2), (("--crowd", "drop", "--overwrite"), 4)):
        assert run_cocoseg(*flags, *more, "--dry-run").code == code


def test_a_dry_run_tells_of_a_full_disk(drawn, tmp_path, run_cocoseg, monkeypatch):
    monkeypatch.setattr(LocalPath, "free_space", lambda self: 1000)
    ran = run_cocoseg("prepare", *drawn.flags, "--output", tmp_path / "shards", "--dry-run")
    assert ran.code == 1
    assert "are free; make room" in ran.err
    assert "30" in ran.out


def test_a_disk_that_cannot_hold_the_shards_is_told_before_the_first(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(LocalPath, "free_space", lambda self: 1000)
    with pytest.raises(CocosegError, match="are free; make room") as refused:
        drawn.prepare(tmp_path / "shards")
    assert refused.value.exit_code == 1
    assert not list(tmp_path.glob("shards/*.tar"))
    monkeypatch.undo()
    assert drawn.prepare(tmp_path / "shards").manifest.samples == 27
