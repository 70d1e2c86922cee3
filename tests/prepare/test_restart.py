"""The same bytes, whatever the number of workers and restarts; finished work is kept."""

import hashlib
from pathlib import Path

import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.shards.verify import verify


def published(folder: Path) -> dict[str, bytes]:
    """The files that must not depend on how they were made; ``config.yaml`` tells just that."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "config.yaml"}
    assert "manifest.json" in files
    return files


def identities(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.glob("*.tar")}


@pytest.fixture
def drawn(coco_set):
    """Fourteen images, every second one annotated, one of them bad."""
    for image_id in range(1, 15):
        coco_set.photo(image_id)
        if image_id % 2:
            coco_set.annotate(image_id, [[1, 1, 9, 1, 9, image_id / 2, 1, image_id / 2]])
    (coco_set.images / "5.jpg").write_bytes(b"<html>404</html>")
    coco_set.write()
    return coco_set


def test_one_and_three_workers_write_the_same_bytes(drawn, tmp_path):
    for workers in (1, 3):
        drawn.prepare(tmp_path / f"{workers}", samples_per_shard=3, workers=workers)
    assert published(tmp_path / "1") == published(tmp_path / "3")
    assert len(list((tmp_path / "1").glob("*.tar"))) == 5


def test_one_and_three_workers_write_the_same_bytes_of_real_coco(real_data, run_cocoseg, tmp_path):
    coco = real_data / "coco"
    pair = ("--annotations", coco / "annotations" / "instances_val2017.json")
    pair += ("--images", coco / "val2017")
    for workers in (1, 3):
        output = ("--output", tmp_path / f"{workers}", "--workers", workers)
        ran = run_cocoseg("prepare", *pair, *output, "--samples-per-shard", 16)
        assert ran.code == 0
    assert published(tmp_path / "1") == published(tmp_path / "3")


def test_the_place_of_a_sample_follows_the_hash_of_its_key_alone(drawn, tmp_path, stored):
    drawn.prepare(tmp_path / "shards", samples_per_shard=3)
    keys = sorted(
        (f"{image_id:012d}" for image_id in range(1, 15)),
        key=lambda key: hashlib.sha256(key.encode()).digest(),
    )
    expected = [
        (key, f"shard-{place // 3:06d}.tar")
        for place, key in enumerate(keys)
        if key != "000000000005"  # quarantined: its shard is shorter, nothing else moves
    ]
    found = [(key, sample.shard) for key, sample in stored(tmp_path / "shards").items()]
    assert found == expected


def test_a_finished_shard_that_was_damaged_meanwhile_is_built_again(drawn, tmp_path, monkeypatch):
    import cocoseg.prepare.build as build

    class Killed(Exception):
        pass

    def stop(*_):
        raise Killed

    drawn.prepare(tmp_path / "undisturbed", samples_per_shard=3)
    with monkeypatch.context() as patch:
        patch.setattr(build, "publish", stop)
        with pytest.raises(Killed):
            drawn.prepare(tmp_path / "damaged", samples_per_shard=3)
    shard = tmp_path / "damaged" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    (tmp_path / "damaged" / "shard-000002.tar").unlink()
    drawn.prepare(tmp_path / "damaged", samples_per_shard=3)
    assert published(tmp_path / "damaged") == published(tmp_path / "undisturbed")


def test_a_second_run_of_a_complete_output_writes_nothing(drawn, tmp_path, run_cocoseg):
    flags = ("prepare", *drawn.flags, "--output", tmp_path / "shards", "--workers", 1)
    first = run_cocoseg(*flags, "--json")
    before = identities(tmp_path / "shards"), published(tmp_path / "shards")
    for path in drawn.images.iterdir():
        path.unlink()  # nor does it need the photographs
    second = run_cocoseg(*flags, "--json")
    assert (identities(tmp_path / "shards"), published(tmp_path / "shards")) == before
    assert (first.code, first.out) == (second.code, second.out) == (4, first.out)


@pytest.mark.parametrize("complete", [True, False])
def test_other_settings_on_the_same_output_are_refused_with_the_difference(
    drawn, tmp_path, run_cocoseg, monkeypatch, complete
):
    output = ("--output", tmp_path / "shards", "--workers", 1)
    with monkeypatch.context() as patch:
        if not complete:
            patch.setattr("cocoseg.prepare.build.publish", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                drawn.prepare(tmp_path / "shards")
        else:
            drawn.prepare(tmp_path / "shards")
    before = identities(tmp_path / "shards")
    ran = run_cocoseg("prepare", *drawn.flags, *output, "--overlap", "order")
    assert (ran.code, ran.out) == (2, "")
    assert "settings.overlap: 'area' there, 'order' now" in ran.err
    drawn.annotate(2, [[1, 1, 5, 1, 5, 5]])
    drawn.write()
    ran = run_cocoseg("prepare", *drawn.flags, *output)
    assert (ran.code, ran.out) == (2, "")
    assert "sources.0.annotations: 7 there, 8 now" in ran.err
    assert identities(tmp_path / "shards") == before


def test_shards_of_unknown_origin_are_never_overwritten(drawn, tmp_path, run_cocoseg):
    (tmp_path / "shards").mkdir()
    strange = tmp_path / "shards" / "shard-000000.tar"
    strange.write_bytes(b"mine")
    ran = run_cocoseg("prepare", *drawn.flags, "--output", tmp_path / "shards")
    assert ran.code == 2
    assert "unknown origin" in ran.err
    assert strange.read_bytes() == b"mine"


def test_another_number_of_workers_or_max_bad_makes_no_other_data_set(drawn, tmp_path):
    first = drawn.prepare(tmp_path / "shards", max_bad=0)
    second = drawn.prepare(tmp_path / "shards", workers=3, max_bad=5)
    assert first == second


# ---- outputs that are not as they were left


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_complete_output_that_lost_a_shard_is_not_called_complete(drawn, tmp_path, damage):
    first = drawn.prepare(tmp_path / "shards", samples_per_shard=3)
    shard = tmp_path / "shards" / "shard-000001.tar"
    shard.unlink() if damage == "missing" else shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ConfigError, match=r"shard-000001.tar is missing or was changed"):
        drawn.prepare(tmp_path / "shards", samples_per_shard=3)
    again = drawn.prepare(tmp_path / "shards", samples_per_shard=3, overwrite=True)
    assert again == first


@pytest.mark.parametrize("spoil", [lambda t: t[:300], lambda t: t.replace('"version": 2', "9")])
def test_a_broken_manifest_is_refused_with_the_way_out_which_works(drawn, tmp_path, spoil):
    drawn.prepare(tmp_path / "whole", samples_per_shard=3)
    drawn.prepare(tmp_path / "shards", samples_per_shard=3)
    manifest = tmp_path / "shards" / "manifest.json"
    manifest.write_text(spoil(manifest.read_text()))
    with pytest.raises(DataError, match="--overwrite prepares it again"):
        drawn.prepare(tmp_path / "shards", samples_per_shard=3)
    drawn.prepare(tmp_path / "shards", samples_per_shard=3, overwrite=True)
    assert published(tmp_path / "shards") == published(tmp_path / "whole")


@pytest.mark.parametrize("name", ["config.yaml", "quarantine.jsonl", "prepare-report.html"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_the_users_is_never_replaced(drawn, tmp_path, name, overwrite):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / name).write_text("mine")
    with pytest.raises(ConfigError, match="of unknown origin"):
        drawn.prepare(tmp_path / "shards", overwrite=overwrite)
    assert (tmp_path / "shards" / name).read_text() == "mine"


def test_the_saved_settings_do_not_ask_to_overwrite_again(drawn, tmp_path):
    drawn.prepare(tmp_path / "shards")
    drawn.prepare(tmp_path / "shards", overwrite=True)
    assert "overwrite: false" in (tmp_path / "shards" / "config.yaml").read_text()


def test_verify_misses_a_split_that_is_gone(drawn, tmp_path):
    drawn.prepare(tmp_path / "shards", split="train=0.5,val=0.5")
    assert verify(str(tmp_path / "shards")).problems == ()
    (tmp_path / "shards" / "val").rename(tmp_path / "elsewhere")
    (problem,) = verify(str(tmp_path / "shards")).problems
    assert (problem.where, problem.what) == ("val", "is missing or unfinished")
