"""`index`: shards of other programs become shards like our own, or nothing is written."""

import errno
import io
import json
import pickle
import re
import shutil
import subprocess
import tarfile

import fsspec
import numpy as np
import pytest
import webdataset
from cocoseg.errors import ConfigError, DataError
from cocoseg.shards.config import IndexConfig
from cocoseg.shards.deal import deal_shards
from cocoseg.shards.index import index_shards
from cocoseg.shards.manifest import read_index, read_manifest
from cocoseg.shards.reader import ShardSet
from cocoseg.shards.verify import verify
from PIL import Image

NAMES = ["background", "cat", "dog"]


def photo(seed, width=16, height=12, form="JPEG", orientation=1):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    buffer, save = io.BytesIO(), {}
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        save["exif"] = exif
    Image.fromarray(noise).save(buffer, form, **save)
    return buffer.getvalue()


def mask_pixels(seed, width=16, height=12, values=(0, 1, 2, 255), dtype=np.uint8):
    random = np.random.default_rng([seed, 1])
    return random.choice(np.array(values, dtype), (height, width))


def png(pixels, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "PNG")
    return buffer.getvalue()


def sample(seed, **more):
    """A good sample, or with some members exchanged; None leaves one out."""
    members = {"jpg": photo(seed), "png": png(mask_pixels(seed))} | more
    return {name: content for name, content in members.items() if content is not None}


def pack(path, samples, form=tarfile.PAX_FORMAT):
    """Write a tar the plain way: (key, members) in the order given."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for key, members in samples:
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size, info.mtime = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1
                tar.addfile(info, io.BytesIO(content))
    return path.parent


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "classes.yaml"
    path.write_text(json.dumps(NAMES))
    return str(path)


@pytest.fixture
def config(classes):
    return IndexConfig(classes=classes, workers=1)


def refused(folder, config):
    """The message; nothing may be written."""
    before = sorted(path.name for path in folder.iterdir())
    with pytest.raises(DataError) as error:
        index_shards(str(folder), config)
    assert sorted(path.name for path in folder.iterdir()) == before
    return str(error.value)


def test_what_webdatasets_writer_wrote_is_read_verified_and_counted(tmp_path, config):
    expected = {}
    with webdataset.ShardWriter(str(tmp_path / "s-%03d.tar"), maxcount=3, verbose=0) as writer:
        for seed in range(7):
            members = {"jpg": photo(seed), "seg.png": png(mask_pixels(seed)), "json": {"i": seed}}
            writer.write({"__key__": f"a/b-{seed}", **members})
            expected[f"a/b-{seed}"] = (seed, members)
    result = index_shards(str(tmp_path), config)
    assert verify(str(tmp_path)).problems == ()
    shards = ShardSet([str(tmp_path)])
    assert (len(shards), shards.shard_sizes, shards.taxonomy.names) == (7, [3, 3, 1], tuple(NAMES))
    for position, (key, (seed, members)) in enumerate(expected.items()):
        read = shards.read(position)
        assert read.key == key
        assert np.array_equal(read.mask, mask_pixels(seed))
        with Image.open(io.BytesIO(members["jpg"])) as image:
            assert np.array_equal(read.image, np.asarray(image))
    counted = np.bincount(np.concatenate([mask_pixels(i).ravel() for i in range(7)]), minlength=256)
    assert result.manifest.class_pixels == tuple(counted[:3])
    assert result.manifest.ignored_pixels == counted[255]
    assert result.manifest.settings == {"made_by": "index", "classes": "file", "exif": "auto"}


@pytest.mark.parametrize(
    ("members", "extension"),
    [
        ({"jpg": photo(1), "png": png(mask_pixels(1))}, "jpg"),
        ({"png": png(mask_pixels(1)), "jpg": photo(1)}, "jpg"),
        ({"JPG": photo(1), "PNG": png(mask_pixels(1))}, "JPG"),
        ({"jpeg": photo(1), "json": b'{"a": [1]}', "seg.png": png(mask_pixels(1))}, "jpeg"),
        ({"png": photo(1, form="PNG"), "seg.png": png(mask_pixels(1))}, "png"),
        ({"image.png": photo(1, form="PNG"), "png": png(mask_pixels(1))}, "image.png"),
        ({"photograph.png": photo(1, form="PNG"), "png": png(mask_pixels(1))}, "photograph.png"),
        ({"webp": photo(1, form="WEBP"), "png": png(mask_pixels(1))}, "webp"),
    ],
)
def test_image_and_mask_are_told_by_their_names_in_any_order(tmp_path, config, members, extension):
    folder = pack(tmp_path / "s" / "x.tar", [("k", members), ("l", sample(2))])
    index_shards(str(folder), config)
    assert verify(str(folder)).problems == ()
    shards = ShardSet([str(folder)])
    assert shards.row(0).extension == extension
    assert np.array_equal(shards.read(0).mask, mask_pixels(1))
    assert shards.row(1).lengths[2] == shards.row(1).offsets[2] == 0


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_of_every_writer_are_read(tmp_path, config, form):
    keys = ["x" * 90, "folder/" + "y" * 60]
    keys += [] if form == tarfile.USTAR_FORMAT else ["z" * 120, "größe/" + "ü" * 60]
    folder = pack(tmp_path / "s" / "x.tar", [(k, sample(i)) for i, k in enumerate(keys)], form)
    index_shards(str(folder), config)
    assert verify(str(folder)).problems == ()
    assert [ShardSet([str(folder)]).read(i).key for i in range(len(keys))] == keys


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax", "ustar"])
def test_what_the_tar_program_packs_of_a_folder_is_read(tmp_path, config, form):
    if shutil.which("tar") is None:
        pytest.skip("no tar program")
    (tmp_path / "files" / "ä").mkdir(parents=True)
    (tmp_path / "s").mkdir()
    for key in ("000001", "ä/" + "q" * 110 if form != "ustar" else "ä/q"):
        for extension, content in sample(1).items():
            (tmp_path / "files" / f"{key}.{extension}").write_bytes(content)
    command = ["tar", f"--format={form}", "--sort=name", "-cf", tmp_path / "s" / "x.tar"]
    subprocess.run([*command, "-C", tmp_path / "files", "."], check=True)
    index_shards(str(tmp_path / "s"), config)
    assert verify(str(tmp_path / "s")).problems == ()
    assert ShardSet([str(tmp_path / "s")]).read(0).key == "./000001"


def test_the_bytes_do_not_depend_on_the_workers_and_a_second_call_is_fine(tmp_path, config):
    for number in range(3):
        pairs = [(f"{number}-{i}", sample(10 * number + i)) for i in range(3)]
        folder = pack(tmp_path / "s" / f"{number}.tar", pairs)
    seen = set()
    for workers in (1, 3, 0):
        index_shards(str(folder), config.model_copy(update={"workers": workers}))
        seen.add(tuple(p.read_bytes() for p in sorted(folder.iterdir())))
    assert len(seen) == 1


def test_an_object_store_serves_as_well(tmp_path, config):
    local = pack(tmp_path / "s" / "x.tar", [("k", sample(1)), ("l", sample(2))])
    store = fsspec.filesystem("memory")
    store.pipe_file("/adopted/x.tar", (local / "x.tar").read_bytes())
    try:
        index_shards("memory://adopted", config)
        index_shards(str(local), config)
        assert store.cat("/adopted/manifest.json") == (local / "manifest.json").read_bytes()
        assert verify("memory://adopted").problems == ()
    finally:
        store.rm("/adopted", recursive=True)


def test_sixteen_bits_beyond_254_classes(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({str(i): f"c{i}" for i in range(300)}))
    pixels = mask_pixels(1, values=(0, 7, 299, 65535), dtype=np.uint16)
    folder = pack(tmp_path / "s" / "x.tar", [("k", sample(1, png=png(pixels)))])
    result = index_shards(str(folder), IndexConfig(classes=str(tmp_path / "c.json"), workers=0))
    assert np.array_equal(ShardSet([str(folder)]).read(0).mask, pixels)
    assert result.manifest.ignored_pixels == (pixels == 65535).sum()


def turned(seed, fits, orientation=6):
    """A photo of 16 x 12 stored pixels that EXIF turns, and a mask as one sees it, or as stored."""
    width, height = (12, 16) if fits == "apply" else (16, 12)
    members = {"jpg": photo(seed, orientation=orientation)}
    return members | {"png": png(mask_pixels(seed, width, height))}


@pytest.mark.parametrize(("majority", "expected"), [("apply", 3), ("raw", 1)])
def test_a_photo_that_fits_both_ways_follows_the_others(tmp_path, config, majority, expected):
    both = turned(0, "raw", orientation=3)  # upside down: the same size either way
    pack(tmp_path / "s" / "0.tar", [("both", both)])
    folder = pack(tmp_path / "s" / "1.tar", [("told", turned(1, majority)), ("plain", sample(2))])
    result = index_shards(str(folder), config)
    shards = ShardSet([str(folder)])
    assert [shards.row(i).orientation for i in range(3)] == [
        expected,
        6 if majority == "apply" else 1,
        1,
    ]
    assert result.manifest.counts["exif_ambiguous"] == 1
    assert result.manifest.counts.get("turned_by_exif", 0) == (2 if majority == "apply" else 0)
    assert verify(str(folder)).problems == ()
    assert shards.read(1).image.shape[:2] == shards.read(1).mask.shape


def test_exif_is_read_as_the_flag_says(tmp_path, config):
    folder = pack(tmp_path / "s" / "x.tar", [("k", turned(1, "apply"))])
    raw = config.model_copy(update={"exif": "raw"})
    assert "EXIF orientation 6, and mask 12 x 16 differ in size" in refused(folder, raw)
    index_shards(str(folder), config.model_copy(update={"exif": "apply"}))


def palette():
    image = Image.fromarray(mask_pixels(1, values=(0, 1))).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


BAD = {
    "palette": (sample(1, png=palette()), "has a palette"),
    "colors": (sample(1, png=png(mask_pixels(1), "RGB")), "mode RGB"),
    "one bit": (sample(1, png=png(mask_pixels(1), "1")), "mode 1"),
    "no train id": (sample(1, png=png(mask_pixels(1, values=(0, 3, 200)))), "holds 3, 200"),
    "no PNG": (sample(1, png=photo(2)), "is jpg, expected a PNG"),
    "other size": (sample(1, png=png(mask_pixels(1, 15))), "image 16 x 12 and mask 15 x 12"),
    "cut photo": (sample(1, jpg=photo(1)[:-40]), "image: "),
    "cut mask": (sample(1, png=png(mask_pixels(1))[:-20]), "mask: "),
    "empty photo": (sample(1, jpg=b""), "image: the file has 0 bytes"),
    "pickled photo": (sample(1, jpg=pickle.dumps([1])), "image: is not an image"),
    "no mask": (sample(1, png=None), "has no mask, 'seg.png' or 'png', among jpg"),
    "no image": (sample(1, jpg=None), "has 0 images"),
    "two images": (sample(1, **{"depth.png": png(mask_pixels(1))}), "has 2 images"),
    "two jsons": (sample(1, **{"json": b"{}", "a.json": b"{}"}), "2 jsons"),
    "broken json": (sample(1, json=b'{"a": NaN}'), "its json cannot be read"),
    "deep json": (sample(1, json=b"[" * 10**6), "its json cannot be read"),
}


@pytest.mark.parametrize(("members", "what"), BAD.values(), ids=BAD)
def test_a_bad_sample_is_named_with_its_shard_and_nothing_is_written(
    tmp_path, config, members, what
):
    pairs = [("good", sample(3)), ("bad", members)]
    message = refused(pack(tmp_path / "s" / "one.tar", pairs), config)
    assert "one.tar: sample bad: " in message
    assert what in message
    assert "sample good" not in message


def test_several_problems_are_told_at_once_but_not_thousands(tmp_path, config):
    broken = sample(1, jpg=b"x")
    pack(tmp_path / "s" / "0.tar", [(f"a{i}", broken) for i in range(3)])
    folder = pack(tmp_path / "s" / "1.tar", [("b", sample(1, txt=b"caption"))])
    told = refused(folder, config)
    assert all(f"0.tar: sample a{i}" in told for i in range(3))
    assert "'b.txt' is not a photo, mask or json" in told
    assert told.count("\n") == 2  # the same problem of several samples is one line
    pack(tmp_path / "s" / "0.tar", [(f"a{i}", broken) for i in range(30)])
    told = refused(folder, config.model_copy(update={"workers": 2}))
    assert told.count("0.tar: sample a") == 20
    assert "the rest was not looked at" in told


@pytest.mark.parametrize("other", ["k", "K"])
def test_the_same_key_in_two_shards_is_refused(tmp_path, config, other):
    pack(tmp_path / "s" / "0.tar", [("k", sample(1))])
    folder = pack(tmp_path / "s" / "1.tar", [(other, sample(2))])
    assert f"1.tar: sample {other}: its key is there already, 0.tar" in refused(folder, config)


@pytest.mark.parametrize(
    ("first", "again"),
    [(sample(1), {"jpeg": photo(1), "seg.png": png(mask_pixels(1))}), (sample(1), sample(1))],
    ids=["under other names", "under the same names"],
)
def test_the_same_key_twice_in_one_shard_is_refused(tmp_path, config, first, again):
    folder = pack(tmp_path / "s" / "0.tar", [("k", first), ("l", sample(2)), ("k", again)])
    assert "there already" in refused(folder, config)


def test_what_prepare_made_is_left_alone_and_what_index_made_is_made_again(
    tmp_path, config, coco_set
):
    coco_set.photo(1)
    coco_set.prepare(tmp_path / "ours")
    with pytest.raises(ConfigError, match="'cocoseg prepare' made these shards"):
        index_shards(str(tmp_path / "ours"), config)
    folder = pack(tmp_path / "s" / "0.tar", [("k", sample(1))])
    index_shards(str(folder), config)
    pack(folder / "1.tar", [("l", sample(2))])
    index_shards(str(folder), config)
    manifest = read_manifest(str(folder))
    assert (manifest.samples, len(read_index(str(folder), manifest))) == (2, 2)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ConfigError, match="Remove it if the shards"):
        index_shards(str(folder), config)


def test_folders_without_shards_or_with_compressed_ones_say_what_to_do(tmp_path, config):
    with pytest.raises(ConfigError, match="no such folder"):
        index_shards(str(tmp_path / "absent"), config)
    pack(tmp_path / "all" / "x.tar", [("k", sample(1))]).rename(tmp_path / "train")
    with pytest.raises(ConfigError, match="index its folders one by one: train"):
        index_shards(str(tmp_path), config)
    (tmp_path / "train" / "y.tar.gz").write_bytes(b"")
    assert "y.tar.gz is compressed" in refused(tmp_path / "train", config)
    with pytest.raises(ConfigError, match="--classes coco"):
        index_shards(str(tmp_path / "train"), IndexConfig())


def test_the_command_tells_its_plan_its_result_and_what_is_wrong(tmp_path, classes, run_cocoseg):
    folder = pack(tmp_path / "s" / "x.tar", [("k", sample(1)), ("l", sample(2))])
    ran = run_cocoseg("index", folder, "--classes", classes, "--dry-run", "--json")
    size = (folder / "x.tar").stat().st_size
    assert json.loads(ran.out) == {"shards": 1, "bytes": size, "classes": 3, "ignore_index": 255}
    assert not (folder / "manifest.json").exists()
    ran = run_cocoseg("index", folder, "--classes", classes, "--workers", 1, "--json")
    assert (ran.code, ran.err) == (0, "")
    assert json.loads(ran.out)["samples"] == 2
    assert run_cocoseg("verify", folder).code == 0
    (folder / "x.tar").write_bytes((folder / "x.tar").read_bytes()[:-10240])
    ran = run_cocoseg("index", folder, "--classes", classes)
    assert (ran.code, ran.out) == (3, "")
    assert "x.tar: has no end mark" in ran.err or "behind the end of the file" in ran.err
    assert run_cocoseg("index", folder).code == 2
    assert run_cocoseg("verify", folder).code == 3


# --- warnings


def test_masks_that_teach_nothing_are_warned_of(tmp_path, classes, run_cocoseg):
    """Binary masks, 0 and 255, are the usual mistake: the exit code stays 0."""
    binary = png(mask_pixels(1, values=(0, 255)))
    folder = pack(tmp_path / "shards" / "a.tar", [("a", sample(1, png=binary))])
    ran = run_cocoseg("index", folder, "--classes", classes)
    assert ran.code == 0
    assert "warning: the masks look like binary masks: they hold the values 0 and 255" in ran.err
    assert "warning" not in ran.out
    ran = run_cocoseg("index", folder, "--classes", classes, "--json")
    (warning,) = json.loads(ran.out)["warnings"]
    assert "binary" in warning


def test_good_masks_are_not_warned_of(tmp_path, classes, run_cocoseg):
    folder = pack(tmp_path / "shards" / "a.tar", [("a", sample(1))])
    ran = run_cocoseg("index", folder, "--classes", classes)
    assert (ran.code, ran.err) == (0, "")


# --- splits


def many(folder, count):
    for number in range(count):
        seeds = range(3 * number, 3 * number + 3)
        pack(folder / f"s-{number}.tar", [(f"k-{seed}", sample(seed)) for seed in seeds])
    return folder


@pytest.fixture
def dealt(tmp_path, config):
    """Ten shards, dealt 0.7 to 0.3: (folder, settings, result)."""
    folder = many(tmp_path / "shards", 10)
    settings = config.model_copy(update={"split": "train=0.7,val=0.3"})
    return folder, settings, index_shards(str(folder), settings)


def held(folder, split):
    return sorted(path.name for path in (folder / split).iterdir() if path.suffix == ".tar")


def test_whole_shards_are_dealt_and_no_byte_is_copied(dealt):
    folder, _, result = dealt
    train, val = held(folder, "train"), held(folder, "val")
    assert sorted(train + val) == [f"s-{number}.tar" for number in range(10)]
    assert (len(train), len(val)) == (7, 3)
    for split, names in (("train", train), ("val", val)):
        assert all((folder / split / name).samefile(folder / name) for name in names)
        manifest = read_manifest(str(folder / split))
        assert [shard.name for shard in manifest.shards] == names
        assert manifest.settings["split"] == "train=0.7,val=0.3"
    assert result.to_dict()["splits"] == {"train": 21, "val": 9}
    assert result.to_dict()["samples"] == 30
    assert not (folder / "manifest.json").exists()  # it would mix both


def test_each_split_is_read_and_all_of_it_is_verified(dealt):
    folder, _, _ = dealt
    sets = [ShardSet([str(folder / split)]) for split in ("train", "val")]
    keys = [{shards.row(i).key for i in range(len(shards))} for shards in sets]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 30
    found = verify(str(folder))
    assert (found.problems, found.samples) == ((), 30)
    (folder / "val" / "manifest.json").unlink()
    assert [problem.where for problem in verify(str(folder)).problems] == ["val"]


def test_the_counts_of_the_splits_add_up_to_those_of_the_folder(dealt, config):
    folder, _, result = dealt
    for split in ("train", "val"):
        shutil.rmtree(folder / split)
    whole = index_shards(str(folder), config).to_dict()
    parts = result.to_dict()
    assert parts.pop("splits")
    assert parts == whole


def test_the_same_call_again_changes_nothing_and_another_deals_anew(dealt):
    folder, settings, _ = dealt
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    index_shards(str(folder), settings)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    index_shards(str(folder), settings.model_copy(update={"split": "train=0.5,val=0.5"}))
    assert [len(held(folder, split)) for split in ("train", "val")] == [5, 5]
    assert not set(held(folder, "train")) & set(held(folder, "val"))
    assert verify(str(folder)).problems == ()


def test_an_earlier_index_of_the_whole_folder_is_replaced(tmp_path, config):
    folder = many(tmp_path / "shards", 2)
    index_shards(str(folder), config)
    index_shards(str(folder), config.model_copy(update={"split": "train=0.5,val=0.5"}))
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["index-report.html", "s-0.tar", "s-1.tar", "train", "val"]


def test_each_split_gets_a_shard_and_too_few_shards_are_refused(tmp_path, config):
    folder = many(tmp_path / "shards", 2)
    index_shards(str(folder), config.model_copy(update={"split": "train=0.99,val=0.01"}))
    assert [len(held(folder, split)) for split in ("train", "val")] == [1, 1]
    for split in ("train", "val"):
        shutil.rmtree(folder / split)
    with pytest.raises(ConfigError, match="2 cannot be dealt to 3 splits"):
        index_shards(str(folder), config.model_copy(update={"split": "a=0.4,b=0.3,c=0.3"}))
    assert not (folder / "a").exists()


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.1), (0.001, 0.999), (0.2, 0.3, 0.5)])
def test_dealing_gives_every_shard_once_and_about_the_share(fractions):
    names = [f"n{i:02}" for i in range(40)]
    wanted = {f"s{i}": fraction for i, fraction in enumerate(fractions)}
    parts = deal_shards(names, wanted)
    assert sorted(name for part in parts.values() for name in part) == names
    for split, fraction in wanted.items():
        assert parts[split] == sorted(parts[split])
        assert len(parts[split]) > 0
        assert abs(len(parts[split]) - 40 * fraction) <= 1
    assert deal_shards(names[::-1], wanted) == parts
    assert parts["s0"] != names[: len(parts["s0"])]  # by a hash, and not in the files' order


def test_what_index_did_not_put_there_is_left_alone(dealt):
    folder, settings, _ = dealt
    copy = folder / "val" / held(folder, "val")[0]
    content = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content)  # the same bytes, but another file
    with pytest.raises(ConfigError, match=f"val: holds {copy.name}, which 'cocoseg index' did not"):
        index_shards(str(folder), settings)
    assert copy.read_bytes() == content
    copy.unlink()
    (folder / "val" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"val: holds notes\.txt"):
        index_shards(str(folder), settings)
    (folder / "val" / "notes.txt").unlink()
    index_shards(str(folder), settings)
    assert verify(str(folder)).problems == ()


def test_splits_of_other_names_are_not_mixed(dealt):
    folder, settings, _ = dealt
    with pytest.raises(ConfigError, match="train: holds another split"):
        index_shards(str(folder), settings.model_copy(update={"split": "a=0.5,val=0.5"}))


def test_a_file_system_without_hard_links_is_told_and_nothing_is_lost(dealt, monkeypatch):
    folder, settings, _ = dealt
    before = sorted(folder.rglob("*"))

    def refuses(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("os.link", refuses)
    with pytest.raises(ConfigError, match="hard links cannot be made here"):
        index_shards(str(folder), settings)
    assert sorted(folder.rglob("*")) == before
    assert verify(str(folder)).problems == ()


def test_an_object_store_is_not_split(config):
    store = fsspec.filesystem("memory")
    for name in "ab":
        store.pipe_file(f"/split/{name}.tar", b"")
    with pytest.raises(ConfigError, match="--split needs a local folder"):
        index_shards("memory://split", config.model_copy(update={"split": "a=0.5,b=0.5"}))


def test_a_link_in_the_folder_is_dealt_as_the_file_that_it_leads_to(tmp_path, config):
    elsewhere, folder = many(tmp_path / "elsewhere", 2), tmp_path / "shards"
    folder.mkdir()
    for path in elsewhere.iterdir():
        (folder / path.name).symlink_to(path)
    index_shards(str(folder), config.model_copy(update={"split": "a=0.5,b=0.5"}))
    (linked,) = (folder / "a").glob("*.tar")
    assert not linked.is_symlink()
    assert linked.samefile(elsewhere / linked.name)


def test_the_command_line_splits_and_reports(tmp_path, classes, run_cocoseg):
    folder = many(tmp_path / "shards", 4)
    flags = ("index", folder, "--classes", classes, "--workers", 1, "--split", "train=0.5,val=0.5")
    assert "train=0.5,val=0.5" in run_cocoseg(*flags, "--dry-run").out
    assert not (folder / "train").exists()
    ran = run_cocoseg(*flags)
    assert ran.code == 0
    assert re.search(r"^splits +train 6, val 6$", ran.out, re.MULTILINE)
    assert "Splits" in (folder / "index-report.html").read_text()
    assert run_cocoseg(*flags[:-1], "train=0.5,val=0.6").code == 2
