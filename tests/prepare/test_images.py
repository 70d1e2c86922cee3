"""Photographs in folders, tars and zips: found under any folder, read byte for byte."""

import json
import shutil
import tarfile
import zipfile

import pytest
from cocoseg.errors import ConfigError
from cocoseg.prepare.images import Catalog, open_store, read_photo
from cocoseg.shards.verify import verify
from PIL import Image


def names_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def as_folder(folder, target):
    return shutil.copytree(folder, target)


def as_tar(folder, target, prefix="./"):
    path = target.with_suffix(".tar")
    with tarfile.open(path, "w") as tar:
        for name in names_of(folder):
            tar.add(folder / name, prefix + name)
    return path


def as_zip(folder, target, method=zipfile.ZIP_DEFLATED):
    path = target.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in names_of(folder):
            archive.write(folder / name, name)
    return path


def as_stored_zip(folder, target):
    return as_zip(folder, target, zipfile.ZIP_STORED)


KINDS = [as_folder, as_tar, as_zip, as_stored_zip]


@pytest.fixture
def drawn(coco_set):
    for image_id in range(1, 8):
        coco_set.photo(image_id, name=f"sub/{image_id}.{'png' if image_id == 3 else 'jpg'}")
        coco_set.annotate(image_id, [[1, 1, 9, 1, 9, image_id, 1, image_id]])
    return coco_set


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2], ids=["inline", "two workers"])
def test_images_may_lie_in_a_folder_a_tar_or_a_zip(drawn, tmp_path, stored, kind, workers):
    packed = kind(drawn.images, tmp_path / "packed")
    where = {"engine": "local", "workers": workers} if workers else {"engine": "inline"}
    drawn.prepare(tmp_path / "plain")
    result = drawn.prepare(tmp_path / "shards", images=(str(packed),), samples_per_shard=2, **where)
    assert result.quarantined == ()
    plain, samples = stored(tmp_path / "plain"), stored(tmp_path / "shards")
    assert list(samples) == list(plain)
    for key, sample in samples.items():
        assert (sample.photo, sample.mask_file) == (plain[key].photo, plain[key].mask_file)
        assert sample.photo == (drawn.images / sample.meta["file_name"]).read_bytes()
    assert verify(str(tmp_path / "shards")).problems == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_under_another_folder_is_found_by_its_name_and_counted(
    drawn, tmp_path, stored, kind
):
    packed = kind(drawn.images, tmp_path / "packed")
    for entry, written in zip(
        drawn.content["images"],
        ("1.jpg", "images/train/2.jpg", "SUB/3.PNG", "sub\\4.jpg", "x/sub/5.jpg", "sub/6.jpg"),
        strict=False,
    ):
        entry["file_name"] = written
    result = drawn.prepare(tmp_path / "shards", images=(str(packed),))
    assert result.quarantined == ()
    assert result.manifest.counts["found_elsewhere"] == 5
    for sample in stored(tmp_path / "shards").values():
        number = sample.meta["image_id"]
        (original,) = drawn.images.glob(f"sub/{number}.*")
        assert sample.photo == original.read_bytes()


def test_of_several_files_of_that_name_the_nearest_is_taken_and_else_none(coco_set, tmp_path):
    for folder in ("a/left", "a/right", "b/left"):
        path = coco_set.images / folder / "1.jpg"
        path.parent.mkdir(parents=True)
        path.write_bytes(folder.encode())
    catalog = Catalog(open_store(str(coco_set.images)))
    assert catalog.find("b/left/1.jpg") == ("b/left/1.jpg", "")
    assert catalog.find("./b//left/1.jpg") == ("b/left/1.jpg", "")
    assert catalog.find("right/1.jpg") == ("a/right/1.jpg", "found_elsewhere")
    assert catalog.find("home/me/a/left/1.jpg") == ("a/left/1.jpg", "found_elsewhere")
    for nobody in ("left/1.jpg", "1.jpg", "elsewhere/1.jpg", "x/" * 5000 + "1.jpg"):
        with pytest.raises(Exception, match=r"2 files of that name|3 files of that name"):
            catalog.find(nobody)


def test_links_are_followed_and_loops_end(coco_set, tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "1.jpg").write_bytes(b"one")
    (coco_set.images / "linked").symlink_to(tmp_path / "real")
    (coco_set.images / "loop").symlink_to(coco_set.images)
    (coco_set.images / "2.jpg").symlink_to(tmp_path / "real" / "1.jpg")
    (coco_set.images / "gone.jpg").symlink_to(tmp_path / "gone")
    store = open_store(str(coco_set.images))
    assert sorted(store.names) == ["2.jpg", "linked/1.jpg"]
    assert read_photo(store.location("linked/1.jpg")) == b"one"


def test_images_that_share_a_file_are_quarantined_both(drawn, tmp_path, stored):
    drawn.entry(20, "sub/2.jpg")
    drawn.entry(30, "elsewhere/3.png")
    result = drawn.prepare(tmp_path / "shards")
    reasons = {entry.image_id: entry.reason for entry in result.quarantined}
    # 3 lies where the JSON says; 30 was only looked for under its name.
    assert reasons == {2: "shared-file", 20: "shared-file", 30: "missing-file"}
    assert len(stored(tmp_path / "shards")) == 6


def test_what_is_neither_folder_nor_archive_is_a_usage_error(drawn, tmp_path):
    (tmp_path / "images.tar.gz").write_bytes(b"")
    (tmp_path / "images.7z").write_bytes(b"")
    for name in ("images.tar.gz", "images.7z"):
        with pytest.raises(ConfigError, match=r"neither a folder nor a \.tar or \.zip"):
            drawn.prepare(tmp_path / "shards", images=(str(tmp_path / name),))


# ---- images alone


@pytest.mark.parametrize("kind", KINDS)
def test_images_alone_make_shards_without_masks(drawn, tmp_path, run_cocoseg, stored_photos, kind):
    (drawn.images / "notes.txt").write_text("no image")
    packed = kind(drawn.images, tmp_path / "packed")
    ran = run_cocoseg("prepare", "--images", packed, "--output", tmp_path / "shards")
    assert ran.code == 0, ran.err
    assert "without masks" in ran.out
    photos = stored_photos(tmp_path / "shards")
    assert len(photos) == 7
    for _, content, meta in photos:
        assert content == (drawn.images / meta["file_name"]).read_bytes()
        assert (meta["width"], meta["height"]) == (16, 12)
    assert verify(str(tmp_path / "shards")).problems == ()


def test_cocos_test_sets_have_images_and_no_annotations(drawn, tmp_path, run_cocoseg):
    del drawn.content["annotations"]
    drawn.content["info"] = {"year": 2017}
    drawn.write()
    output = ("--output", tmp_path / "shards")
    ran = run_cocoseg("prepare", *drawn.flags, *output)
    assert ran.code == 0, ran.err
    ran = run_cocoseg("train", "--shards", tmp_path / "shards", "--output", tmp_path / "run")
    assert ran.code == 2
    assert "has no masks" in ran.err


def test_files_with_and_without_annotations_do_not_mix(make_coco_set, tmp_path, run_cocoseg):
    one, other = make_coco_set("one"), make_coco_set("other")
    for number, each in enumerate((one, other)):
        each.photo(number)
    del other.content["annotations"]
    one.write(), other.write()
    ran = run_cocoseg("prepare", *one.flags, *other.flags, "--output", tmp_path / "shards")
    assert ran.code == 2
    assert "has no annotations, others have" in ran.err


def test_a_folder_without_images_has_nothing_to_prepare(tmp_path, run_cocoseg):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    ran = run_cocoseg("prepare", "--images", tmp_path / "empty", "--output", tmp_path / "shards")
    assert ran.code == 3
    assert "contains no image, but notes.txt" in ran.err


def test_what_is_no_image_by_its_name_is_named_and_litter_is_not(drawn, tmp_path, run_cocoseg):
    (drawn.images / "notes.txt").write_text("no image")
    (drawn.images / "._1.jpg").write_bytes(b"resource fork")
    (drawn.images / "__MACOSX").mkdir()
    (drawn.images / "__MACOSX" / "1.jpg").write_bytes(b"resource fork")
    Image.new("RGB", (16, 12)).save(drawn.images / "more.jfif", "JPEG")
    output = ("--output", tmp_path / "shards", "--json")
    ran = run_cocoseg("prepare", "--images", drawn.images, *output)
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert told["samples"] == 8
    assert told["notes"][1] == "notes.txt skipped: not images by their names"
