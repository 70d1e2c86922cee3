"""From JSON and photographs to shards: what is quarantined, classes, sources, files."""

import io
import json

import fsspec
import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.verify import verify
from cocoseg.taxonomy import COCO_CATEGORIES
from PIL import Image


def polygon(left=1, top=1, right=9, bottom=9):
    return [[left, top, right, top, right, bottom, left, bottom]]


def published(folder):
    """Files that a reader could take for a data set."""
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    return {name for name in names if name.endswith((".tar", ".json", ".npy"))}


def jpeg(size=(16, 12), **save):
    buffer = io.BytesIO()
    Image.new("RGB", size, "teal").save(buffer, "JPEG", **save)
    return buffer.getvalue()


# ---- photographs that cannot be trusted

BAD_FILES = {
    "missing-file": None,
    "empty-file": b"",
    "undecodable-image": b"<html><body>404 Not Found</body></html>",
    "truncated-image": jpeg()[:-8],
    "size-mismatch": jpeg((12, 12)),
    "unsupported-format": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\n",
}


@pytest.mark.parametrize(("reason", "content"), BAD_FILES.items(), ids=BAD_FILES)
def test_a_bad_photograph_is_quarantined_and_the_rest_is_built(
    coco_set, tmp_path, stored, reason, content
):
    coco_set.photo(1)
    coco_set.entry(2, "sub/2.jpg")
    coco_set.annotate(2, polygon())
    if content is not None:
        (coco_set.images / "sub").mkdir()
        (coco_set.images / "sub" / "2.jpg").write_bytes(content)
    result = coco_set.prepare(tmp_path / "shards")
    lines = (tmp_path / "shards" / "quarantine.jsonl").read_text().splitlines()
    (entry,) = map(json.loads, lines)
    assert (entry["reason"], entry["image_id"], entry["file_name"]) == (reason, 2, "sub/2.jpg")
    assert entry["detail"]
    assert list(stored(tmp_path / "shards")) == ["000000000001"]
    assert result.manifest.samples == 1
    assert result.manifest.counts["quarantined"] == 1
    assert verify(str(tmp_path / "shards")).problems == ()


@pytest.mark.parametrize(
    ("name", "size", "reason"),
    [
        ("", (16, 12), "bad-file-name"),
        ("a\0b.jpg", (16, 12), "bad-file-name"),
        ("../1.jpg", (16, 12), "missing-file"),
        ("x/../../1.jpg", (16, 12), "missing-file"),
        ("/etc/passwd", (16, 12), "missing-file"),
        ("http://example.com/1.jpg", (16, 12), "missing-file"),
        (".", (16, 12), "missing-file"),
        ("x" * 300, (16, 12), "missing-file"),
        ("1.jpg/2.jpg", (16, 12), "missing-file"),
        ("other.jpg", (0, 12), "bad-size"),
        ("other.jpg", (16, -12), "bad-size"),
        ("other.jpg", (10**30, 12), "bad-size"),
        ("other.jpg", (16, 2**31), "bad-size"),
        ("other.jpg", (16, 2**31 - 1), "size-mismatch"),
    ],
)
def test_an_entry_that_points_nowhere_is_quarantined(coco_set, tmp_path, name, size, reason):
    coco_set.photo(1)
    (coco_set.images / "other.jpg").write_bytes(jpeg())
    coco_set.entry(2, name, size)
    result = coco_set.prepare(tmp_path / "shards")
    assert [entry.reason for entry in result.quarantined] == [reason]


def test_one_bad_annotation_takes_its_whole_image_out(coco_set, tmp_path, stored):
    coco_set.photo(1)
    coco_set.photo(2)
    for image_id in (1, 2):
        coco_set.annotate(image_id, polygon())
    coco_set.annotate(2, [[1, 1, 5]], id=77)
    result = coco_set.prepare(tmp_path / "shards")
    (entry,) = result.quarantined
    assert (entry.image_id, entry.reason, entry.annotation_id) == (2, "bad-polygon", 77)
    assert list(stored(tmp_path / "shards")) == ["000000000001"]


def test_written_and_quarantined_are_all_that_was_listed(coco_set, tmp_path, stored):
    for image_id in range(40):
        path = coco_set.photo(image_id)
        if image_id % 3 == 0:
            path.write_bytes(b"")
        if image_id % 7 == 0:
            coco_set.annotate(image_id, [[0, 0]])
    result = coco_set.prepare(tmp_path / "shards", samples_per_shard=6, workers=2)
    listed = {entry.image_id for entry in result.quarantined}
    written = {sample.meta["image_id"] for sample in stored(tmp_path / "shards").values()}
    assert listed == {i for i in range(40) if i % 3 == 0 or i % 7 == 0}
    assert written == set(range(40)) - listed
    assert result.manifest.samples + result.manifest.counts["quarantined"] == 40
    assert len(ShardSet([str(tmp_path / "shards")])) == len(written)


@pytest.mark.parametrize(("bad", "max_bad", "code"), [(1, 0, 4), (1, 1, 0), (2, 1, 4), (0, 0, 0)])
def test_exit_code_4_beyond_max_bad(coco_set, tmp_path, run_cocoseg, bad, max_bad, code):
    for image_id in range(4):
        path = coco_set.photo(image_id)
        if image_id < bad:
            path.unlink()
    coco_set.write()
    output = ("--output", tmp_path / "shards", "--workers", 1)
    for _ in range(2):  # a second run says the same
        ran = run_cocoseg("prepare", *coco_set.flags, *output, "--max-bad", max_bad, "--json")
        assert ran.code == code
        summary = json.loads(ran.out)
        assert summary["samples"] == 4 - bad
        assert summary["quarantined"] == ({"missing-file": bad} if bad else {})
        assert ("quarantine.jsonl" in ran.err) == (code == 4)
    assert (tmp_path / "shards" / "quarantine.jsonl").exists() == bool(bad)


def test_when_every_image_is_bad_nothing_is_published(coco_set, tmp_path, run_cocoseg):
    for image_id in range(3):
        coco_set.photo(image_id).write_bytes(b"")
    coco_set.write()
    flags = (*coco_set.flags, "--output", tmp_path / "shards", "--workers", 1)
    ran = run_cocoseg("prepare", *flags, "--max-bad", 9)
    assert (ran.code, ran.out) == (3, "")
    assert "all 3 images are bad" in ran.err
    assert "empty-file" in ran.err
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content["annotations"][0].update(category_id=99),
        lambda content: content["images"].append(content["images"][0]),
        lambda content: content.pop("categories"),
        lambda content: content["images"][0].update(id=1.5),
    ],
    ids=["unknown category", "image id twice", "no categories", "id a fraction"],
)
def test_a_data_set_that_cannot_be_trusted_publishes_nothing(
    coco_set, tmp_path, run_cocoseg, spoil
):
    coco_set.photo(1)
    coco_set.annotate(1, polygon())
    spoil(coco_set.content)
    coco_set.write()
    ran = run_cocoseg("prepare", *coco_set.flags, "--output", tmp_path / "shards")
    assert (ran.code, ran.out) == (3, "")
    assert str(coco_set.json) in ran.err
    assert not (tmp_path / "shards").exists()


def test_a_shard_of_bad_images_alone_is_an_empty_tar(coco_set, tmp_path, stored):
    for image_id in range(6):
        coco_set.photo(image_id).unlink() if image_id < 5 else coco_set.photo(image_id)
    result = coco_set.prepare(tmp_path / "shards", samples_per_shard=1)
    assert sorted(shard.samples for shard in result.manifest.shards) == [0, 0, 0, 0, 0, 1]
    assert list(stored(tmp_path / "shards")) == ["000000000005"]
    assert verify(str(tmp_path / "shards")).problems == ()
    assert ShardSet([str(tmp_path / "shards")]).read(0).key == "000000000005"


# ---- what the samples hold


def test_an_image_without_annotations_is_kept_as_background(coco_set, tmp_path, stored):
    coco_set.photo(1)
    result = coco_set.prepare(tmp_path / "shards")
    (sample,) = stored(tmp_path / "shards").values()
    assert not sample.mask.any()
    assert result.manifest.counts == {"without_annotations": 1}
    assert result.manifest.class_pixels == (16 * 12, 0, 0, 0)


@pytest.mark.parametrize(
    ("name", "form", "extension"),
    [
        ("1.jpg", "JPEG", "jpg"),
        ("1.JPEG", "JPEG", "jpg"),
        ("1.png", "PNG", "image.png"),
        ("1.webp", "WEBP", "webp"),
        ("1.TIFF", "TIFF", "tif"),
        ("1.bmp", "BMP", "bmp"),
        ("1.gif", "GIF", "gif"),
        ("1.jpg", "PNG", "image.png"),
        ("no extension", "JPEG", "jpg"),
    ],
)
def test_a_photo_keeps_its_bytes_under_the_extension_of_its_content(
    coco_set, tmp_path, stored, name, form, extension
):
    path = coco_set.photo(1, name=name, format=form)
    coco_set.prepare(tmp_path / "shards")
    (sample,) = stored(tmp_path / "shards").values()
    assert sample.extension == extension
    assert sample.photo == path.read_bytes()


def test_counts_in_the_manifest_add_up_the_images_of_every_shard(coco_set, tmp_path):
    for image_id in range(1, 9):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, polygon(), 2, id=5)
        coco_set.annotate(image_id, polygon(4, 4, 5, 5), 7, iscrowd=1, id=5)
        coco_set.annotate(image_id, None, 1)
    counts = coco_set.prepare(tmp_path / "shards", samples_per_shard=3).manifest
    assert counts.counts == {
        "crowds": 8,
        "duplicate_annotation_ids": 15,
        "instances": 24,
        "no_segmentation": 8,
    }
    assert counts.class_pixels == (8 * (16 * 12 - 64), 0, 8 * 63, 8)
    assert counts.classes.names == ("background", "cat", "dog", "fish")


def test_beyond_254_classes_masks_have_16_bits_and_ignore_is_65535(coco_set, tmp_path, stored):
    coco_set.content["categories"] = [{"id": i, "name": f"class {i}"} for i in range(1, 301)]
    coco_set.photo(1)
    coco_set.annotate(1, polygon(), 300)
    coco_set.annotate(1, polygon(9, 1, 15, 9), 1, iscrowd=1)
    result = coco_set.prepare(tmp_path / "shards", crowd="ignore")
    (sample,) = stored(tmp_path / "shards").values()
    assert sample.mask.dtype == np.uint16
    assert np.unique(sample.mask).tolist() == [0, 300, 65535]
    assert result.manifest.ignored_pixels == 48
    assert result.manifest.class_pixels[300] == 64
    assert verify(str(tmp_path / "shards")).problems == ()
    assert np.array_equal(ShardSet([str(tmp_path / "shards")]).read(0).mask, sample.mask)


# ---- classes


def three_classes(coco_set):
    coco_set.photo(1)
    for category_id, left in ((1, 0), (2, 4), (7, 8)):
        coco_set.annotate(1, polygon(left, 0, left + 4, 12), category_id)
    return coco_set


def train_ids_in(folder, stored):
    """Train ids of cat, dog and fish, as painted by `three_classes`."""
    (sample,) = stored(folder).values()
    return [int(sample.mask[5, left + 2]) for left in (0, 4, 8)]


@pytest.mark.parametrize(
    ("rules", "names", "painted"),
    [
        ("classes: {cat: , dog: , fish: }", ("cat", "dog", "fish"), [1, 2, 3]),
        ("classes: {feline: cat, dog: , fish: }", ("feline", "dog", "fish"), [1, 2, 3]),
        ("classes: {fish: , pet: [cat, dog]}", ("fish", "pet"), [2, 2, 1]),
        ("classes: {pet: [1, 2], fish: 7}", ("pet", "fish"), [1, 1, 2]),
        ("{classes: {cat: , dog: }, background: [fish]}", ("cat", "dog"), [1, 2, 0]),
        ("{classes: {cat: }, background: dog, ignore: fish}", ("cat",), [1, 0, 255]),
        ("{classes: {dog: }, others: background}", ("dog",), [0, 1, 0]),
        ("{classes: {dog: }, others: ignore}", ("dog",), [255, 1, 255]),
    ],
)
def test_a_classes_file_renames_merges_drops_and_ignores(
    coco_set, tmp_path, stored, rules, names, painted
):
    (tmp_path / "classes.yaml").write_text(rules)
    result = three_classes(coco_set).prepare(
        tmp_path / "shards", classes=str(tmp_path / "classes.yaml")
    )
    assert result.manifest.classes.names == ("background", *names)
    assert train_ids_in(tmp_path / "shards", stored) == painted
    assert result.manifest.settings["classes"] == "file"
    assert verify(str(tmp_path / "shards")).problems == ()


def test_auto_takes_the_jsons_own_classes_in_ascending_id(coco_set, tmp_path, stored):
    three_classes(coco_set).content["categories"].reverse()
    result = coco_set.prepare(tmp_path / "shards")
    assert result.manifest.classes.names == ("background", "cat", "dog", "fish")
    assert train_ids_in(tmp_path / "shards", stored) == [1, 2, 3]


def test_coco_goes_by_name_whatever_the_ids(coco_set, tmp_path, stored, run_cocoseg):
    three_classes(coco_set).write()
    flags = ("prepare", *coco_set.flags, "--output", tmp_path / "shards", "--classes", "coco")
    ran = run_cocoseg(*flags)
    assert ran.code == 3
    assert "'fish' is not a COCO category" in ran.err
    coco_set.content["categories"][2]["name"] = "toothbrush"
    result = coco_set.prepare(tmp_path / "shards", classes="coco")
    assert len(result.manifest.classes.names) == 81
    assert train_ids_in(tmp_path / "shards", stored) == [16, 17, 80]


def test_auto_is_coco_when_the_categories_are_cocos(coco_set, tmp_path, stored):
    names = {category_id: name for category_id, name, _ in COCO_CATEGORIES}
    coco_set.content["categories"] = [{"id": i, "name": n} for i, n in reversed(names.items())]
    coco_set.photo(1)
    coco_set.annotate(1, polygon(), 90)
    coco_set.prepare(tmp_path / "shards")
    (sample,) = stored(tmp_path / "shards").values()
    assert sample.mask.max() == 80


# ---- several sources


def test_several_sources_have_keys_of_their_own_and_share_classes_by_name(
    make_coco_set, tmp_path, stored
):
    first, second = make_coco_set("first"), make_coco_set("second")
    first.photo(1)
    first.annotate(1, polygon(), 7)  # fish
    second.content["categories"] = [{"id": 1, "name": "fish"}, {"id": 2, "name": "newt"}]
    second.photo(1)
    second.annotate(1, polygon(), 1)
    second.photo(2)
    second.annotate(2, polygon(), 2)
    for one in (first, second):
        one.write()
    result = prepare_shards(
        PrepareConfig(
            annotations=(str(first.json), str(second.json)),
            images=(str(first.images), str(second.images)),
            output=str(tmp_path / "shards"),
            workers=1,
        )
    )
    assert result.manifest.classes.names == ("background", "cat", "dog", "fish", "newt")
    assert result.manifest.classes.classes[3].category_ids == (1, 7)
    samples = stored(tmp_path / "shards")
    painted = {key: (int(s.mask.max()), s.meta["source"]) for key, s in samples.items()}
    assert painted == {
        "0-000000000001": (3, 0),
        "1-000000000001": (3, 1),
        "1-000000000002": (4, 1),
    }
    assert samples["1-000000000001"].photo == (second.images / "1.jpg").read_bytes()
    assert [source.images for source in result.manifest.sources] == [1, 2]


def test_long_and_negative_ids_make_distinct_keys(coco_set, tmp_path, stored):
    for image_id in (0, -7, 7, 123456789012345, 2**63 - 1, -(2**63)):
        coco_set.photo(image_id)
    coco_set.prepare(tmp_path / "shards")
    samples = stored(tmp_path / "shards")
    assert {sample.meta["image_id"] for sample in samples.values()} == {
        0, -7, 7, 123456789012345, 2**63 - 1, -(2**63),
    }  # fmt: skip
    assert {"000000000000", "000000000007", "123456789012345"} < set(samples)
    assert verify(str(tmp_path / "shards")).problems == ()


# ---- calls that cannot work, and other stores


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": None}, "--output"),
        ({"annotations": (), "images": ()}, "--annotations"),
        ({"images": ()}, "come in pairs"),
        ({"images": ("/absent",)}, "no such folder"),
        ({"annotations": ("/absent.json",)}, "no such file"),
        ({"classes": "/absent.yaml"}, "no such file"),
    ],
)
def test_a_call_that_cannot_work_is_a_usage_error(coco_set, tmp_path, settings, message):
    coco_set.photo(1)
    coco_set.write()
    config = coco_set.config(tmp_path / "shards").model_copy(update=settings)
    with pytest.raises(ConfigError, match=message):
        prepare_shards(config)
    assert published(tmp_path / "shards") == set()


def test_an_output_that_is_a_file_is_a_usage_error(coco_set, tmp_path):
    coco_set.photo(1)
    (tmp_path / "shards").write_text("mine")
    with pytest.raises(ConfigError, match="shards"):
        coco_set.prepare(tmp_path / "shards")
    assert (tmp_path / "shards").read_text() == "mine"


def test_everything_may_lie_on_another_store(coco_set, tmp_path):
    three_classes(coco_set).photo(2).unlink()
    local = coco_set.prepare(tmp_path / "shards")
    memory = fsspec.filesystem("memory")
    memory.put(str(coco_set.images), "/set/images", recursive=True)
    memory.put(str(coco_set.json), "/set/instances.json")
    remote = prepare_shards(
        PrepareConfig(
            annotations=("memory://set/instances.json",),
            images=("memory://set/images",),
            output="memory://set/shards",
            engine="inline",  # another process would have a memory of its own
        )
    )
    try:
        assert remote.manifest == local.manifest
        names = {path.rpartition("/")[2] for path in memory.ls("/set/shards", detail=False)}
        assert names == {path.name for path in (tmp_path / "shards").iterdir()}
        for name in names - {"config.yaml", "quarantine.jsonl", "prepare-report.html"}:
            there = memory.cat_file(f"/set/shards/{name}")
            assert there == (tmp_path / "shards" / name).read_bytes()
        assert verify("memory://set/shards").problems == ()
        sample = ShardSet(["memory://set/shards"]).read(0)
        assert np.array_equal(sample.mask, ShardSet([str(tmp_path / "shards")]).read(0).mask)
        again = prepare_shards(coco_set.config("memory://set/shards"))
        assert again.manifest == remote.manifest
    finally:
        memory.rm("/set", recursive=True)


def test_a_file_url_is_a_local_path(coco_set, tmp_path, stored):
    coco_set.photo(1)
    coco_set.prepare(f"file://{tmp_path}/shards")
    assert list(stored(tmp_path / "shards")) == ["000000000001"]
    assert len(ShardSet([f"file://{tmp_path}/shards"])) == 1


def test_an_error_of_our_own_leaves_no_manifest(coco_set, tmp_path, monkeypatch):
    coco_set.photo(1)
    monkeypatch.setattr("cocoseg.prepare.sample.encode_mask", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        coco_set.prepare(tmp_path / "shards")
    assert published(tmp_path / "shards") == set()
    monkeypatch.undo()
    assert coco_set.prepare(tmp_path / "shards").manifest.samples == 1


def test_all_bad_once_and_mended_is_built(coco_set, tmp_path):
    coco_set.entry(1, "1.jpg")
    with pytest.raises(DataError):
        coco_set.prepare(tmp_path / "shards")
    (coco_set.images / "1.jpg").write_bytes(jpeg())
    assert coco_set.prepare(tmp_path / "shards").manifest.samples == 1
