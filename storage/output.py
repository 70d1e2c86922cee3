"""Output folders: one command at a time writes to one, and removes what killed ones left there.

OUTPUT/.lock         while a command is at work: which one it is
OUTPUT/.files.json   the files of `infer` and `eval`, see `OutputFolder`
"""

import contextlib
import errno
import json
import logging
import os
import pwd
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CocosegError, ConfigError, DataError, StoreError
from .local import LocalPath
from .location import LOCK, Location, is_inner
from .lock import exclusive
from .remote import RemotePath

log = logging.getLogger(__name__)

FILES = ".files.json"
UNFINISHED = ".building"
"""The folder in an output that `prepare` has begun and not finished."""
HEARTBEAT = 10.0
"""Seconds between two signs of life of a command that writes to an object store."""
LEASE = 3 * HEARTBEAT
"""Seconds without one after which it is taken for dead."""

_PATIENCE = 2.0  # for a heartbeat that is on its way [s]
_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "write smaller files, or to another file system",
    errno.EIO: "check the disk",
    errno.ESTALE: "mount it again",
    errno.ENOENT: "check where the folder is",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
    errno.EPERM: "make it writable",
}
"""What to do when a disk fails."""


@contextlib.contextmanager
def explained(
    output: Location,
    kept: Callable[[], str] = lambda: "what is done is kept",
    flag: str = "--output ",
) -> Iterator[None]:
    """Say in plain words why something could not be written, and how to resume.

    Parameters
    ----------
    output
        What is written to.
    kept
        Returns what an end here leaves.
    flag
        Option that named it, for the message.

    Raises
    ------
    CocosegError
        In place of an `OSError`, also of one that a library has wrapped in an error of its own.
    """
    try:
        yield
    except CocosegError:
        raise
    except Exception as error:
        disk = _disk_error(error)
        if disk is None:
            raise
        reason = disk.strerror or str(disk)
        where = f" ({disk.filename})" if disk.filename else ""
        remedy = _REMEDIES.get(disk.errno or 0, "fix the cause")
        left = ""
        with contextlib.suppress(OSError, CocosegError):
            left = f"{kept()}; "
        raise CocosegError(
            f"{flag}{output}: cannot be written: {reason}{where}; {left}{remedy}, then run the "
            "same command again"
        ) from error


def _disk_error(error: BaseException | None) -> OSError | None:
    """Return what the disk said; PyTorch raises a RuntimeError of its own on top of it."""
    while isinstance(error, RuntimeError):
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return error if isinstance(error, OSError) else None


@dataclass(frozen=True, slots=True)
class Hold:
    """An output that is ours for the time being."""

    alone: bool
    """Whether nobody else can be at work there: what is half-written is a killed command's."""
    check: Callable[[], None] = lambda: None
    """Raises `CocosegError` if another command has taken it over; to be called before a file is
    published that says that something is complete. Local locks cannot be taken over."""


@contextlib.contextmanager
def held(output: Location, command: str) -> Iterator[Hold]:
    """Keep other commands out of an output folder, which is made where it is missing.

    Parameters
    ----------
    command
        What is at work, ``cocoseg infer``, say.

    Raises
    ------
    ConfigError
        If another command is at work there.
    CocosegError
        If the lock belongs to another user; by `Hold.check`, if it was taken over.
    OSError
        If it cannot be made, see `explained`.
    """
    if isinstance(output, RemotePath):
        with _Lease(output, command).kept() as lease:
            yield Hold(True, lease.check)
        return
    assert isinstance(output, LocalPath)
    with contextlib.ExitStack() as stack:
        lock = output / LOCK
        try:
            if not output.exists():
                stack.callback(output.remove_if_empty)
            output.make_folder()
            who = f"'{command}' (process {os.getpid()})"
            alone = stack.enter_context(exclusive(lock.url, who))
        except BlockingIOError:
            raise _busy(output, _holder(lock)) from None
        except OSError as error:
            if problem := _lock_problem(lock, error):
                raise CocosegError(f"--output {output}: {problem}") from None
            raise
        yield Hold(alone)


def _busy(output: Location, who: str) -> ConfigError:
    return ConfigError(
        f"--output {output}: {who} is at work in it; wait for it, or choose another folder"
    )


def _holder(lock: LocalPath) -> str:
    with contextlib.suppress(OSError, CocosegError):
        return lock.read_bytes(200).decode(errors="replace") or "another command"
    return "another command"


def _lock_problem(lock: LocalPath, error: OSError) -> str:
    """Return what is wrong with a lock, and what to do; empty where it is the folder."""
    if error.errno == errno.ELOOP:
        return f"{LOCK} is a link, and not of a cocoseg command: remove it"
    with contextlib.suppress(OSError):
        owner = os.lstat(lock).st_uid
        if owner != os.getuid():
            try:
                name = pwd.getpwuid(owner).pw_name
            except KeyError:
                name = str(owner)
            return (
                f"{LOCK} belongs to user {name} and cannot be opened: let them remove it if no "
                "command of theirs is at work there, or choose another folder"
            )
    return ""


def is_unfinished(output: Location) -> bool:
    """Return whether `prepare` is at work in an output, or was interrupted there."""
    return (output / UNFINISHED).exists()


class OutputFolder:
    """Which of the files that are wanted in a folder are there, as of now, and which are ours.

        OUTPUT/.files.json   {"of": "inference", "input": …, "files": […]}: all files that may have
                             been written; there before the first of them

    What an earlier run of the same kind wrote, and this one does not, is removed at its end; a file
    of anybody else is neither replaced nor removed.

    Parameters
    ----------
    location
        It need not be there.
    kind
        What writes, ``inference`` or ``evaluation``: files of another kind are not ours.
    wanted
        Relative paths of all that will be written.
    source
        What is read.
    """

    def __init__(
        self, location: Location, kind: str, wanted: Iterable[str], source: str = ""
    ) -> None:
        self.location = location
        self.wanted = frozenset(wanted)
        self.source = source
        self._kind = kind
        self._folders = folders_of(self.wanted)
        self._look()

    def _look(self) -> None:
        content = read_ledger(self.location / FILES)
        known = content.get("of") == self._kind
        self.ours = frozenset(content["files"] if known else ())
        self.source_before = content["input"] if known else self.source
        names = {*self.wanted, *self.ours, *self._folders, FILES}
        self.there = self.location.present(names)
        """Those that are wanted, or ours, and there; also the folders that they are wanted in."""

    def refuse_foreign_files(self) -> None:
        """Make sure that files can be written, and none is replaced that is not ours.

        Raises
        ------
        ConfigError
            If one would be, or a file is where a folder is needed, or a folder where a file is.
        """
        if self.location.is_file():
            raise ConfigError(f"--output {self.location}: is a file, expected a folder")
        ledger = {FILES} if self.ours else set()
        for name in sorted((self.there - self.ours - ledger) & {*self.wanted, FILES}):
            if (self.location / name).is_dir():
                raise ConfigError(
                    f"--output {self.location}: {name} is a folder, and would be a file"
                )
            raise ConfigError(
                f"--output {self.location}: {name} is there, and not of an {self._kind}, as far as "
                f"{FILES} tells; choose a folder of its own"
            )
        for name in sorted(self.there & self._folders):
            if not (self.location / name).is_dir():
                raise ConfigError(
                    f"--output {self.location}: {name} is a file, and would be a folder"
                )

    @contextlib.contextmanager
    def held(self, command: str) -> Iterator[Hold]:
        """Keep other commands out, look again, and remove what killed ones left half-written.

        Raises
        ------
        ConfigError, CocosegError
            See `held`.
        """
        with held(self.location, command) as hold:
            self._look()
            if hold.alone:
                for folder in ("", *self._folders.union(folders_of(self.ours))):
                    self.location.remove_half_written(folder)
            yield hold

    def claim(self) -> None:
        """Note, before the first is written, which files will be ours, too."""
        self._record(self.ours | self.wanted)

    def renew(self) -> None:
        """Claim the files again, where a local folder was removed while it was written."""
        if not (self.location.remote or (self.location / FILES).exists()):
            self.there.discard(FILES)
            self._record(self.ours | self.wanted)

    def settle(self, written: Iterable[str]) -> None:
        """Remove what an earlier run left, once all is there that this one could write."""
        ours = frozenset(written)
        left_over = sorted((self.ours - ours) & self.there)
        if left_over:
            log.info("%s: %d files of an earlier run are removed", self.location, len(left_over))
        self.location.remove_files(left_over)
        self._record(ours)

    def _record(self, files: frozenset[str]) -> None:
        if (files, self.source) != (self.ours, self.source_before) or FILES not in self.there:
            content = {"of": self._kind, "input": self.source, "files": sorted(files)}
            (self.location / FILES).publish_bytes(json.dumps(content, indent=0).encode())
            self.there.add(FILES)
        self.ours, self.source_before = files, self.source


def read_ledger(location: Location) -> Mapping[str, Any]:
    """Return what a ``.files.json`` holds; empty where there is none of ours.

    Files of the list may be removed: one that leads out of the folder is nobody's.
    """
    try:
        content = location.read_json()
        kinds = {"of": str, "input": str, "files": list}
        whole = all(isinstance(content[key], kind) for key, kind in kinds.items())
        return content if whole and all(map(is_inner, content["files"])) else {}
    except (OSError, ConfigError, DataError, KeyError, TypeError, AttributeError):
        return {}


def folders_of(files: Iterable[str]) -> set[str]:
    """Return all folders that relative paths lead through."""
    found: set[str] = set()
    for file in files:
        folder = file.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


class _Lease:
    """An object that says who writes to an output in an object store.

    It is written again at every heartbeat, on condition that it is still ours where the store has
    conditional writes (S3). One that does not change for `LEASE` seconds is a dead command's, and
    is taken over. No clocks are compared.
    """

    def __init__(self, output: RemotePath, command: str) -> None:
        self._output = output
        self._object = output / LOCK
        self._who = {
            "command": command,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
        }
        self._token = secrets.token_hex(16)
        self._beats = 0
        self._ended = threading.Event()
        self._confirmed = _now()
        """When the object was seen to be ours."""

    @contextlib.contextmanager
    def kept(self) -> Iterator["_Lease"]:
        self._take()
        heart = threading.Thread(target=self._beat, name="cocoseg-lease", daemon=True)
        heart.start()
        try:
            yield self
        finally:
            self._ended.set()
            heart.join(_PATIENCE)
            with contextlib.suppress(StoreError):
                if self._read()[0].get("token") == self._token:
                    self._object.remove()

    def check(self) -> None:
        holder, version = self._read()
        if self._is_lost(holder, version):
            raise CocosegError(
                f"--output {self._output}: was taken over by {_named(holder)}, because this "
                f"command did not renew its lease for {LEASE:g} s; the output is that command's now"
            )

    def _is_lost(self, holder: Mapping[str, Any], version: str) -> bool:
        """Return whether another command has the output, or had it while this one was silent."""
        now = _now()
        if version and holder.get("token") == self._token:
            self._confirmed = now
            return False
        # Somebody may have removed the object; or have taken it, and finished.
        return bool(version) or now - self._confirmed >= LEASE

    def _take(self) -> None:
        holder, version = self._read()
        since = time.monotonic()
        if version and not _died_here(holder):
            log.warning(
                "--output %s: %s was at work in it; waiting up to %g s for it to renew its lease",
                *(self._output, _named(holder), LEASE),
            )
            while version and time.monotonic() - since < LEASE:
                self._ended.wait(min(1.0, LEASE / 10))
                now = self._read()[1]
                if now and now != version:
                    raise _busy(self._output, _named(holder))
                version = now
        if not self._object.replace_version(self._content(), version):
            raise _busy(self._output, _named(self._read()[0]))
        self._confirmed = _now()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            with contextlib.suppress(StoreError):  # a store that fails for long: the next check
                holder, version = self._read()
                if self._ended.is_set() or self._is_lost(holder, version):
                    return
                if self._object.replace_version(self._content(), version):
                    self._confirmed = _now()

    def _read(self) -> tuple[Mapping[str, Any], str]:
        """Return who holds the output, and the version of the object; empty where nobody does."""
        content, version = self._object.read_version()
        try:
            holder = json.loads(content)
        except (ValueError, RecursionError):  # another program's
            holder = None
        return holder if isinstance(holder, dict) else {}, version

    def _content(self) -> bytes:
        self._beats += 1
        return json.dumps({**self._who, "token": self._token, "beats": self._beats}).encode()


def _now() -> float:
    """Return seconds of a clock that runs while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _machine() -> str:
    """Return what tells this machine, and this container, from others; empty where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _named(holder: Mapping[str, Any]) -> str:
    if not holder:
        return "another command"
    return (
        f"'{holder.get('command', 'another command')}' (process {holder.get('pid')} on "
        f"{holder.get('host')})"
    )


def _died_here(holder: Mapping[str, Any]) -> bool:
    """Return whether a holder was a process of this machine that is no more."""
    pid = holder.get("pid")
    if not holder.get("machine") or holder["machine"] != _machine() or not isinstance(pid, int):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
