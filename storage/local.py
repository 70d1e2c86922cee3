"""Files on a local disk: given a temporary name, flushed to the disk and renamed."""

import contextlib
import errno
import glob
import io
import mmap
import os
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from ..errors import ConfigError
from .location import LOCK, Location, refuse_larger
from .lock import exclusive

_TEMPORARY = ".tmp-"  # how names of half-written files and folders begin; their process follows
_HALF_WRITTEN = re.compile(rf"{re.escape(_TEMPORARY)}\d+-([0-9a-f]{{16}}|\d+|[a-z0-9_]{{8}})")
"""The last two are of earlier versions."""


class LocalPath(Location):
    """A file or a folder on a local disk; `url` is a path of the operating system."""

    __slots__ = ()
    remote = False

    def __fspath__(self) -> str:
        return self.url

    def _joined(self, name: str) -> Self:
        return type(self)(os.path.join(self.url, name))

    @property
    def parent(self) -> Self:
        return type(self)(os.path.dirname(self.url.rstrip("/")) or ("/" * self.url.startswith("/")))

    def exists(self) -> bool:
        return os.path.exists(self.url)

    def is_dir(self) -> bool:
        return os.path.isdir(self.url)

    def is_file(self) -> bool:
        return os.path.isfile(self.url)

    def list_files(self) -> dict[str, int]:
        if not self.is_dir():
            return {}
        folder = Path(self.url)
        return {entry.name: entry.stat().st_size for entry in folder.iterdir() if entry.is_file()}

    def list_folders(self) -> list[str]:
        folder = Path(self.url)
        return [e.name for e in folder.iterdir() if e.is_dir()] if self.is_dir() else []

    def walk_files(self, *, dangling: bool = False) -> list[str]:
        return sorted(_walk(self.url, "", set(), dangling))

    def glob_files(self, pattern: str) -> list[str]:
        found = glob.glob(pattern, root_dir=self.url, recursive=True)
        return sorted(path for path in found if _is_named_file(os.path.join(self.url, path)))

    def present(self, names: Iterable[str]) -> set[str]:
        return {name for name in names if os.path.lexists(self / name)}

    def read_bytes(self, at_most: int | None = None) -> bytes:
        try:
            with open(self.url, "rb", buffering=0) as file:
                refuse_larger(os.fstat(file.fileno()).st_size, at_most)
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self}: no such file") from None
        except IsADirectoryError:
            raise ConfigError(f"{self}: is a folder, expected a file") from None

    def read_range(self, offset: int, length: int) -> bytes:
        with open(self.url, "rb", buffering=0) as file:  # 15 us; a JPEG decodes in 1,500
            return os.pread(file.fileno(), length, offset)

    def size(self) -> int:
        try:
            return os.stat(self.url).st_size
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self}: no such file") from None

    def stamp(self) -> str:
        """Return what changes when a file's content does; empty if it is not there."""
        try:
            status = os.stat(self.url)
        except OSError:
            return ""
        return f"{status.st_size}-{status.st_mtime_ns}"

    def open_seekable(self) -> io.BufferedIOBase:
        return open(self.url, "rb")

    @contextlib.contextmanager
    def mapped(self) -> Iterator[bytes | mmap.mmap]:
        if not self.size():  # cannot be mapped
            yield b""
            return
        with (
            self.open_seekable() as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
        ):
            yield view

    @contextlib.contextmanager
    def fetched(self, leave_out: Iterable[str] = ()) -> Iterator[Path]:
        del leave_out
        yield Path(self.url)

    def publish_bytes(self, content: bytes) -> None:
        self.parent.make_folder()
        # Not the file's own name with a suffix: that can exceed the longest name a disk allows.
        temporary = os.path.join(os.path.dirname(self.url), _temporary_name())
        try:
            descriptor = os.open(
                temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666
            )
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.url)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folder(os.path.dirname(self.url))

    def publish_link(self, target: str) -> None:
        """Let a symbolic link of this name lead to `target`, at once or not at all."""
        folder = os.path.dirname(self.url)
        temporary = os.path.join(folder, _temporary_name())
        try:
            os.symlink(target, temporary)
            os.replace(temporary, self.url)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        _sync_folder(folder)

    def publish_hard_link(self, file: "LocalPath") -> None:
        """Let this be another name of a file, at once or not at all."""
        folder = os.path.dirname(self.url)
        temporary = os.path.join(folder, _temporary_name())
        try:
            os.link(os.path.realpath(file.url), temporary)
            os.replace(temporary, self.url)  # does nothing where it is the same file already
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        _sync_folder(folder)

    def publish_file(self, local: Path) -> None:
        sync_file(local)
        os.replace(local, self.url)
        _sync_folder(os.path.dirname(self.url))

    def publish_folder(self, local: Path, last: str, aside: Path | None = None) -> None:
        del last
        for path in local.rglob("*"):
            if path.is_file():
                sync_file(path)
        _sync_folder(str(local))
        if aside is not None and os.path.lexists(self.url):
            os.replace(self.url, aside)
        try:
            os.replace(local, self.url)
        except BaseException:
            if aside is not None and os.path.lexists(aside) and not os.path.lexists(self.url):
                os.replace(aside, self.url)
            raise
        _sync_folder(os.path.dirname(self.url))

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        self.make_folder()
        scratch = Path(self.url) / _temporary_name()
        scratch.mkdir(0o700)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def remove_half_written(self, below: str = "", pid: int | None = None) -> None:
        whose = _TEMPORARY if pid is None else f"{_TEMPORARY}{pid}-"
        folder = self / below if below else self
        linked = os.path.realpath(folder) != os.path.join(os.path.realpath(self), below).rstrip("/")
        for name in os.listdir(folder) if folder.is_dir() and not linked else ():
            if is_half_written(name) and name.startswith(whose):
                remove_unlocked(folder / name)

    def make_folder(self) -> None:
        path = self.url
        try:
            os.makedirs(path or os.curdir, exist_ok=True)
        except NotADirectoryError:
            raise ConfigError(f"{self}: is not a folder") from None
        except FileExistsError:
            if not os.path.lexists(path):  # it was there a moment ago
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None
            raise ConfigError(f"{self}: is not a folder") from None

    def free_space(self) -> int | None:
        folder = Path(self.url).absolute()
        while not folder.exists():
            folder = folder.parent
        return shutil.disk_usage(folder).free

    def remove(self) -> None:
        if self.is_dir() and not os.path.islink(self.url):
            shutil.rmtree(self.url)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.url)

    def remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):  # it is gone, or something is in it
            os.rmdir(self.url)

    def remove_files(self, names: Iterable[str]) -> None:
        root, by_folder = os.path.realpath(self.url), defaultdict(list)
        for name in self._refuse_outer(names):
            by_folder[os.path.dirname(name)].append(os.path.basename(name))
        for folder in sorted(by_folder, key=len, reverse=True):
            inner = os.path.join(root, folder).rstrip("/")
            if os.path.realpath(inner) != inner:
                continue
            for name in by_folder[folder]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(inner, name))
            while folder:
                try:
                    os.rmdir(os.path.join(root, folder))
                except OSError:  # it holds something
                    break
                folder = os.path.dirname(folder)


def remove_unlocked(half: LocalPath) -> None:
    """Remove what is half-written, but no folder that a process has locked: an export's."""
    lock = half / LOCK
    if not lock.is_file():
        half.remove()
        return
    with contextlib.suppress(BlockingIOError), exclusive(lock.url) as alone:
        if alone:
            half.remove()


def _walk(folder: str, prefix: str, entered: set[tuple[int, int]], dangling: bool) -> Iterator[str]:
    status = os.stat(folder)
    if (status.st_dev, status.st_ino) in entered:
        return
    entered.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        for entry in entries:
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except PermissionError:
                raise
            except OSError:  # a link that leads in a circle, or through a file
                is_folder = is_file = False
            if is_folder:
                yield from _walk(entry.path, f"{prefix}{entry.name}/", entered, dangling)
            elif is_file or (dangling and _is_named_file(entry.path)):
                yield prefix + entry.name


def _is_named_file(path: str) -> bool:
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _temporary_name() -> str:
    """Return a name that nobody can guess; the process in it tells who wrote it."""
    return f"{_TEMPORARY}{os.getpid()}-{secrets.token_hex(8)}"


def is_half_written(name: str) -> bool:
    """Return whether a name is one that files and folders have until they are whole."""
    return _HALF_WRITTEN.fullmatch(name) is not None


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    _sync(str(path), os.O_RDONLY)


def _sync_folder(folder: str) -> None:
    """Flush the names in a folder to the disk."""
    _sync(folder or os.curdir, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, how: int) -> None:
    descriptor = os.open(path, how)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
