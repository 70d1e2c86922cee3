"""Output folders: one command at a time, who it is, and how one that died is succeeded."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from cocoseg.errors import CocosegError, ConfigError, StoreRefusal
from cocoseg.storage import Location, locate, output
from cocoseg.storage.output import explained, held
from object_store import Rule, Store

_HOLDS = """
import sys
from cocoseg.storage import locate
from cocoseg.storage.output import held
with held(locate(sys.argv[1]), "cocoseg infer"):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold_in_a_process(folder: object) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDS, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


# ---- a local folder


def test_a_second_command_is_told_which_one_is_at_work(tmp_path: Path) -> None:
    first = hold_in_a_process(tmp_path / "out")
    message = rf"'cocoseg infer' \(process {first.pid}\) is at work in it; wait for it, or choose"
    with pytest.raises(ConfigError, match=message), held(locate(tmp_path / "out"), "cocoseg eval"):
        raise AssertionError
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (tmp_path / "out" / ".lock").exists()
    with held(locate(tmp_path / "out"), "cocoseg eval") as hold:
        assert hold.alone
        hold.check()
    assert not (tmp_path / "out" / ".lock").exists()


def test_a_folder_that_was_made_for_nothing_is_removed(tmp_path: Path) -> None:
    with held(locate(tmp_path / "new"), "cocoseg eval"):
        assert (tmp_path / "new" / ".lock").exists()
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with held(locate(tmp_path / "there"), "cocoseg eval"):
        pass
    assert (tmp_path / "there").exists()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".lock").symlink_to(tmp_path / "private")
    with (
        pytest.raises(CocosegError, match=r"\.lock is a link, and not of a cocoseg command"),
        held(locate(tmp_path / "out"), "cocoseg eval"),
    ):
        raise AssertionError
    assert (tmp_path / "private").read_text() == "mine"


def test_the_lock_of_another_user_is_told_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = tmp_path / ".lock"
    lock.write_text("")
    opened, user = os.open, os.getuid()

    def denied(path: object, how: int, *mode: int) -> int:
        if str(path) == str(lock):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, how, *mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    with (
        pytest.raises(CocosegError, match=r"\.lock belongs to user \w+ and cannot be opened: let"),
        held(locate(tmp_path), "cocoseg eval"),
    ):
        raise AssertionError
    assert lock.exists()


def test_a_lock_that_may_only_be_read_serves_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sticky folder: Linux refuses to open another user's file with O_CREAT."""
    (tmp_path / ".lock").write_text("theirs")
    opened = os.open

    def read_only(path: object, how: int, *mode: int) -> int:
        if str(path).endswith(".lock") and how & (os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, how, *mode)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", read_only)
    with held(locate(tmp_path), "cocoseg eval"):
        with pytest.raises(ConfigError, match="theirs is at work in it"):
            held(locate(tmp_path), "cocoseg eval").__enter__()
        assert (tmp_path / ".lock").read_text() == "theirs"


# ---- a lease in an object store


@pytest.fixture(params=["s3", "memory"])
def folder(request: pytest.FixtureRequest) -> Iterator[Location]:
    if request.param == "s3":
        request.getfixturevalue("store")
        place = locate(f"s3://shards/leases/{request.node.name.replace('[', '-')[:-1]}")
    else:
        place = locate("memory://leases/out")
    place.remove()
    yield place
    place.remove()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Signs of life come at once, and are waited for long."""
    monkeypatch.setattr(output, "HEARTBEAT", 0.01)
    monkeypatch.setattr(output, "LEASE", 100.0)
    return monkeypatch


def leave_a_lease(folder: Location) -> None:
    """A command on another machine took the output, and died."""
    said = {"command": "cocoseg train", "host": "elsewhere", "pid": 7, "token": "its own"}
    (folder / ".lock").publish_bytes(json.dumps(said).encode())


def test_a_lease_is_there_while_it_is_held(folder: Location) -> None:
    with held(folder, "cocoseg infer") as hold:
        said = json.loads((folder / ".lock").read_bytes())
        assert (said["command"], said["pid"]) == ("cocoseg infer", os.getpid())
        hold.check()
        (folder / "file").publish_bytes(b"x")
    assert folder.list_files() == {"file": 1}


def test_a_command_that_gives_signs_of_life_keeps_others_out(
    folder: Location, quick: pytest.MonkeyPatch
) -> None:
    with held(folder, "cocoseg infer") as hold:
        with pytest.raises(ConfigError, match=r"'cocoseg infer' \(process \d+ on \S+\) is at work"):
            held(folder, "cocoseg eval").__enter__()
        hold.check()
    with held(folder, "cocoseg eval"):
        pass


def test_a_command_that_gives_none_is_succeeded(
    folder: Location, quick: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    quick.setattr(output, "LEASE", 0.05)
    leave_a_lease(folder)
    with held(folder, "cocoseg eval") as hold:
        assert "'cocoseg train' (process 7 on elsewhere) was at work in it" in caplog.text
        assert json.loads((folder / ".lock").read_bytes())["command"] == "cocoseg eval"
        hold.check()
    assert folder.list_files() == {}


def test_one_that_died_on_this_machine_is_succeeded_at_once(
    folder: Location, quick: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with held(folder, "cocoseg eval"):
        said = json.loads((folder / ".lock").read_bytes())
    said |= {"pid": dead.pid, "token": "its own"}
    (folder / ".lock").publish_bytes(json.dumps(said).encode())
    with held(folder, "cocoseg eval"):
        assert caplog.messages == []
    quick.setattr(output, "LEASE", 0.05)
    for other in ("another container", ""):  # of the same host name
        (folder / ".lock").publish_bytes(json.dumps({**said, "machine": other}).encode())
        caplog.clear()
        with held(folder, "cocoseg eval"):
            assert "was at work in it; waiting" in caplog.text


def test_who_was_taken_over_ends_before_it_says_complete(
    folder: Location, quick: pytest.MonkeyPatch
) -> None:
    with held(folder, "cocoseg infer") as hold:
        leave_a_lease(folder)
        message = (
            r"taken over by 'cocoseg train' \(process 7 on elsewhere\), because this command did"
        )
        with pytest.raises(CocosegError, match=message):
            hold.check()
    assert json.loads((folder / ".lock").read_bytes())["token"] == "its own"


def test_a_lease_that_somebody_removed_is_written_again(
    folder: Location, quick: pytest.MonkeyPatch
) -> None:
    with held(folder, "cocoseg infer") as hold:
        (folder / ".lock").remove()
        hold.check()
        for _ in range(3000):
            if (folder / ".lock").exists():
                break
            time.sleep(0.01)
        else:
            raise AssertionError("not written again")
        hold.check()


def test_who_slept_while_another_command_came_and_went_ends(
    folder: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(output, "_now", lambda: now[0])
    with held(folder, "cocoseg infer") as hold:
        (folder / ".lock").remove()
        now[0] += output.LEASE - 1
        hold.check()
        now[0] += 1
        with pytest.raises(CocosegError, match="was taken over by another command, because this"):
            hold.check()


def test_a_missing_bucket_is_told_as_such(store: Store) -> None:
    with pytest.raises(
        StoreRefusal, match=r"s3://absent/run/\.lock: cannot be written: .*(Not|No)"
    ):
        held(locate("s3://absent/run"), "cocoseg eval").__enter__()


def test_an_output_of_any_name_is_held(store: Store) -> None:
    for name in ("run[1]", "a*b?", "with space", "q?x=y"):
        folder = locate(f"s3://shards/leases/{name}")
        with held(folder, "cocoseg eval") as hold:
            hold.check()
            assert list(folder.list_files()) == [".lock"]
        assert folder.list_files() == {}


def test_of_many_that_come_at_the_same_time_one_gets_it(
    store: Store, quick: pytest.MonkeyPatch
) -> None:
    folder = locate("s3://shards/leases/many")
    together, done = threading.Barrier(8), threading.Event()

    def come(number: int) -> bool:
        together.wait()
        try:
            with held(folder, f"command {number}"):
                done.wait()
                return True
        except ConfigError:
            return False
        finally:
            refused.release()

    for left in (False, True):
        if left:
            quick.setattr(output, "LEASE", 0.05)
            quick.setattr(output, "HEARTBEAT", 100.0)
            leave_a_lease(folder)
        refused = threading.Semaphore(0)
        done.clear()
        with ThreadPoolExecutor(8) as pool:
            came = [pool.submit(come, number) for number in range(8)]
            for _ in range(7):
                assert refused.acquire(timeout=600)
            done.set()
            assert [one.result() for one in came].count(True) == 1


@pytest.mark.parametrize("fault", ["503", "reset"])
def test_a_lease_survives_faults_that_pass(store: Store, fault: str) -> None:
    folder = locate(f"s3://shards/leases/faults-{fault}")
    rule = Rule(fault, r"\.lock", times=3, method="PUT")
    store.proxy.rules[:] = [rule]
    with held(folder, "cocoseg infer") as hold:
        hold.check()
    assert rule.struck == 3
    assert folder.list_files() == {}


def test_a_put_whose_answer_was_lost_is_ours_all_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has it: the second attempt is refused, for what is there is not what was."""
    folder = locate("s3://shards/leases/lost")
    fs = fsspec.filesystem("s3")
    pipe, lost = type(fs).pipe_file, []

    def loses(self: object, path: str, *content: object, **how: object) -> None:
        pipe(self, path, *content, **how)
        if not lost:
            lost.append(path)
            raise ConnectionResetError(104, "Connection reset by peer")

    monkeypatch.setattr(type(fs), "pipe_file", loses)
    with held(folder, "cocoseg infer") as hold:
        hold.check()
    assert lost


# ---- errors of disks


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "make it writable"),
        (errno.EMLINK, "fix the cause"),
    ],
)
def test_what_a_disk_says_is_told_with_what_is_kept_and_what_to_do(
    tmp_path: Path, number: int, remedy: str
) -> None:
    wrapped = RuntimeError("a library's words")
    wrapped.__cause__ = OSError(number, os.strerror(number), "file")
    with pytest.raises(CocosegError) as raised, explained(locate(tmp_path), lambda: "2 are kept"):
        raise wrapped
    assert str(raised.value) == (
        f"--output {tmp_path}: cannot be written: {os.strerror(number)} (file); 2 are kept; "
        f"{remedy}, then run the same command again"
    )


def test_what_is_no_matter_of_a_disk_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), explained(locate(tmp_path)):
        raise ZeroDivisionError
    with pytest.raises(ConfigError, match=r"^mine$"), explained(locate(tmp_path)):
        raise ConfigError("mine")
