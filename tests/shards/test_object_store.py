"""Shards in an object store that misbehaves: the whole data, or a clear end; never short data."""

import itertools
import random

import numpy as np
import pytest
from cocoseg.errors import CocosegError, StoreError
from cocoseg.shards.config import ReadConfig
from cocoseg.shards.reader import BadSample, ShardSet
from cocoseg.storage import locate, retry
from object_store import CORRUPT, FAULTS, Rule

PHASES = ("manifest", "first", "later")
MODES = ("cache", "range")
LASTING = (False, True)
FINAL = ("404", "denied")  # asked again, they would be the same
CELLS = list(itertools.product(FAULTS, PHASES, MODES, LASTING))
READS_OFTEN = ("503", "reset in the body", "short", "whole")
SOME = sorted(random.Random(7).sample([cell for cell in CELLS if cell[0] != "slow"], 16))


@pytest.fixture
def url(store, golden):
    return store.upload(golden.shards("train"), "train")


@pytest.fixture(scope="module")
def truth(golden):
    return ShardSet([str(golden.shards("train"))]).read_many(range(8))


def config(mode, tmp_path):
    return ReadConfig(remote=mode, cache_dir=str(tmp_path / "cache"))


def assert_same(samples, truth):
    for sample, true in zip(samples, truth, strict=True):
        assert not isinstance(sample, BadSample), sample
        assert sample.key == true.key
        assert np.array_equal(sample.image, true.image)
        assert np.array_equal(sample.mask, true.mask)


def read_all(store, url, config, rule, phase, samples):
    """Read every sample into `samples`; the fault lies in wait where `phase` says."""
    if phase == "manifest":
        rule.path = "manifest.json"
        store.proxy.rules.append(rule)
    shards = ShardSet([url], config=config)
    if phase == "first":
        rule.path = r"\.tar"
        store.proxy.rules.append(rule)
    samples += shards.read_many([0, 1])
    if phase == "later":
        rule.path = r"\.tar"
        store.proxy.rules.append(rule)
    samples += shards.read_many(range(2, 8))


def check(cell, store, url, truth, tmp_path):
    fault, phase, mode, lasting = cell
    rule = Rule(fault, times=None if lasting else 1)
    samples, told = [], []
    try:
        read_all(store, url, config(mode, tmp_path), rule, phase, samples)
        told = [str(sample) for sample in samples if isinstance(sample, BadSample)]
    except CocosegError as error:
        told = [str(error)]
    assert rule.struck, "the fault did not land"
    if fault == "whole" and (phase == "manifest" or mode == "cache"):
        assert told == []  # the range was the whole object
    elif lasting or fault in FINAL:
        assert told
        assert all(text.startswith(url) for text in told), told
        if phase != "manifest":
            assert all(".tar: sample 000000000" in text for text in told), told
    else:
        assert told == []
    good = [(i, one) for i, one in enumerate(samples) if not isinstance(one, BadSample)]
    assert_same([one for _, one in good], [truth[i] for i, _ in good])
    return "a clear end" if told else "all of the data"


@pytest.mark.parametrize("cell", SOME, ids=str)
def test_a_fault_is_retried_or_ends_clearly(cell, store, url, truth, tmp_path):
    check(cell, store, url, truth, tmp_path)


@pytest.mark.long
def test_every_fault_in_every_phase(store, url, truth, tmp_path, record_property):
    ends = {}
    for number, cell in enumerate(CELLS):
        store.proxy.clear()
        ended = check(cell, store, url, truth, tmp_path / str(number))
        ends[ended] = ends.get(ended, 0) + 1
    figures = ", ".join(f"{count} {ended}" for ended, count in sorted(ends.items()))
    record_property("figure", f"object store: {len(CELLS)} faults: {figures}, 0 short data")
    assert sum(ends.values()) == len(CELLS) == 144


@pytest.mark.parametrize("mode", MODES)
class TestAReplacedObject:
    def other(self, golden):
        return golden.shards("val").joinpath("shard-000000.tar").read_bytes()

    def test_before_it_was_read_is_an_error(self, mode, store, url, golden, tmp_path):
        shards = ShardSet([url], config=config(mode, tmp_path))
        store.put("train/shard-000000.tar", self.other(golden))
        with pytest.raises(BadSample, match=r"shard-000000\.tar: sample \d+: the shard "):
            shards.read(0)
        assert shards.read(3).mask.any()

    def test_while_it_is_read_never_mixes_versions(self, mode, store, url, golden, truth, tmp_path):
        shards = ShardSet([url], config=config(mode, tmp_path))
        assert_same([shards.read(0)], truth[:1])
        store.put("train/shard-000000.tar", self.other(golden))
        (second,) = shards.read_many([1])
        if mode == "cache":  # what was fetched is still read
            assert_same([second], truth[1:2])
        else:
            assert "the shard " in str(second)

    def test_by_the_same_bytes_changes_nothing(self, mode, store, url, golden, truth, tmp_path):
        shards = ShardSet([url], config=config(mode, tmp_path))
        assert_same([shards.read(0)], truth[:1])
        same = golden.shards("train").joinpath("shard-000000.tar").read_bytes()
        store.put("train/shard-000000.tar", same)
        assert_same(shards.read_many(range(8)), truth)

    def test_index_is_an_error(self, mode, store, url, golden, tmp_path):
        store.put("train/index.npy", golden.shards("val").joinpath("index.npy").read_bytes())
        with pytest.raises(CocosegError, match=r"index\.npy: differs from the manifest"):
            ShardSet([url], config=config(mode, tmp_path))


def test_requests_for_ranges_say_which_version_they_want(store, url, golden, tmp_path):
    shards = ShardSet([url], config=config("range", tmp_path))
    shards.read(0)
    before = store.proxy.count("shard-000000.tar", "HEAD")
    same = golden.shards("train").joinpath("shard-000000.tar").read_bytes()
    store.put("train/shard-000000.tar", same + bytes(512))  # another ETag
    shards.read(1)
    assert store.proxy.count("shard-000000.tar", "HEAD") == before + 1  # it was looked up again


def test_ranges_are_several_at_a_time_and_one_a_sample(store, url, truth, tmp_path):
    shards = ShardSet([url], config=config("range", tmp_path))
    store.proxy.clear()
    assert_same(shards.read_many(range(8)), truth)
    assert store.proxy.count(".tar") == 8
    for _ in range(20):  # on a busy machine one may end before the next is asked for
        if store.proxy.most_in_flight > 1:
            break
        shards.read_many(range(8))
    assert store.proxy.most_in_flight > 1
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".npy"}  # the index alone


@pytest.mark.long
def test_training_reads_from_the_store_in_worker_processes(store, url, truth, tmp_path):
    import json
    import os
    import subprocess
    import sys

    environment = os.environ | {"FSSPEC_S3": json.dumps(store.settings())}
    for name, value in store.settings().items():
        if isinstance(value, str):
            environment[f"FSSPEC_S3_{name.upper()}"] = value
    command = [
        *(sys.executable, "-m", "cocoseg", "train", "--shards", url, "--val-shards", url),
        *("--output", str(tmp_path / "run"), f"--set=train.cache_dir={tmp_path / 'cache'}"),
        *("--set=model.name=segformer-tiny", "--set=model.input_size=32", "--json"),
        *(
            "--set=train.max_steps=6",
            "--set=train.val_every=6",
            "--set=train.workers=2",
            "--set=train.device=cpu",
        ),
    ]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 6
    for number in range(3):
        assert store.proxy.count(f"shard-{number:06d}.tar") == 1  # by all processes together
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 3


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, marks=() if fault in READS_OFTEN else pytest.mark.long)
        for fault in sorted(set(FAULTS) - {"slow", *FINAL})
    ],
)
@pytest.mark.parametrize("lasting", LASTING)
def test_whole_objects_and_ranges_of_them_are_never_short(store, fault, lasting):
    content = bytes(range(256)) * 40
    store.put("some/object", content)
    url = "s3://shards/some/object"
    for read, expected in (
        (lambda: locate(url).read_bytes(), content),
        (lambda: locate(url).read_range(1000, 5000), content[1000:6000]),
        (lambda: locate(url).read_range(10_000, 5000), content[10_000:]),
    ):
        rule = Rule(fault, "some/object", times=None if lasting else 1)
        store.proxy.rules[:] = [rule]
        harmless = fault == "whole" and expected == content
        if lasting and not harmless:
            with pytest.raises(StoreError, match=r"some/object: cannot be read: .*tried 6 times"):
                read()
        else:
            assert read() == expected
        assert rule.struck


WRITES = {
    "bytes": lambda url, folder: locate(f"{url}/file").publish_bytes(b"new"),
    "file": lambda url, folder: locate(f"{url}/file").publish_file(folder / "file"),
    "folder": lambda url, folder: locate(url).publish_folder(folder, "last"),
    "removed": lambda url, folder: locate(url).remove(),
    "removed files": lambda url, folder: locate(url).remove_files(["old", "file", "absent"]),
    "removed pattern": lambda url, folder: locate(f"{url}/[x]").remove(),
}
WRITES_OFTEN = [("bytes", "slow"), ("file", "429"), ("folder", "500"), ("removed", "reset")]
WRITES_OFTEN += [("removed files", "denied"), ("removed pattern", "503"), ("bytes", "503")]
AFTER = {
    "bytes": {"old": b"1", "file": b"new"},
    "file": {"old": b"1", "file": b"new"},
    "folder": {"file": b"new", "last": b"3"},
    "removed": {},
    "removed files": {},
    "removed pattern": {"old": b"1", "file": b"0"},
}


def here(url):
    return {name: locate(f"{url}/{name}").read_bytes() for name in locate(url).list_files()}


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        pytest.param(
            *(name, fault),
            marks=() if (name, fault) in WRITES_OFTEN else pytest.mark.long,
        )
        for name in WRITES
        for fault in ("429", "500", "503", "reset", "slow", "denied")
    ],
)
def test_a_write_that_fails_is_retried_and_then_reported(store, tmp_path, name, fault):
    for lasting in (False, True):
        key = f"written/{name.replace(' ', '-')}-{fault}-{lasting}"
        url, folder = f"s3://shards/{key}", tmp_path / str(lasting)
        for file, content in (("old", b"1"), ("file", b"0"), ("[x]/a", b"x")):
            store.put(f"{key}/{file}", content)
        folder.mkdir()
        (folder / "file").write_bytes(b"new")
        (folder / "last").write_bytes(b"3")
        rule = Rule(fault, "", times=None if lasting else 1, method="(PUT|POST|DELETE)")
        store.proxy.rules[:] = [rule]
        done_anyway = (name, fault) == ("removed", "slow")  # the answer alone comes too late
        if (lasting and not done_anyway) or fault == "denied":
            told = "access is denied" if fault == "denied" else "tried 6 times"
            with pytest.raises(StoreError, match=rf"{key}.*{told}") as raised:
                WRITES[name](url, folder)
            if fault in ("429", "500", "503"):
                assert f"HTTP {fault}" in str(raised.value)
        else:
            WRITES[name](url, folder)
            assert rule.struck
            store.proxy.rules.clear()
            assert here(url) == AFTER[name]


def test_a_bucket_that_is_missing_is_reported_immediately(store):
    with pytest.raises(StoreError, match=r"s3://absent/x: cannot be written: .*NotFound|NoSuch"):
        locate("s3://absent/x").publish_bytes(b"")


def test_a_store_that_hangs_is_asked_no_more_often_than_we_mean(store):
    store.put("some/object", b"x" * 100)
    stored = locate("s3://shards/some/object")
    for read in (stored.read_bytes, stored.list_files):
        store.proxy.clear()
        store.proxy.rules.append(Rule("slow", "", times=None))
        with pytest.raises(StoreError, match=r"ReadTimeoutError.*tried 6 times"):
            read()
        assert len(store.proxy.requests) == retry.ATTEMPTS


def test_what_another_process_writes_is_seen_at_once(store):
    store.put("listed/a", b"old")
    assert locate("s3://shards/listed").list_files() == {"a": 3}
    store.put("listed/a", b"newer")
    store.put("listed/b", b"b")
    assert locate("s3://shards/listed/a").read_bytes() == b"newer"
    assert locate("s3://shards/listed/a").size() == 5
    assert locate("s3://shards/listed/b").exists()
    assert locate("s3://shards/listed").list_files() == {"a": 5, "b": 1}


def test_missing_credentials_are_told_at_once(store, monkeypatch):
    import fsspec

    settings = {k: v for k, v in store.settings().items() if k not in ("key", "secret")}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/absent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/absent")
    monkeypatch.setattr(retry, "FIRST_PAUSE", 1000)
    with pytest.raises(StoreError, match="Unable to locate credentials"):
        locate("s3://shards/some/object").read_bytes()
    assert store.proxy.requests == []


@pytest.mark.parametrize("times", [1, 20])
def test_an_index_that_arrives_corrupt_is_fetched_again(store, url, truth, tmp_path, times):
    store.proxy.rules.append(Rule(CORRUPT, r"index\.npy", times=times))
    if times == 1:
        assert_same(ShardSet([url], config=config("cache", tmp_path)).read_many(range(8)), truth)
    else:
        with pytest.raises(CocosegError, match=r"index\.npy: differs from the manifest"):
            ShardSet([url], config=config("cache", tmp_path))


@pytest.mark.parametrize("max_bad", [0, 100])
@pytest.mark.parametrize("mode", MODES)
def test_a_store_that_dies_ends_training_soon(store, url, tmp_path, run_cocoseg, mode, max_bad):
    store.proxy.rules.append(Rule("500", r"\.tar", times=None, skip=2))
    ran = run_cocoseg(
        *("train", "--shards", url, "--output", tmp_path / "run", "--set=train.device=cpu"),
        *("--set=model.name=segformer-tiny", "--set=model.input_size=32"),
        *("--set=train.workers=0", "--set=train.max_steps=20", f"--set=train.max_bad={max_bad}"),
        *(f"--set=train.cache_dir={tmp_path / 'cache'}", f"--set=train.remote={mode}"),
    )
    assert ran.code == 1
    assert ": cannot be read: " in ran.err
    assert "Traceback" not in ran.err
    assert len(store.proxy.requests) < 20 * retry.ATTEMPTS


def test_a_cache_too_small_is_told_before_training(store, url, tmp_path, run_cocoseg):
    command = ("train", "--shards", url, "--output", tmp_path / "run", "--dry-run")
    settings = f"--set=train.cache_dir={tmp_path / 'cache'}"
    ran = run_cocoseg(*command, settings, "--set=train.cache_bytes=10KB")
    assert (ran.code, ran.out) == (2, "")
    assert "there is a shard of 20,480 bytes" in ran.err
    ran = run_cocoseg(*command, settings, "--set=train.cache_bytes=30KB")
    assert ran.code == 0
    assert "the order of samples needs 51,200 at a time" in ran.err
    assert "cache bytes needed" in ran.out
