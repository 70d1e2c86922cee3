"""Manifest and index: what is written is what is read, and nothing else is taken for it."""

import hashlib
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.shards.manifest import (
    Index,
    IndexRow,
    build_index,
    join_indices,
    publish_index,
    read_index,
    read_manifest,
)
from cocoseg.shards.reader import ShardSet
from cocoseg.storage import locate
from hypothesis import given
from hypothesis import strategies as st

digests = st.binary(min_size=16, max_size=16)
rows = st.builds(
    IndexRow,
    key=st.text("0123456789-", min_size=1, max_size=24),
    extension=st.sampled_from(["jpg", "image.png", "webp", "tif", "photograph.upright.jpeg"]),
    offsets=st.tuples(*[st.integers(0, 2**63)] * 3),
    lengths=st.tuples(*[st.integers(0, 2**32 - 1)] * 3),
    digests=st.tuples(digests, digests, digests),
    width=st.integers(1, 2**31),
    height=st.integers(1, 2**31),
    orientation=st.integers(1, 8),
    class_pixels=st.lists(
        st.tuples(st.integers(0, 65535), st.integers(1, 2**32 - 1)), max_size=5
    ).map(tuple),
)


@given(st.lists(st.lists(rows, max_size=4), max_size=4))
def test_an_index_gives_back_every_row_in_the_order_of_the_shards(shards):
    index = build_index(shards)
    assert len(index) == sum(map(len, shards))
    expected = [(number, row) for number, part in enumerate(shards) for row in part]
    found = [(int(index.samples["shard"][i]), index.row(i)) for i in range(len(index))]
    assert found == expected


@given(st.lists(st.lists(rows, max_size=3), max_size=4))
def test_indices_of_single_shards_join_whatever_their_widths(shards):
    joined, whole = join_indices([build_index([part]) for part in shards]), build_index(shards)
    assert joined.samples.dtype == whole.samples.dtype
    assert np.array_equal(joined.samples, whole.samples)
    assert np.array_equal(joined.classes, whole.classes)


def test_published_and_read_again_manifest_and_index_are_the_same(golden):
    folder = str(golden.shards("train"))
    manifest = read_manifest(folder)
    assert manifest.classes.to_dict() == manifest.taxonomy
    assert (len(manifest.classes.names), manifest.samples) == (81, 8)
    index = read_index(folder, manifest)
    assert isinstance(index.samples, np.memmap)  # shared by all workers of a machine
    again = build_index(
        [
            [index.row(int(i)) for i in np.flatnonzero(index.samples["shard"] == number)]
            for number in range(len(manifest.shards))
        ]
    )
    assert np.array_equal(again.samples, index.samples)
    assert np.array_equal(again.classes, index.classes)


def test_index_files_are_plain_numpy_that_needs_no_pickle(tmp_path, golden):
    manifest = read_manifest(str(golden.shards("val")))
    index = read_index(str(golden.shards("val")), manifest)
    entries = publish_index(locate(tmp_path), Index(index.samples, index.classes))
    assert entries == (manifest.index, manifest.index_classes)
    for entry in entries:
        content = (tmp_path / entry.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == entry.sha256
        np.load(tmp_path / entry.name, allow_pickle=False)


def test_the_manifest_tells_nothing_of_when_where_and_how(golden):
    text = (golden.shards("train") / "manifest.json").read_text()
    content = json.loads(text)
    assert set(content) == {
        "format", "version", "taxonomy", "settings", "sources", "versions", "samples", "bytes",
        "counts", "class_pixels", "class_instances", "ignored_pixels", "shards", "index",
        "index_classes", "masks",
    }  # fmt: skip
    assert set(content["settings"]) == {
        "classes", "overlap", "crowd", "exif", "samples_per_shard", "train_ids",
    }  # fmt: skip
    assert content["sources"][0]["name"] == "instances_train.json"
    assert "/" not in text


def test_a_folder_that_is_not_there_is_a_usage_error_one_without_manifest_bad_data(tmp_path):
    with pytest.raises(ConfigError, match="no such folder"):
        read_manifest(str(tmp_path / "absent"))
    with pytest.raises(DataError, match="run it again to complete it"):
        read_manifest(str(tmp_path))


@pytest.fixture
def copied(golden, tmp_path):
    """The golden validation shards, to be spoiled."""
    for path in golden.shards("val").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": "cocoseg-shards"', '"format": "other"', "format 'other'"),
        ('"version": 2,', '"version": 99,', "version 99"),
        ('"version": 2,', '"version": "1",', "broken manifest"),
        ('"samples": 4,', "", "broken manifest"),
        ('"train_id": 2,', '"train_id": 3,', "train ids must be"),
        ("{", "", "broken manifest"),
        ('"name": "shard-000000.tar"', '"name": "../shard-000000.tar"', "not a file beside it"),
        ('"name": "index.npy"', '"name": "/etc/index.npy"', "not a file beside it"),
        ('"bytes": ', '"bytes": -', "broken manifest"),
        ('"bytes": ', '"bytes": 99999999999999999999', "broken manifest"),
    ],
)
def test_a_manifest_that_is_broken_or_of_another_version_is_refused(copied, old, new, message):
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        _ = read_manifest(str(copied)).classes


def resigned(folder, name, content):
    """Change an index file, and its digest in the manifest."""
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / name).write_bytes(content)
    for entry in (manifest["index"], manifest["index_classes"]):
        if entry["name"] == name:
            entry["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


HOSTILE_SHAPES = (f"({2**70},)", "(True,)", "((", "(" * 900)


@pytest.mark.parametrize("name", ["index.npy", "index-classes.npy"])
@pytest.mark.parametrize(
    "damage",
    [
        "missing",
        "flipped",
        "cut",
        "pickled",
        "no array",
        "npz",
        "(2**70,)",
        "(True,)",
        "((",
        "(" * 900,
    ],
)
def test_an_index_that_is_damaged_or_would_have_to_be_unpickled_is_refused(copied, name, damage):
    path = copied / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "cut":
        resigned(copied, name, content[:-9])
    elif damage == "npz":
        buffer = io.BytesIO()
        np.savez(buffer, samples=np.load(path))
        resigned(copied, name, buffer.getvalue())
    elif "(" in damage:
        start = content.index(b"(", content.index(b"'shape'"))
        shape = content[start : content.index(b")", start) + 1]
        text = damage.replace("2**70", str(2**70)).encode()
        header = (
            content[10:start] + text + content[start + len(shape) : content.index(b"\n")] + b"\n"
        )
        size = len(header).to_bytes(2, "little")
        resigned(copied, name, content[:8] + size + header + content[content.index(b"\n") + 1 :])
    elif damage == "no array":
        resigned(copied, name, b"\x80\x04N.")
    else:
        np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
        resigned(copied, name, path.read_bytes())
    with pytest.raises(DataError, match=name):
        read_index(str(copied), read_manifest(str(copied)))


def test_an_index_of_other_shards_is_refused(copied, golden):
    for name in ("index.npy", "index-classes.npy"):
        resigned(copied, name, (golden.shards("train") / name).read_bytes())
    with pytest.raises(DataError, match="count samples differently"):
        read_index(str(copied), read_manifest(str(copied)))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("shard", 2**32 - 1, "count samples differently"),
        ("offsets", 2**64 - 1, "behind the end"),
        ("lengths", 2**32 - 1, "behind the end"),
    ],
)
def test_an_index_that_leads_out_of_its_shards_is_refused(copied, column, value, message):
    samples = np.load(copied / "index.npy")
    samples[column][1] = value
    buffer = io.BytesIO()
    np.save(buffer, samples)
    resigned(copied, "index.npy", buffer.getvalue())
    with pytest.raises(DataError, match=message):
        read_index(str(copied), read_manifest(str(copied)))


def test_a_key_that_is_no_utf8_is_refused(copied):
    samples = np.load(copied / "index.npy")
    samples["key"][1] = b"\xff"
    index = Index(samples, np.load(copied / "index-classes.npy"))
    with pytest.raises(DataError, match="not valid UTF-8"):
        index.row(1)


def with_key(folder, key):
    """Give the second sample another key, by a manifest that vouches for it."""
    samples = np.load(folder / "index.npy")
    columns = [(name, samples.dtype[name]) for name in samples.dtype.names]
    columns[0] = ("key", f"S{max(len(key), samples.dtype['key'].itemsize)}")
    samples = samples.astype(columns)
    samples["key"][1] = key
    buffer = io.BytesIO()
    np.save(buffer, samples)
    resigned(folder, "index.npy", buffer.getvalue())


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (b"\xff", "not valid UTF-8"),
        (b"../../x", "part that is empty, '.' or '..'"),
        (b"a/../../x", "part that is empty, '.' or '..'"),
        (b"..", "part that is empty, '.' or '..'"),
        (b"a/.", "part that is empty, '.' or '..'"),
        (b"a//b", "part that is empty, '.' or '..'"),
        (b"a/", "part that is empty, '.' or '..'"),
        (b"", "part that is empty, '.' or '..'"),
        (b"/etc/passwd", "absolute"),
        (b"C:x", "absolute"),
        (b"a\\b", "backslash"),
        (b"a\nb", "control characters"),
        (b"a\x1b[2Jb", "control characters"),
        (b"a\0b", "control characters"),
        ("a\u202eb".encode(), "direction of writing"),
        (b"a" * 5000, "more than"),
    ],
)
def test_a_key_that_is_no_name_of_a_file_is_refused(copied, key, message):
    with_key(copied, key)
    with pytest.raises(DataError, match=f"record 1: the key .*{message}"):
        ShardSet([str(copied)])


@pytest.mark.parametrize("key", ["a/b/c", "...", "a/..b", "Straße/東京", "a b", "~", "xx:y", "-"])
def test_a_key_that_is_one_is_read(copied, key):
    with_key(copied, key.encode())
    assert ShardSet([str(copied)]).row(1).key == key


def test_the_parent_of_splits_names_them(coco_set, tmp_path):
    for image_id in range(1, 9):
        coco_set.photo(image_id)
    coco_set.prepare(tmp_path / "shards", split="train=0.5,val=0.5")
    with pytest.raises(ConfigError, match=r"folders of shards train, val: give one .*shards/train"):
        read_manifest(str(tmp_path / "shards"))


def test_headers_are_parsed_by_one_thread_at_a_time(golden, monkeypatch):
    """Python 3.11.7 may raise a SystemError where two threads parse an expression."""
    load, inside, most = np.load, [], []

    def slow(*arguments, **options):
        inside.append(None)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return load(*arguments, **options)

    monkeypatch.setattr(np, "load", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ShardSet([str(golden.shards("val"))]), range(8)))
    assert set(most) == {1}
