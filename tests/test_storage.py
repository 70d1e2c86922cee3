"""Files arrive whole or not at all, on local disks and other stores alike."""

import os

import fsspec
import pytest
from cocoseg import storage
from cocoseg.errors import ConfigError


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path):
    """An empty folder: a path, a file:// URL, or a prefix of an object store."""
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.makedirs("/store", exist_ok=True)
        yield "memory://store"
        memory.rm("/store", recursive=True)
    else:
        yield str(tmp_path) if request.param == "local" else f"file://{tmp_path}"


def test_what_is_published_is_read(folder):
    url = storage.join(folder, "deep", "a.bin")
    assert not storage.exists(url)
    for content in (b"first", b"", b"second, longer"):
        storage.publish_bytes(url, content)
        assert storage.read_bytes(url) == content
    assert storage.exists(url)
    assert storage.list_files(storage.join(folder, "deep")) == {"a.bin": 14}
    assert storage.is_dir(storage.join(folder, "deep"))
    assert not storage.is_dir(url)


def test_a_range_ends_with_the_file(folder):
    url = storage.join(folder, "a.bin")
    storage.publish_bytes(url, bytes(range(100)))
    assert storage.read_range(url, 10, 5) == bytes(range(10, 15))
    assert storage.read_range(url, 95, 50) == bytes(range(95, 100))
    assert storage.read_range(url, 0, 100) == bytes(range(100))
    with pytest.raises(FileNotFoundError):
        storage.read_range(storage.join(folder, "absent"), 0, 1)


def test_what_is_absent_is_told_and_can_be_removed_twice(folder):
    url = storage.join(folder, "absent")
    with pytest.raises(ConfigError, match="absent: no such file"):
        storage.read_bytes(url)
    assert storage.list_files(url) == {}
    assert not storage.is_dir(url)
    storage.remove(url)
    storage.publish_bytes(url, b"x")
    storage.remove(url)
    assert not storage.exists(url)


def test_a_folder_is_removed_with_all_it_holds(folder):
    for name in ("a", "b/c", "b/d/e"):
        storage.publish_bytes(storage.join(folder, "tree", *name.split("/")), b"x")
    storage.remove(storage.join(folder, "tree"))
    assert storage.list_files(folder) == {}
    assert not storage.exists(storage.join(folder, "tree", "b", "c"))


def test_files_are_removed_by_name_and_folders_that_are_empty_then(folder):
    names = ["a", "b/[a]*", "b/c/d", "b/c/e/f", "b/x"]
    for name in names:
        storage.publish_bytes(storage.join(folder, name), b"")
    storage.remove_files(folder, ["b/[a]*", "b/c/d", "b/c/e/f", "b/gone", "gone/too"])
    assert storage.walk_files(folder) == ["a", "b/x"]
    assert not storage.exists(storage.join(folder, "b", "c"))
    storage.remove_files(folder, ["a", "b/x"])
    assert storage.walk_files(folder) == []
    assert storage.is_remote(folder) or storage.is_dir(folder)


@pytest.mark.parametrize("name", ["../a", "/a", "b/../../a", "b//a", "", ".", "b/..", "b/\0a"])
def test_a_name_that_leads_out_of_the_folder_removes_nothing(folder, name):
    inner = storage.join(folder, "inner")
    for url in (storage.join(folder, "a"), storage.join(inner, "b")):
        storage.publish_bytes(url, b"")
    with pytest.raises(ValueError, match="leads out of it"):
        storage.remove_files(inner, ["b", name])
    assert storage.walk_files(folder) == ["a", "inner/b"]


def test_names_with_wildcards_are_no_patterns(folder):
    for name in ("m1/a", "m[1]/a", "m[1]/b", "*/c"):
        storage.publish_bytes(storage.join(folder, name), b"")
    storage.remove(storage.join(folder, "m[1]"))
    storage.remove(storage.join(folder, "*"))
    storage.remove(storage.join(folder, "m[1]"))
    assert storage.walk_files(folder) == ["m1/a"]
    storage.remove(storage.join(folder, "m[1]", "gone"))
    assert storage.present(folder, ["m1/a", "m1/b", "a"]) == {"m1/a"}


def test_what_lies_below_a_linked_folder_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "b").write_bytes(b"")
    storage.remove_files(str(tmp_path / "alias"), ["link/a", "b"])
    assert (tmp_path / "real" / "a").exists()
    assert not (tmp_path / "root" / "b").exists()


def test_stamps_change_with_the_content(folder):
    urls = [storage.join(folder, name) for name in ("a", "b", "c/d", "gone")]
    for url in urls[:3]:
        storage.publish_bytes(url, b"content")
    before = storage.stamps(urls)
    assert before == storage.stamps(urls)
    assert (all(before[:3]), before[3]) == (True, "")
    storage.publish_bytes(urls[2], b"CONTENT")
    after = storage.stamps(urls)
    assert [one == other for one, other in zip(before, after, strict=True)] == [1, 1, 0, 1]
    assert storage.stamps([]) == []


def test_links_that_lead_nowhere_are_files_where_that_is_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "gone").symlink_to(tmp_path / "never")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    assert storage.walk_files(str(tmp_path)) == ["a"]
    everything = ["a", "circle", "deep/gone"]
    assert storage.walk_files(str(tmp_path), dangling=True) == everything
    assert storage.glob_files(str(tmp_path), "**") == everything


def test_files_move_from_the_scratch_folder_and_nothing_else_stays(folder):
    with storage.scratch_folder(folder) as scratch:
        (scratch / "kept").write_bytes(b"kept")
        (scratch / "left").write_bytes(b"left")
        storage.publish_file(scratch / "kept", storage.join(folder, "kept"))
    assert not scratch.exists()
    assert storage.list_files(folder) == {"kept": 4}


def test_a_folder_is_published_whole(folder, tmp_path_factory):
    with storage.scratch_folder(folder) as scratch:
        built = scratch / "built"
        (built / "sub").mkdir(parents=True)
        for name in ("complete", "z", "sub/y"):
            (built / name).write_text(name)
        storage.publish_folder(built, storage.join(folder, "final"), last="complete")
    assert set(storage.list_files(storage.join(folder, "final"))) == {"complete", "z"}
    assert storage.read_bytes(storage.join(folder, "final", "sub", "y")) == b"sub/y"


def test_on_an_object_store_the_file_that_says_complete_comes_last(tmp_path, monkeypatch):
    put = []
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "put_file", lambda self, local, path: put.append(path))
    for name in ("a", "complete", "z"):
        (tmp_path / name).write_text(name)
    storage.publish_folder(tmp_path, "memory://store/final", last="complete")
    assert [path.rpartition("/")[2] for path in put] == ["a", "z", "complete"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_while_publishing_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, step):
    path = tmp_path / "manifest.json"
    storage.publish_bytes(str(path), b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            storage.publish_bytes(str(path), b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    storage.publish_bytes(str(tmp_path / "a"), b"x")
    (tmp_path / "local").write_bytes(b"y")
    storage.publish_file(tmp_path / "local", str(tmp_path / "b"))
    assert calls == ["fsync", "replace", "fsync"] * 2


def test_a_scratch_folder_goes_even_when_its_work_fails(tmp_path):
    def work():
        with storage.scratch_folder(str(tmp_path)) as scratch:
            (scratch / "half").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_where_a_file_is_wanted_and_the_other_way_round(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a folder"):
        storage.read_bytes(str(tmp_path))
    with pytest.raises(ConfigError, match="no such file"):
        storage.read_bytes(str(tmp_path / "file" / "below"))
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is not a folder"):
            storage.make_folder(str(path))


def test_a_folder_that_vanishes_while_it_is_made_is_a_fault_and_no_usage_error(
    tmp_path, monkeypatch
):
    path, mkdir = tmp_path / "shards", os.mkdir
    path.mkdir()

    def vanishes(name, *args, **kwargs):
        if name == str(path):
            path.rename(tmp_path / "elsewhere")
            raise FileExistsError(name)  # what mkdir found a moment before
        mkdir(name, *args, **kwargs)

    monkeypatch.setattr(os, "mkdir", vanishes)
    with pytest.raises(FileNotFoundError):
        storage.make_folder(str(path))


def test_an_unknown_kind_of_url_is_a_usage_error():
    with pytest.raises(ConfigError, match="nonsense://x"):
        storage.read_bytes("nonsense://x/y")


@pytest.mark.parametrize(
    ("url", "remote"),
    [("a/b", False), ("/a", False), ("file:///a", False), ("s3://a", True), ("memory://a", True)],
)
def test_which_urls_are_remote(url, remote):
    assert storage.is_remote(url) == remote
