"""The pool: whatever its workers die of, it ends, and says what happened."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cocoseg.prepare.shard
import cocoseg.prepare.workers
import faults
import pytest
from cocoseg.errors import ConfigError
from PIL import Image


@pytest.fixture(autouse=True)
def _nothing_runs_on():
    yield
    faults.stop_all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, coco_set_class):
    folder = tmp_path_factory.mktemp("undisturbed")
    return faults.undisturbed(faults.draw(coco_set_class(folder / "set")), folder, "whole")


def deadly(*image_ids, number=signal.SIGSEGV):
    """Let a C library crash on some photographs."""

    def patch():
        build_sample = cocoseg.prepare.shard.build_sample

        def crash(image, rules):
            if image.image_id in image_ids and image.problem is None:
                os.kill(os.getpid(), number)
            return build_sample(image, rules)

        cocoseg.prepare.shard.build_sample = crash
        cocoseg.prepare.workers.build_sample = crash

    return patch


@pytest.mark.parametrize("image_ids", [(7,), (1, 8, 12), tuple(range(1, 15))], ids=str)
def test_an_image_that_kills_its_worker_twice_is_left_out_and_no_other(
    whole, tmp_path, stored, image_ids
):
    output = tmp_path / "shards"
    ended = faults.start(whole.config(output), tmp_path / "log", deadly(*image_ids)).wait()
    assert (ended.code, ended.text) == (0, "")
    left_out = sorted({*image_ids, faults.BAD})
    quarantined = faults.quarantine(output)
    assert sorted(quarantined) == left_out
    for image_id in {*image_ids} - {faults.BAD}:
        assert quarantined[image_id] == "worker-died"
        assert f"a worker died (SIGSEGV) at image {image_id} ({image_id}.jpg)" in ended.log
    packed = sorted(sample.meta["image_id"] for sample in stored(output).values())
    assert packed == [image_id for image_id in range(1, 16) if image_id not in left_out]
    assert faults.leftovers(output) == []


def test_an_image_that_kills_only_in_company_is_tried_once_more_and_left_out(whole, tmp_path):
    """It survives alone, every time."""
    build_sample = cocoseg.prepare.workers.build_sample

    def patch():
        deadly(7)()
        cocoseg.prepare.workers.build_sample = build_sample

    ended = faults.start(whole.config(tmp_path / "shards"), tmp_path / "log", patch).wait()
    assert (ended.code, ended.text) == (0, "")
    deaths = ended.log.count("a worker died (SIGSEGV) at image 7")
    assert deaths in (2, 4)  # twice in each pass over its shard
    assert faults.quarantine(tmp_path / "shards")[7] == "worker-died"


def test_an_image_that_is_quarantined_for_a_death_stays_so_after_a_kill(whole, tmp_path):
    output = tmp_path / "shards"
    moment = faults.Moment(faults.POINTS["publish"], 1)
    patches = (deadly(7), lambda: moment.watch(faults.die))
    assert faults.start(whole.config(output), tmp_path / "log", *patches).wait().code is None
    kept = faults.standing(output)
    ended = faults.start(whole.config(output), tmp_path / "log").wait()
    assert ended.code == 0
    assert faults.quarantine(output)[7] == "worker-died"
    assert {name: faults.identity(output / name) for name in kept} == kept


def test_an_image_that_survives_alone_is_kept(whole, tmp_path):
    """The worker was killed from outside."""
    moment = faults.Moment(faults.POINTS["encode-mask"], 5)
    ended = faults.start(
        whole.config(tmp_path / "shards"), tmp_path / "log", lambda: moment.watch(faults.die)
    ).wait()
    assert (ended.code, ended.text) == (0, "")
    assert ended.log.count("a worker died") == 1
    assert "a worker died (SIGKILL) at image " in ended.log
    whole.check(tmp_path / "shards")


@pytest.mark.parametrize("name", ["job-taken", "scratch-folder", "rename-shard", "answer"])
def test_workers_that_die_at_no_image_again_and_again_end_the_build(whole, tmp_path, name):
    output = tmp_path / "shards"
    ended = faults.start(whole.config(output), tmp_path / "log", always(name, faults.die)).wait()
    assert ended.code == 1
    assert "a worker died 3 times in shard shard-" in ended.text
    assert "SIGKILL" in ended.text
    assert not (output / "manifest.json").exists()
    again = faults.start(whole.config(output), tmp_path / "log").wait()
    assert again.code == 0
    whole.check(output)


def always(name, action):
    """Let every call of a failpoint end so."""
    point = faults.POINTS[name]

    def patch():
        function = getattr(point.owner, point.function)

        def wrapped(*args, **kwargs):
            if not point.where or any(str(one).endswith(point.where) for one in args):
                action()
            return function(*args, **kwargs)

        setattr(point.owner, point.function, wrapped)

    return patch


def test_workers_that_cannot_even_begin_end_the_build(whole, tmp_path):
    def patch():
        cocoseg.prepare.workers._work = lambda *_: os._exit(7)

    ended = faults.start(whole.config(tmp_path / "shards"), tmp_path / "log", patch).wait()
    assert ended.code == 1
    assert "exit code 7" in ended.text


@pytest.mark.parametrize("after", [0, 2], ids=["at-once", "later"])
def test_a_system_without_room_for_processes_is_told(whole, tmp_path, after):
    def patch():
        fork, forked = os.fork, []

        def refuse():
            forked.append(1)
            if len(forked) > after:
                raise BlockingIOError(11, "Resource temporarily unavailable")
            return fork()

        os.fork = refuse

    patches = (patch, always("rename-shard", faults.die))
    ended = faults.start(whole.config(tmp_path / "shards"), tmp_path / "log", *patches).wait()
    assert ended.code == 1
    assert "no worker process can be started" in ended.text
    assert "Resource temporarily unavailable" in ended.text


@pytest.mark.parametrize("name", ["read-photo", "published-shard", "answered"])
def test_all_workers_dying_at_once_are_replaced(whole, tmp_path, name):
    # Who answers first of three is given the fourth of five shards.
    moment = faults.Moment(faults.POINTS[name], 1)
    run = faults.start(
        whole.config(tmp_path / "shards", workers=3),
        tmp_path / "log",
        lambda: moment.watch(faults.stand_still),
    )
    moment.wait()
    workers = run.workers()
    assert 1 <= len(workers) <= 3
    os.kill(run.pid, signal.SIGSTOP)  # or it gives the shard of the first to the next to be killed
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    os.kill(run.pid, signal.SIGCONT)
    ended = run.wait()
    assert (ended.code, ended.text) == (0, "")
    whole.check(tmp_path / "shards")


def test_half_an_answer_is_no_answer(whole, tmp_path):
    connection = faults.Connection

    def patch():
        send, cut = connection._send, faults.Moment(faults.POINTS["answer"], 2)
        parent = os.getpid()

        def cut_short(self, content, *more):
            if os.getpid() != parent and cut.count():
                os.write(self.fileno(), bytes(content[: len(content) // 2]))
                faults.die()
            return send(self, content, *more)

        connection._send = cut_short

    ended = faults.start(whole.config(tmp_path / "shards"), tmp_path / "log", patch).wait()
    assert (ended.code, ended.text) == (0, "")
    assert "a worker died (SIGKILL) in shard" in ended.log
    whole.check(tmp_path / "shards")


def test_a_worker_that_dies_with_nothing_to_do_is_not_missed(whole, tmp_path):
    """Two shards, two workers: one stands still in its shard until the other is dead."""
    output = tmp_path / "shards"
    moment = faults.Moment(faults.POINTS["publish-shard"], 1)
    gate, opened = os.pipe()

    def wait_for_the_other():
        os.write(moment.told, f"{os.getpid():10d}".encode())
        os.read(gate, 1)

    config = whole.config(output, samples_per_shard=8)
    run = faults.start(config, tmp_path / "log", lambda: moment.watch(wait_for_the_other))
    moment.wait()
    faults.poll(lambda: len(list((output / ".building").glob("*.record"))) == 1)
    told = b""
    while len(told) < 11:  # both writes
        told += os.read(moment.there, 11 - len(told))
    standing = int(told[1:])
    (idle,) = {*run.workers()} - {standing}
    os.kill(idle, signal.SIGKILL)
    os.write(opened, b"!")
    ended = run.wait()
    assert (ended.code, ended.text) == (0, "")
    assert len(list(output.glob("*.tar"))) == 2
    for descriptor in (gate, opened):
        os.close(descriptor)
    moment.close()


@pytest.mark.parametrize("workers", [1, 2, 5, 16])
def test_any_number_of_workers_makes_the_same_bytes(whole, tmp_path, workers):
    config = whole.config(tmp_path / "shards", workers=workers)
    assert faults.start(config, tmp_path / "log").wait().code == 0
    whole.check(tmp_path / "shards")


class Unportable(Exception):
    """Cannot be pickled."""

    def __init__(self, *_):
        super().__init__("odd")
        self.callback = lambda: None


@pytest.mark.parametrize("kind", [RuntimeError, MemoryError, Unportable])
def test_errors_of_our_own_reach_the_caller_with_their_traceback(whole, tmp_path, kind):
    def action():
        raise kind("odd")

    config = whole.config(tmp_path / "shards")
    ended = faults.start(config, tmp_path / "log", always("encode-mask", action)).wait()
    assert ended.code == 99
    assert f"{kind.__name__}: odd" in ended.text
    assert "in _build" in ended.text  # where it happened, in the worker
    assert not [path for path in faults.leftovers(tmp_path) if ".tmp-" in path]


def test_a_dead_workers_half_written_files_go_with_it(whole, tmp_path):
    """Else a data set with many deadly images would fill the disk."""
    output = tmp_path / "shards"
    moment = faults.Moment(faults.POINTS["publish"], 1)
    run = faults.start(
        whole.config(output),
        tmp_path / "log",
        deadly(1, 7, 8),
        lambda: moment.watch(faults.stand_still),
    )
    moment.wait()
    assert not [path for path in faults.leftovers(output) if ".tmp-" in path]
    run.kill(signal.SIGKILL)
    run.wait()
    moment.close()


@pytest.fixture(scope="module")
def slow(tmp_path_factory, coco_set_class):
    """Photographs that take some 50 ms each; one file under many names."""
    made = coco_set_class(tmp_path_factory.mktemp("slow"))
    first = made.images / "0.png"
    Image.new("L", (6000, 6000)).save(first)
    for image_id in range(400):
        path = made.images / f"{image_id}.png"
        if image_id:
            os.link(first, path)
        made.entry(image_id, path.name, (6000, 6000))
        made.annotate(image_id, [[10, 10, 5900, 20, 3000, 5800]])
    made.write()
    return made


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize(
    ("number", "whole_group", "seen", "code"),
    [
        (signal.SIGINT, True, "*.record", 130),
        (signal.SIGINT, True, "plan.json", 130),  # no worker has started yet
        (signal.SIGTERM, False, "*.record", 130),
        (signal.SIGTERM, True, "*.record", 130),
        (signal.SIGKILL, False, "*.record", -signal.SIGKILL),
    ],
)
def test_a_signal_ends_the_command_at_once_and_tells_how_to_go_on(
    slow, tmp_path, spawn_cocoseg, record_property, number, whole_group, seen, code
):
    output = tmp_path / "shards"
    flags = ("--output", output, "--samples-per-shard", 3, "--workers", 2)
    ran = spawn_cocoseg("prepare", *slow.flags, *flags)
    faults.poll(lambda: list((output / ".building").glob(seen)))
    began = time.perf_counter()
    (os.killpg if whole_group else os.kill)(ran.pid, number)
    try:
        _, err = ran.communicate(timeout=600)  # ends with the last process that holds the pipe
    except subprocess.TimeoutExpired:
        os.killpg(ran.pid, signal.SIGKILL)
        raise
    seconds = time.perf_counter() - began
    assert ran.returncode == code
    assert not (output / "manifest.json").exists()
    if code == 130:
        assert "shards are finished and kept: run the same command again" in err
        assert "Traceback" not in err
        assert not [path for path in faults.leftovers(output) if ".tmp-" in path]
    to = "the group" if whole_group else "the command"
    if seen == "*.record":
        record_property("figure", f"prepare: {number.name} to {to} ends it in {seconds:.2f} s")


# ---- Ray


def test_ray_that_is_not_installed_is_a_usage_error(coco_set, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    coco_set.photo(1)
    with pytest.raises(ConfigError, match=r"cocoseg\[ray\]"):
        coco_set.prepare(tmp_path / "shards", engine="ray")


def test_ray_builds_the_same_bytes(coco_set, tmp_path):
    for image_id in range(1, 8):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, [[1, 1, 9, 1, 9, 9, 1, 9]])
    files = {}
    for engine in ("local", "ray"):
        coco_set.prepare(tmp_path / engine, engine=engine, workers=2, samples_per_shard=2)
        paths = (path for path in (tmp_path / engine).iterdir() if path.name != "config.yaml")
        files[engine] = {path.name: path.read_bytes() for path in paths}
    assert len(files["ray"]) > 4
    assert files["local"] == files["ray"]
