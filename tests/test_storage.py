"""Files arrive whole or not at all, on local disks and other stores alike."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
from cocoseg.errors import ConfigError, DataError
from cocoseg.storage import locate, stamps
from cocoseg.storage.lock import exclusive, temporary_folder


@pytest.fixture(params=["local", "file", "memory"])
def folder(request, tmp_path):
    """An empty folder: a path, a file:// URL, or a prefix of an object store."""
    if request.param == "memory":
        memory = fsspec.filesystem("memory")
        memory.makedirs("/store", exist_ok=True)
        yield locate("memory://store")
        memory.rm("/store", recursive=True)
    else:
        yield locate(tmp_path if request.param == "local" else f"file://{tmp_path}")


def test_what_is_published_is_read(folder):
    url = folder / "deep" / "a.bin"
    assert not url.exists()
    for content in (b"first", b"", b"second, longer"):
        url.publish_bytes(content)
        assert url.read_bytes() == content
    assert url.exists()
    assert (folder / "deep").list_files() == {"a.bin": 14}
    assert (folder / "deep").is_dir()
    assert not url.is_dir()


def test_a_range_ends_with_the_file(folder):
    url = folder / "a.bin"
    url.publish_bytes(bytes(range(100)))
    assert url.read_range(10, 5) == bytes(range(10, 15))
    assert url.read_range(95, 50) == bytes(range(95, 100))
    assert url.read_range(0, 100) == bytes(range(100))
    with pytest.raises(FileNotFoundError):
        (folder / "absent").read_range(0, 1)


def test_what_is_absent_is_told_and_can_be_removed_twice(folder):
    url = folder / "absent"
    with pytest.raises(ConfigError, match="absent: no such file"):
        url.read_bytes()
    assert url.list_files() == {}
    assert not url.is_dir()
    url.remove()
    url.publish_bytes(b"x")
    url.remove()
    assert not url.exists()


def test_a_folder_is_removed_with_all_it_holds(folder):
    for name in ("a", "b/c", "b/d/e"):
        (folder / "tree" / name).publish_bytes(b"x")
    (folder / "tree").remove()
    assert folder.list_files() == {}
    assert not (folder / "tree" / "b" / "c").exists()


def test_files_are_removed_by_name_and_folders_that_are_empty_then(folder):
    names = ["a", "b/[a]*", "b/c/d", "b/c/e/f", "b/x"]
    for name in names:
        (folder / name).publish_bytes(b"")
    folder.remove_files(["b/[a]*", "b/c/d", "b/c/e/f", "b/gone", "gone/too"])
    assert folder.walk_files() == ["a", "b/x"]
    assert not (folder / "b" / "c").exists()
    folder.remove_files(["a", "b/x"])
    assert folder.walk_files() == []
    assert folder.remote or folder.is_dir()


@pytest.mark.parametrize("name", ["../a", "/a", "b/../../a", "b//a", "", ".", "b/..", "b/\0a"])
def test_a_name_that_leads_out_of_the_folder_removes_nothing(folder, name):
    inner = folder / "inner"
    for url in ((folder / "a"), (inner / "b")):
        url.publish_bytes(b"")
    with pytest.raises(DataError, match="leads out of it"):
        inner.remove_files(["b", name])
    assert folder.walk_files() == ["a", "inner/b"]


def test_names_with_wildcards_are_no_patterns(folder):
    for name in ("m1/a", "m[1]/a", "m[1]/b", "*/c"):
        (folder / name).publish_bytes(b"")
    (folder / "m[1]").remove()
    (folder / "*").remove()
    (folder / "m[1]").remove()
    assert folder.walk_files() == ["m1/a"]
    (folder / "m[1]" / "gone").remove()
    assert folder.present(["m1/a", "m1/b", "a"]) == {"m1/a"}


def test_a_file_below_a_name_with_wildcards_is_removed(folder):
    for name in ("m[1]/[x]", "m[1]/y"):
        (folder / name).publish_bytes(b"")
        (folder / name).remove()
        assert not (folder / name).exists()


def test_half_written_files_behind_links_and_in_locked_folders_stay(tmp_path):
    name = ".tmp-1-0123456789abcdef"
    for place in ("out", "elsewhere"):
        (tmp_path / place / name).mkdir(parents=True)
    (tmp_path / "out" / "color").symlink_to(tmp_path / "elsewhere")
    out = locate(tmp_path / "out")
    with exclusive(str(tmp_path / "out" / name / ".lock")):
        out.remove_half_written()
        assert (tmp_path / "out" / name).exists()
    out.remove_half_written("color")
    assert (tmp_path / "elsewhere" / name).exists()
    (tmp_path / "out" / name / ".lock").write_text("of a killed process")
    out.remove_half_written()
    assert not (tmp_path / "out" / name).exists()


def test_what_lies_below_a_linked_folder_stays(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a").write_bytes(b"")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "real")
    (tmp_path / "alias").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "b").write_bytes(b"")
    locate(tmp_path / "alias").remove_files(["link/a", "b"])
    assert (tmp_path / "real" / "a").exists()
    assert not (tmp_path / "root" / "b").exists()


def test_stamps_change_with_the_content(folder):
    urls = [folder / name for name in ("a", "b", "c/d", "gone")]
    for url in urls[:3]:
        url.publish_bytes(b"content")
    before = stamps(urls)
    assert before == stamps(urls)
    assert (all(before[:3]), before[3]) == (True, "")
    locate(urls[2]).publish_bytes(b"CONTENT")
    after = stamps(urls)
    assert [one == other for one, other in zip(before, after, strict=True)] == [1, 1, 0, 1]
    assert stamps([]) == []


def test_links_that_lead_nowhere_are_files_where_that_is_asked_for(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "gone").symlink_to(tmp_path / "never")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "pipe")
    assert locate(tmp_path).walk_files() == ["a"]
    everything = ["a", "circle", "deep/gone"]
    assert locate(tmp_path).walk_files(dangling=True) == everything
    assert locate(tmp_path).glob_files("**") == everything


def test_files_move_from_the_scratch_folder_and_nothing_else_stays(folder):
    with folder.scratch_folder() as scratch:
        (scratch / "kept").write_bytes(b"kept")
        (scratch / "left").write_bytes(b"left")
        (folder / "kept").publish_file(scratch / "kept")
    assert not scratch.exists()
    assert folder.list_files() == {"kept": 4}


def test_a_folder_is_published_whole(folder, tmp_path_factory):
    with folder.scratch_folder() as scratch:
        built = scratch / "built"
        (built / "sub").mkdir(parents=True)
        for name in ("complete", "z", "sub/y"):
            (built / name).write_text(name)
        (folder / "final").publish_folder(built, last="complete")
    assert set((folder / "final").list_files()) == {"complete", "z"}
    assert (folder / "final" / "sub" / "y").read_bytes() == b"sub/y"


def test_on_an_object_store_the_file_that_says_complete_comes_last(tmp_path, monkeypatch):
    put = []
    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "put_file", lambda self, local, path: put.append(path))
    for name in ("a", "complete", "z"):
        (tmp_path / name).write_text(name)
    locate("memory://store/final").publish_folder(tmp_path, last="complete")
    assert [path.rpartition("/")[2] for path in put] == ["a", "z", "complete"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_while_publishing_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch, step):
    path = tmp_path / "manifest.json"
    locate(path).publish_bytes(b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises(OSError, match="No space"):
            locate(path).publish_bytes(b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b))[1])
    locate(tmp_path / "a").publish_bytes(b"x")
    (tmp_path / "local").write_bytes(b"y")
    locate(tmp_path / "b").publish_file(tmp_path / "local")
    assert calls == ["fsync", "replace", "fsync"] * 2


def test_a_scratch_folder_goes_even_when_its_work_fails(tmp_path):
    def work():
        with locate(tmp_path).scratch_folder() as scratch:
            (scratch / "half").write_bytes(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert list(tmp_path.iterdir()) == []


_STAYS = """
import os, signal, sys
from cocoseg.storage.lock import exclusive, temporary_folder
with temporary_folder() as folder:
    (folder / "copy").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_fetched_goes_with_the_next(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    (tmp_path / "cocoseg-kept-1").mkdir()
    (tmp_path / "cocoseg-mine").mkdir()
    (tmp_path / "cocoseg-mine.lock").write_text("")
    command = [sys.executable, "-c", _STAYS]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, alive = (Path(one.stdout.readline().strip()) for one in processes)
    processes[0].communicate("")
    assert processes[0].returncode == -signal.SIGKILL
    assert (killed / "copy").exists()
    with temporary_folder() as ours:
        assert ours.stat().st_mode & 0o777 == 0o700
        assert {path for path in tmp_path.iterdir() if path.is_dir()} == {
            *(ours, alive, tmp_path / "cocoseg-kept-1", tmp_path / "cocoseg-mine")
        }
    assert (alive / "copy").exists()
    processes[1].communicate("")
    with temporary_folder():
        pass
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cocoseg-kept-1", "cocoseg-mine", "cocoseg-mine.lock"}


def test_temporary_names_are_not_to_be_guessed(tmp_path, monkeypatch):
    """Links that another user plants under them are never followed."""
    names, opened = [], os.open

    def noted(path, how, *mode):
        if ".tmp-" in str(path):
            names.append(os.path.basename(path))
            assert how & os.O_EXCL
            assert how & os.O_NOFOLLOW
        return opened(path, how, *mode)

    monkeypatch.setattr(os, "open", noted)
    for _ in range(2):
        locate(tmp_path / "a").publish_bytes(b"x")
    first, second = (name.removeprefix(f".tmp-{os.getpid()}-") for name in names)
    assert first != second
    assert len(first) == len(second) == 16


def test_a_folder_where_a_file_is_wanted_and_the_other_way_round(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a folder"):
        locate(tmp_path).read_bytes()
    with pytest.raises(ConfigError, match="no such file"):
        locate(tmp_path / "file" / "below").read_bytes()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="is not a folder"):
            locate(path).make_folder()


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
        locate(path).make_folder()


def test_an_unknown_kind_of_url_is_a_usage_error():
    with pytest.raises(ConfigError, match="nonsense://x"):
        locate("nonsense://x/y").read_bytes()


@pytest.mark.parametrize(
    ("url", "remote"),
    [("a/b", False), ("/a", False), ("file:///a", False), ("s3://a", True), ("memory://a", True)],
)
def test_which_urls_are_remote(url, remote):
    assert locate(url).remote == remote
