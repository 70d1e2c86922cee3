"""The cache of shards: shared by processes, bounded in bytes, never wrong whatever dies."""

import contextlib
import errno
import fcntl
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from cocoseg.errors import ConfigError
from cocoseg.shards import cache as shard_cache
from cocoseg.shards.cache import ShardCache
from cocoseg.shards.config import ReadConfig
from cocoseg.shards.reader import BadSample, ShardSet
from object_store import Rule

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def url(store, golden):
    return store.upload(golden.shards("train"), "train")


@pytest.fixture
def entries(golden):
    """Name → (bytes, sha256) of the three shards."""
    manifest = json.loads(golden.shards("train").joinpath("manifest.json").read_text())
    return {shard["name"]: (shard["bytes"], shard["sha256"]) for shard in manifest["shards"]}


def open_set(url, folder, **settings):
    return ShardSet([url], config=ReadConfig(cache_dir=str(folder), **settings))


def used(folder):
    total = 0
    with Path(folder, ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a shard that is renamed meanwhile would count twice
        for path in Path(folder).iterdir():
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.suffix in (".tar", ".part") else 0
    return total


def read_in_a_process(url, folder, orders, settings, failed):
    try:
        shards = open_set(url, folder, **settings)
        for position in orders:
            assert shards.read(position).key
    except BaseException as error:
        failed.put(repr(error))
        raise


def processes(url, folder, orders, **settings):
    failed = FORK.SimpleQueue()
    started = [
        FORK.Process(target=read_in_a_process, args=(url, folder, order, settings, failed))
        for order in orders
    ]
    for process in started:
        process.start()
    return started, failed


def join(started, failed):
    for process in started:
        process.join(600)
    assert failed.empty(), failed.get()
    assert [process.exitcode for process in started] == [0] * len(started)


def test_several_processes_fetch_each_shard_once(store, url, tmp_path):
    orders = [list(range(8)), [7, 6, 5, 4, 3, 2, 1, 0], [3, 0, 6, 1], [0] * 5]
    join(*processes(url, tmp_path, orders))
    for number in range(3):
        assert store.proxy.count(f"shard-{number:06d}.tar") == 1
    kept = sorted(path.suffix or path.name for path in tmp_path.iterdir())
    assert kept == [".lock", ".npy", ".npy", ".tar", ".tar", ".tar"]


def test_another_run_and_another_url_find_what_is_there(store, url, golden, tmp_path):
    open_set(url, tmp_path).read_many(range(8))
    other = store.upload(golden.shards("train"), "elsewhere")
    store.proxy.clear()
    assert len(open_set(other, tmp_path).read_many(range(8))) == 8
    assert store.proxy.count(".tar") == 0


def test_the_bytes_never_exceed_the_capacity(store, url, entries, tmp_path):
    sizes = [size for size, _ in entries.values()]
    capacity = max(sizes) + min(sizes)  # two of the three
    assert capacity < sum(sizes)
    orders = [list(range(8)) * 3, list(range(7, -1, -1)) * 3, [0, 3, 6] * 6]
    most, done = [0], threading.Event()

    def watch():
        while not done.is_set():
            most[0] = max(most[0], used(tmp_path))
            time.sleep(0.0005)

    # Started before the watcher: a fork would keep its lock.
    started = processes(url, tmp_path, orders, cache_bytes=capacity)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        join(*started)
    finally:
        done.set()
        watcher.join()
    assert 0 < most[0] <= capacity
    assert store.proxy.count(".tar") > 3  # some were fetched again


def test_the_longest_unused_goes_first(store, url, entries, tmp_path):
    sizes = [size for size, _ in entries.values()]
    shards = open_set(url, tmp_path, cache_bytes=max(sizes) + sizes[0])
    for position in (0, 3, 0, 6):  # shard 1 is the longest unused when 2 comes
        shards.read(position)
    kept = {path.stem for path in tmp_path.glob("*.tar")}
    digests = [digest for _, digest in entries.values()]
    assert kept == {digests[0], digests[2]}


def test_a_shard_larger_than_the_capacity_is_told(url, tmp_path):
    with pytest.raises(ConfigError, match=r"more than the cache may hold \(1,000\): raise"):
        open_set(url, tmp_path, cache_bytes=1000).read(0)


def test_files_of_others_in_the_folder_are_let_be(url, tmp_path):
    others = {"backup.tar": b"x" * 30_000, "download.part": b"y" * 30_000, "a.npy": b"z" * 30_000}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
    open_set(url, tmp_path, cache_bytes=25_000).read_many([0, 3, 6, 0])
    assert {name: (tmp_path / name).read_bytes() for name in others} == others
    assert len(list(tmp_path.glob("*.tar"))) == 2  # one of them is ours


@pytest.mark.long
def test_processes_that_fetch_and_evict_without_end_never_fail(url, entries, tmp_path):
    capacity = max(size for size, _ in entries.values())  # one shard at a time
    orders = [
        [3 * (step * stride + start) % 8 for step in range(300)]
        for start, stride in ((0, 1), (1, 1), (2, 1), (0, 2), (1, 2))
    ]
    join(*processes(url, tmp_path, orders, cache_bytes=capacity))


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty"])
def test_what_was_damaged_on_the_disk_is_fetched_again(store, url, tmp_path, damage):
    shards = open_set(url, tmp_path)
    shards.read_many(range(8))
    for path in tmp_path.glob("*.tar"):
        content = bytearray(path.read_bytes())
        content[700] ^= 1
        path.write_bytes({"a bit": content, "cut": content[:600], "empty": b""}[damage])
    store.proxy.clear()
    assert not any(isinstance(one, BadSample) for one in shards.read_many(range(8)))
    assert store.proxy.count(".tar") == 3


def test_a_killed_download_is_taken_over(store, url, entries, tmp_path):
    store.proxy.rules.append(Rule("slow", "shard-000000", times=1))
    (process,), _ = processes(url, tmp_path, [[0]])
    part = tmp_path / f"{entries['shard-000000.tar'][1]}.part"
    while not (store.proxy.count("shard-000000.tar", "HEAD") and part.exists()):
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert part.exists()  # the kill landed amid the download
    assert part.stat().st_size == entries["shard-000000.tar"][0]
    assert open_set(url, tmp_path).read(0).key
    assert not part.exists()


def test_what_a_killed_process_left_makes_room(store, url, entries, tmp_path):
    (size, _), (other_size, _), _ = entries.values()
    abandoned = tmp_path / f"{'0' * 64}.part"
    abandoned.write_bytes(bytes(size))
    assert open_set(url, tmp_path, cache_bytes=max(size, other_size)).read(3).key
    assert not abandoned.exists()


@pytest.mark.long
def test_kills_at_any_time_leave_a_cache_that_serves(store, url, tmp_path, record_property):
    """Kills land while shards are fetched, evicted and read; all other processes continue."""
    capacity = 40_000
    landed = moment = 0
    while moment < 60 or landed < 60:
        started, failed = processes(url, tmp_path, [list(range(8)) * 20] * 2, cache_bytes=capacity)
        time.sleep(0.02 + 0.004 * (moment % 60))
        for process in started[: 1 + moment % 2]:
            landed += process.is_alive()
            os.kill(process.pid, signal.SIGKILL)
        if moment % 2 == 0:
            started[1].join(600)
            assert failed.empty(), failed.get()
            assert started[1].exitcode == 0
        for process in started:
            process.join()
        shards = open_set(url, tmp_path, cache_bytes=capacity)
        assert not any(isinstance(one, BadSample) for one in shards.read_many(range(8)))
        assert used(tmp_path) <= capacity
        moment += 1
    record_property("figure", f"cache: {landed} kills landed, 0 wrong or hanging reads")


def test_a_full_disk_evicts_first_and_is_told_then(store, url, entries, tmp_path, monkeypatch):
    room, allocate = [], os.posix_fallocate

    def full(descriptor, offset, length):
        if len(list(tmp_path.glob("*.tar"))) >= room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        allocate(descriptor, offset, length)

    monkeypatch.setattr(shard_cache.os, "posix_fallocate", full)
    shards = open_set(url, tmp_path)
    room.append(1)  # of three
    assert [shards.read(position).key for position in (0, 3, 6)]
    assert len(list(tmp_path.glob("*.tar"))) == 1
    room[0] = 0
    with pytest.raises(ConfigError, match="No space left on device"):
        shards.read(0)
    assert list(tmp_path.glob("*.part")) == []


def test_a_folder_that_cannot_be_written_is_told(url, tmp_path):
    shards = open_set(url, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        open_set(url, tmp_path / "file")
    cache = ShardCache(str(tmp_path / "file"), 10**9)
    with pytest.raises(ConfigError, match="cannot hold"):
        cache.read(f"{url}/shard-000000.tar", shards.manifests[0].shards[0], 0, 1)
