"""Runs of `prepare` in forked processes that fail, or are killed, at a named moment.

Product code has no hooks: a forked child wraps the functions that a fault is about, and runs the
build. Forking a warmed process takes milliseconds where starting Python takes a second.
"""

import errno
import faulthandler
import fcntl
import json
import logging
import multiprocessing
import os
import resource
import select
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cocoseg.prepare.build
import cocoseg.prepare.build_folder
import cocoseg.prepare.sample
import cocoseg.prepare.shard
import cocoseg.prepare.workers
import cocoseg.shards.writer
import msgspec
import numpy as np
from cocoseg.errors import CocosegError
from cocoseg.prepare.build import prepare_shards
from cocoseg.prepare.config import PrepareConfig
from cocoseg.prepare.shard import BuiltShard
from cocoseg.storage import LocalPath, local, locate, output
from PIL import Image

DEADLINE = 600.0  # for what takes a fraction of a second: only a hang gets there [s]
_FORK = multiprocessing.get_context("fork")
SCENARIOS = {"whole": {}, "split": {"split": "train=0.6,val=0.4"}, "labels": {"annotations": ()}}
ENGINES = {"inline": {"engine": "inline"}, "local": {"engine": "local", "workers": 2}}
ERRNO = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}
BAD = 5
"""The image that is bad already."""


def draw(coco_set: Any) -> Any:
    """Draw fifteen images: one is bad, one a crowd, and EXIF mostly means the stored pixels."""
    for image_id in range(1, 15):
        orientation = {2: 6, 4: 6, 9: 6, 6: 3, 11: 3}.get(image_id, 1)  # 3 is ambiguous
        coco_set.photo(image_id, orientation=orientation)
        if image_id % 2:
            coco_set.annotate(image_id, [[1, 1, 9, 1, 9, image_id / 2, 1, image_id / 2]])
    coco_set.photo(15, 12, 16, orientation=6, annotated=(16, 12))  # one against the majority
    coco_set.annotate(8, {"size": [12, 16], "counts": [50, 60, 82]}, 2, iscrowd=1)
    (coco_set.images / f"{BAD}.jpg").write_bytes(b"<html>404</html>")
    coco_set.write()
    masks = coco_set.images.parent / "masks"  # of the scenario 'labels', instead of the JSON
    masks.mkdir()
    for entry in coco_set.content["images"]:
        labels = np.zeros((entry["height"], entry["width"]), np.uint8)
        labels[entry["id"] % 8 :, 3:9] = entry["id"] % 4
        Image.fromarray(labels).save(masks / f"{entry['id']}.png")
    return coco_set


@dataclass(frozen=True)
class Undisturbed:
    """A data set, and what prepare makes of it when nothing goes wrong."""

    coco_set: Any
    scenario: str
    files: dict[str, bytes]
    seconds: dict[str, float]
    """Of a forked run, by engine."""

    def config(self, output: Path, engine: str = "local", **settings: Any) -> PrepareConfig:
        """Return the settings of a build that should end the same."""
        how = {**SCENARIOS[self.scenario], **ENGINES[engine], "samples_per_shard": 3, **settings}
        if self.scenario == "labels":
            how["masks"] = (str(self.coco_set.images.parent / "masks"),)
        config: PrepareConfig = self.coco_set.config(output, **how)
        return config

    @property
    def manifests(self) -> int:
        """How many there are at the end."""
        return sum(name.endswith("manifest.json") for name in self.files)

    def check(self, output: Path) -> None:
        """Compare every byte; nothing else may lie there."""
        assert files(output) == self.files
        assert leftovers(output) == []


def undisturbed(coco_set: Any, folder: Path, scenario: str) -> Undisturbed:
    """Build a scenario in peace, with both engines."""
    seconds: dict[str, float] = {}
    results = []
    for engine in ENGINES:
        whole = Undisturbed(coco_set, scenario, {}, seconds)
        output = folder / f"{scenario}-{engine}"
        began = time.perf_counter()
        ended = start(whole.config(output, engine), folder / "log").wait()
        seconds[engine] = time.perf_counter() - began
        assert (ended.code, ended.text) == (0, "")
        assert leftovers(output) == []
        results.append(files(output))
    assert results[0] == results[1]
    return Undisturbed(coco_set, scenario, results[0], seconds)


@dataclass(frozen=True)
class Failpoint:
    """A moment of a build: before or after the n-th call of a function (with such arguments)."""

    name: str
    owner: Any
    function: str
    where: str = ""
    """What one of its arguments ends with."""
    after: bool = False
    calls: int = 1
    """How often it comes by at least, in a build of the drawn set."""
    complete: bool = False
    """Whether the output is complete at this moment."""
    fails: bool = True
    """Whether an error of the disk can come up there."""
    local: bool = False
    """Whether only the pool of processes comes by."""


_BUILD, _JOURNAL = cocoseg.prepare.build, cocoseg.prepare.build_folder
_SAMPLE, _SHARD, _TAR = cocoseg.prepare.sample, cocoseg.prepare.shard, cocoseg.shards.writer._Tar

IN_WORKERS = (
    Failpoint("scratch-folder", LocalPath, "scratch_folder", calls=5),
    Failpoint("read-photo", _SAMPLE, "read_photo", calls=14, fails=False),
    Failpoint("rasterize", _SAMPLE, "rasterize", calls=13, fails=False),
    Failpoint("encode-mask", _SAMPLE, "encode_mask", calls=13, fails=False),
    Failpoint("tar-append", _TAR, "append", calls=13),
    Failpoint("tar-write", _TAR, "_write", after=True, calls=18),
    Failpoint("tar-finish", _TAR, "finish", calls=5),
    Failpoint("tar-finished", _TAR, "finish", after=True, calls=5),
    Failpoint("sync-shard", local, "sync_file", calls=5),
    Failpoint("publish-shard", LocalPath, "publish_file", calls=5),
    Failpoint("rename-shard", os, "replace", ".tar", calls=5),
    Failpoint("renamed-shard", os, "replace", ".tar", after=True, calls=5),
    Failpoint("published-shard", LocalPath, "publish_file", after=True, calls=5),
    Failpoint("remove-scratch", shutil, "rmtree", calls=5, fails=False),
    Failpoint("write-record", LocalPath, "publish_bytes", ".record", calls=5),
    Failpoint("rename-record", os, "replace", ".record", calls=5),
    Failpoint("record-written", LocalPath, "publish_bytes", ".record", after=True, calls=5),
    Failpoint("build-sample", _SHARD, "build_sample", after=True, calls=14, fails=False),
    Failpoint("job-taken", Connection, "recv_bytes", after=True, calls=5, fails=False, local=True),
    Failpoint("answer", Connection, "send", calls=5, fails=False, local=True),
    # The parent may kill a worker that has answered before it counts: four at most, of six.
    Failpoint("answered", Connection, "send", after=True, calls=2, fails=False, local=True),
)
IN_PARENT = (
    Failpoint("lock", output, "exclusive", ".lock"),
    Failpoint("locked", fcntl, "flock", after=True, fails=False),
    Failpoint("begin", _JOURNAL, "begin"),
    Failpoint("write-plan", LocalPath, "publish_bytes", "plan.json"),
    Failpoint("rename-plan", os, "replace", "plan.json"),
    Failpoint("begun", _JOURNAL, "begin", after=True),
    Failpoint("kept-shards", _JOURNAL, "kept_shards"),
    Failpoint("free-space", LocalPath, "free_space", fails=False),
    Failpoint("between-passes", _BUILD, "majority", fails=False),
    Failpoint("publish", _BUILD, "publish"),
    Failpoint("write-index", LocalPath, "publish_bytes", "index.npy"),
    Failpoint("rename-index", os, "replace", "index.npy"),
    Failpoint("write-index-classes", LocalPath, "publish_bytes", "index-classes.npy"),
    Failpoint("write-quarantine", LocalPath, "publish_bytes", "quarantine.jsonl"),
    Failpoint("write-config", LocalPath, "publish_bytes", "config.yaml"),
    Failpoint("write-report", LocalPath, "publish_bytes", ".html"),
    Failpoint("rename-report", os, "replace", ".html"),
    Failpoint("write-manifest", LocalPath, "publish_bytes", "manifest.json"),
    Failpoint("rename-manifest", os, "replace", "manifest.json"),
    Failpoint("renamed-manifest", os, "replace", "manifest.json", after=True, complete=True),
    Failpoint("end", _JOURNAL, "end", complete=True),
    Failpoint("ended", _JOURNAL, "end", after=True, complete=True, fails=False),
    Failpoint("fsync", os, "fsync", calls=20),
)
POINTS = {point.name: point for point in (*IN_WORKERS, *IN_PARENT)}


class Moment:
    """The n-th time that any process of a build comes by a failpoint; known to the test.

    They count by taking bytes out of a pipe: a lock would stay with one that is killed.
    """

    def __init__(self, point: Failpoint, call: int) -> None:
        self.point = point
        self._tokens, tokens = os.pipe()
        os.write(tokens, b"." * (call - 1) + b"!")
        os.close(tokens)
        self.there, self.told = os.pipe()

    def close(self) -> None:
        for descriptor in (self._tokens, self.there, self.told):
            os.close(descriptor)

    @property
    def reached(self) -> bool:
        return bool(select.select([self.there], [], [], 0)[0])

    def wait(self) -> None:
        """Wait until a process of the build has come there."""
        assert select.select([self.there], [], [], DEADLINE)[0], f"{self.point.name}: not reached"

    def count(self) -> bool:
        """Return whether this is the n-th time."""
        return os.read(self._tokens, 1) == b"!"

    def watch(self, action: Callable[[], None]) -> None:
        """Let a function of this process, and of those that it forks, act at the moment."""
        point = self.point
        function = getattr(point.owner, point.function)

        def act(arguments: tuple[object, ...]) -> None:
            if point.where and not any(str(one).endswith(point.where) for one in arguments):
                return
            if self.count():
                os.write(self.told, b"!")
                action()

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if not point.after:
                act(args)
            result = function(*args, **kwargs)
            if point.after:
                act(args)
            return result

        setattr(point.owner, point.function, wrapped)


@dataclass(frozen=True)
class Ended:
    """How a forked build ended."""

    code: int | None
    """Exit code of the command; None where it was killed."""
    text: str
    """Of the error."""
    log: str


@dataclass
class Run:
    """A build in a forked process, the leader of a group of its own."""

    pid: int
    result: int
    """A pipe that ends when the last process of the build has ended."""
    log: Path
    _ended: list[Ended] = field(default_factory=list)

    def wait(self) -> Ended:
        """Wait until the build and all of its workers are gone."""
        if self._ended:
            return self._ended[0]
        content = b""
        deadline = time.monotonic() + DEADLINE
        while True:
            ready, _, _ = select.select([self.result], [], [], deadline - time.monotonic())
            if not ready:
                raise AssertionError(f"hangs:\n{self.log.read_text()}")
            chunk = os.read(self.result, 2**16)
            if not chunk:
                break
            content += chunk
        os.close(self.result)
        os.waitpid(self.pid, 0)
        code, text = json.loads(content) if content else (None, "")
        self._ended.append(Ended(code, text, self.log.read_text()))
        return self._ended[0]

    def kill(self, number: int) -> None:
        """Send a signal to the main process of the build alone."""
        os.kill(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Give it so much time to end by itself."""
        return bool(select.select([self.result], [], [], seconds)[0])

    def workers(self) -> list[int]:
        """Return the worker processes that are alive."""
        try:
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in children.split()]


_started: list[Run] = []


def stop_all() -> None:
    """Kill what a failed test has left running."""
    while _started:
        run = _started.pop()
        if not run._ended:
            os.killpg(run.pid, signal.SIGKILL)
            os.waitpid(run.pid, 0)


def start(config: PrepareConfig, log: Path, *patches: Callable[[], None]) -> Run:
    """Fork a process that runs `patches` and then the build."""
    result, answer = os.pipe()
    log.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: threads that it never uses
        pid = os.fork()
    if pid:
        os.close(answer)
        _started.append(Run(pid, result, log))
        return _started[-1]
    try:
        os.setsid()
        faulthandler.disable()  # deaths are meant here
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.close(result)
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.getLogger("cocoseg").addHandler(logging.FileHandler(log))
        for module in (cocoseg.prepare.workers, cocoseg.processes):
            module.start_context = lambda: _FORK  # workers inherit the patches
        code, text = 0, ""
        try:
            for patch in patches:
                patch()
            prepare_shards(config)
        except CocosegError as error:
            code, text = int(error.exit_code), str(error)
        except BaseException:
            code, text = 99, traceback.format_exc()
        os.write(answer, json.dumps((code, text)).encode())
    finally:
        os._exit(0)


def stand_still() -> None:
    """Wait for a signal.

    Not by `signal.pause`: one that comes just before it is noted by Python, and handled never.
    """
    while True:
        time.sleep(0.05)


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(moment: Moment) -> None:
    """Let the n-th file that is published be cut in the middle by a kill."""

    class Cut:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Cut":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: bytes) -> None:
            if moment.count():
                self.file.write(content[: len(content) // 2])
                self.file.flush()
                die()
            self.file.write(content)

    def cut(path: Any, mode: str = "r", **more: Any) -> Any:
        file = open(path, mode, **more)  # noqa: SIM115 - the caller closes it
        return Cut(file) if mode == "wb" else file

    local.open = cut  # type: ignore[attr-defined]


def fail(number: int) -> Callable[[], None]:
    """Return what a disk does that is full, or broken."""

    def action() -> None:
        raise OSError(number, os.strerror(number), "somewhere")

    return action


def files(output: Path) -> dict[str, bytes]:
    """Return every file of an output, but a killed process's lock, and ``config.yaml``, which
    tells the number of workers."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path.name not in ("config.yaml", ".lock")
    }


def standing(output: Path) -> dict[str, tuple[int, int]]:
    """Return identities of the shards that a rerun must keep: they have a record of their bytes.

    Those are left out that were built for the other orientation of ambiguous photographs.
    """
    kept = {}
    for path in sorted((output / ".building").glob("*.record")):
        built = msgspec.msgpack.decode(path.read_bytes(), type=BuiltShard)
        split, _, name = path.name.removesuffix(".record").rpartition("shard-")
        shard = output / split.rstrip("-") / f"shard-{name}"
        if not shard.exists() or locate(shard).sha256() != built.sha256:
            continue
        if not (built.ambiguous and built.assumed == "apply"):
            kept[shard.relative_to(output).as_posix()] = identity(shard)
    return kept


def identity(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written again."""
    return path.stat().st_ino, path.stat().st_mtime_ns


def leftovers(output: Path) -> list[str]:
    """Return what no finished build leaves."""
    return [str(p) for p in output.rglob("*") if p.name.startswith((".tmp-", ".building", ".lock"))]


def quarantine(output: Path) -> dict[int, str]:
    """Return image id → reason of what was left out."""
    lines = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    return {line["image_id"]: line["reason"] for line in lines}


def poll(condition: Callable[[], Any]) -> None:
    """Look until something is so."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never was so"
        select.select([], [], [], 0.002)
