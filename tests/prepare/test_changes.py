"""Photographs that changed after they were packed are noticed."""

import pytest
from cocoseg.errors import ConfigError


@pytest.fixture
def drawn(coco_set):
    for image_id in range(1, 9):
        coco_set.photo(image_id)
    (coco_set.images / "5.jpg").write_bytes(b"")
    return coco_set


def halted(drawn, output, monkeypatch, **settings):
    """Build all shards, and stop before the manifest."""
    with monkeypatch.context() as patch:
        patch.setattr("cocoseg.prepare.build.publish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drawn.prepare(output, **settings)


def test_a_photo_of_another_size_is_refused_with_its_name_and_overwrite_takes_it(
    drawn, tmp_path, stored
):
    drawn.prepare(tmp_path / "shards")
    path = drawn.images / "3.jpg"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ConfigError, match=r"images changed since:\n  3\.jpg: \d+ bytes there"):
        drawn.prepare(tmp_path / "shards")
    drawn.prepare(tmp_path / "shards", overwrite=True)
    assert stored(tmp_path / "shards")["000000000003"].photo == path.read_bytes()


def test_a_photo_that_was_left_out_and_is_mended_is_refused_with_its_name(drawn, tmp_path):
    drawn.prepare(tmp_path / "shards")
    (drawn.images / "5.jpg").write_bytes((drawn.images / "6.jpg").read_bytes())
    with pytest.raises(ConfigError, match=r"5\.jpg: was left out \(empty-file\), is good now"):
        drawn.prepare(tmp_path / "shards")
    assert drawn.prepare(tmp_path / "shards", overwrite=True).quarantined == ()


def test_photos_that_are_gone_are_no_change(drawn, tmp_path):
    first = drawn.prepare(tmp_path / "shards")
    for path in drawn.images.iterdir():
        path.unlink()
    assert drawn.prepare(tmp_path / "shards") == first


@pytest.mark.parametrize("change", ["another size", "fixed"])
def test_an_unfinished_build_makes_only_the_shards_of_changed_photos_anew(
    drawn, tmp_path, stored, monkeypatch, change
):
    output = tmp_path / "shards"
    halted(drawn, output, monkeypatch, samples_per_shard=2)
    before = {path.name: path.stat().st_ino for path in output.glob("*.tar")}
    name = "3.jpg" if change == "another size" else "5.jpg"
    content = (drawn.images / "6.jpg").read_bytes()
    (drawn.images / name).write_bytes(content + b"\0" * 50)
    drawn.prepare(output, samples_per_shard=2)
    after = {path.name: path.stat().st_ino for path in output.glob("*.tar")}
    samples = stored(output)
    sample = samples[f"{int(name[0]):012d}"]
    assert sample.photo == content + b"\0" * 50
    assert {name for name in before if before[name] != after[name]} == {sample.shard}
    drawn.prepare(tmp_path / "fresh", samples_per_shard=2)
    for path in output.iterdir():
        if path.name != "config.yaml":
            assert path.read_bytes() == (tmp_path / "fresh" / path.name).read_bytes()


def test_shrunk_photos_are_not_compared(coco_set, tmp_path):
    path = coco_set.photo(1, 64, 64)
    first = coco_set.prepare(tmp_path / "shards", max_side=32)
    path.write_bytes(path.read_bytes() + b"\0")
    assert coco_set.prepare(tmp_path / "shards", max_side=32) == first
