"""Objects in a store, through fsspec: written and read whole, or by ranges of one version."""

import contextlib
import copy
import glob
import hashlib
import io
import os
import posixpath
import shutil
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

from ..errors import ConfigError, StoreRefusal
from ..printable import redacted
from .location import LOCK, Location, refuse_larger
from .lock import temporary_folder
from .retry import described, http_status, patiently

_BLOCK = 2**22  # bytes of a request of a file that is read from one end to the other
REQUESTS = 16
"""At once, where many are made."""

_Answer = TypeVar("_Answer")
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime"),
    *("LastModified", "last_modified", "updated", "created"),
)
"""What drivers call what changes with an object; the first that is there counts."""


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system for a URL, and the path within.

    Raises
    ------
    ConfigError
        If there is no driver for it.
    """
    import fsspec  # 0.1 s: only for those who need it

    try:
        fs, path = fsspec.core.url_to_fs(url, **_driver_settings(url, fsspec.config.conf))
    except ImportError as error:
        raise ConfigError(f"{redacted(url)}: {error}. For S3: pip install 'cocoseg[s3]'") from None
    except ValueError as error:
        raise ConfigError(f"{redacted(url)}: {redacted(str(error))}") from None
    if "s3" in fs.protocol:
        fs.retries = 1
    return fs, path


def _driver_settings(url: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings for a driver, beside those that a user has given to fsspec.

    A listing that is kept would hide what other processes write. S3's driver tries each request up
    to 125 times in three layers, so that a store that hangs would be waited for by the hour: our
    attempts are the only ones.
    """
    settings: dict[str, Any] = {"use_listings_cache": False}
    protocol = url.partition("://")[0]
    if protocol in ("s3", "s3a"):
        config = copy.deepcopy(given.get(protocol, {}).get("config_kwargs", {}))
        settings["config_kwargs"] = {"retries": {"total_max_attempts": 1}, **config}
    return settings


class RemotePath(Location):
    """An object, or a prefix of objects, in any store that fsspec knows."""

    __slots__ = ()
    remote = True

    def __str__(self) -> str:
        """Return the URL as it may be shown: without a user, a password and a query."""
        scheme, _, rest = _split_query(self.url)[0].partition("://")
        authority, slash, path = rest.partition("/")
        if not scheme.startswith(("abfs", "wasb")):  # CONTAINER@ACCOUNT
            authority = authority.rpartition("@")[2]
        return f"{scheme}://{authority}{slash}{path}"

    def _joined(self, name: str) -> Self:
        path, query = _split_query(self.url)
        return type(self)(f"{path}/{name}{query}")

    @property
    def parent(self) -> Self:
        path, query = _split_query(self.url)
        return type(self)(path.rpartition("/")[0] + query)

    @property
    def name(self) -> str:
        return _split_query(self.url)[0].rpartition("/")[2]

    def _ask(self, request: Callable[[Any, str], _Answer], done: str = "read") -> _Answer:
        """Return what `request` does with the file system and the path."""

        def ask() -> _Answer:
            return request(*filesystem(self.url))

        return patiently(str(self), ask, done)

    def exists(self) -> bool:
        return self._ask(lambda fs, path: bool(fs.exists(path)))

    def is_dir(self) -> bool:
        return self._ask(lambda fs, path: bool(fs.isdir(path)))

    def is_file(self) -> bool:
        return self._ask(lambda fs, path: bool(fs.isfile(path)))

    def list_files(self) -> dict[str, int]:
        return {name: int(one["size"]) for name, one in self._listed("file").items()}

    def list_folders(self) -> list[str]:
        return list(self._listed("directory"))

    def _listed(self, kind: str) -> dict[str, Mapping[str, Any]]:
        try:
            listed = self._ask(lambda fs, path: fs.ls(path, detail=True))
        except FileNotFoundError:
            return {}
        return {PurePosixPath(one["name"]).name: one for one in listed if one["type"] == kind}

    def walk_files(self, *, dangling: bool = False) -> list[str]:
        del dangling
        return self._ask(lambda fs, path: _relative(fs.find(path), path))

    def glob_files(self, pattern: str) -> list[str]:
        def find(fs: Any, path: str) -> list[str]:
            root = path.rstrip("/")
            return _relative(fs.glob(f"{root}/{pattern}"), root)

        return self._ask(find)

    def present(self, names: Iterable[str]) -> set[str]:
        return set(self.walk_files()).intersection(names)

    def read_bytes(self, at_most: int | None = None) -> bytes:
        def read(fs: Any, path: str) -> bytes:
            with fs.open(path, "rb", cache_type="none") as file:
                refuse_larger(file.size or 0, at_most)
                content = bytes(file.read())
                if file.size is not None:  # a driver's cat_file() fills up with zeros
                    _refuse_other_length(content, file.size)
            return content

        try:
            return self._ask(read)
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self}: no such file") from None
        except IsADirectoryError:
            raise ConfigError(f"{self}: is a folder, expected a file") from None

    def read_range(self, offset: int, length: int) -> bytes:
        def read(fs: Any, path: str) -> bytes:
            content = bytes(fs.cat_file(path, start=offset, end=offset + length))
            if len(content) != length:  # one request more, where something is wrong or ends
                _refuse_other_length(content, max(0, min(length, int(fs.size(path)) - offset)))
            return content

        return self._ask(read)

    def size(self) -> int:
        try:
            return self._ask(lambda fs, path: int(fs.size(path)))
        except (FileNotFoundError, NotADirectoryError):
            raise ConfigError(f"{self}: no such file") from None

    def open_seekable(self) -> io.BufferedIOBase:
        return io.BufferedReader(_Retried(self), _BLOCK)

    @contextlib.contextmanager
    def mapped(self) -> Iterator[bytes]:
        yield self.read_bytes()

    @contextlib.contextmanager
    def fetched(self, leave_out: Iterable[str] = ()) -> Iterator[Path]:
        with temporary_folder() as local:
            for name in self.list_files().keys() - set(leave_out):
                (local / name).write_bytes((self / name).read_bytes())
            yield local

    def publish_bytes(self, content: bytes) -> None:
        self._write(lambda fs, path: fs.pipe_file(path, content))

    def publish_file(self, local: Path) -> None:
        self._write(partial(_put_file, local))
        local.unlink()

    def _write(self, request: Callable[[Any, str], object]) -> None:
        try:
            self._ask(request, "written")
        except FileNotFoundError as error:  # there is no such bucket
            raise StoreRefusal(f"{self}: cannot be written: {described(error)}") from None

    def read_version(self) -> tuple[bytes, str]:
        """Return what a small object holds, and its version for `replace_version`.

        Returns
        -------
        tuple
            Empty and empty, if it is not there.
        """

        def read(fs: Any, path: str) -> tuple[bytes, str]:
            version = str(fs.info(path).get("ETag", ""))
            content = bytes(fs.cat_file(path))
            return content, version or hashlib.sha256(content).hexdigest()

        try:
            return self._ask(read)
        except FileNotFoundError:
            return b"", ""

    def replace_version(self, content: bytes, version: str) -> bool:
        """Write a small object if it still has a version that was read; return whether that is so.

        S3 and stores of its kind compare and write in one request; of others, and of those that do
        not know such requests, the version is read again before.

        Parameters
        ----------
        version
            Empty, if the object must not be there.
        """
        if self.read_version()[1] != version:
            return False

        def write(fs: Any, path: str) -> None:
            condition = {}
            if "s3" in fs.protocol:
                condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
            try:
                fs.pipe_file(path, content, **condition)
            except Exception as error:  # the driver has several kinds
                gone = (404,) if version else ()  # else there is no such bucket
                if not condition or http_status(error) not in (*gone, 409, 412, 501):
                    raise
                if http_status(error) == 501:  # it does not know conditions
                    fs.pipe_file(path, content)

        self._write(write)
        return self.read_version()[0] == content

    def publish_folder(self, local: Path, last: str, aside: Path | None = None) -> None:
        del aside
        files = {
            path.relative_to(local).as_posix(): path for path in local.rglob("*") if path.is_file()
        }
        foreign = [name for name in self.walk_files() if name not in (*files, LOCK)]
        sizes = {name: path.stat().st_size for name, path in files.items()}
        for name in sorted(files, key=lambda name: (name == last, -sizes[name], name)):
            if name == last:
                self.remove_files(foreign)
            (self / name)._write(partial(_put_file, files[name]))
        shutil.rmtree(local)

    @contextlib.contextmanager
    def scratch_folder(self) -> Iterator[Path]:
        with temporary_folder() as scratch:
            yield scratch

    def remove_half_written(self, below: str = "", pid: int | None = None) -> None:
        del below, pid  # objects are whole, or not there

    def make_folder(self) -> None:
        pass  # there are none

    def free_space(self) -> int | None:
        return None

    def remove(self) -> None:
        if not glob.has_magic(filesystem(self.url)[1]):  # rm would take it for a pattern
            with contextlib.suppress(FileNotFoundError):
                self._ask(lambda fs, path: fs.rm(path, recursive=True), "removed")
        left = self.walk_files()  # S3's driver tells nothing of objects that stay
        if left == [""]:  # it is an object
            self._remove_object()
        else:
            self.remove_files(left)

    def remove_if_empty(self) -> None:
        pass

    def remove_files(self, names: Iterable[str]) -> None:
        objects = map(self._joined, self._refuse_outer(names))
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(type(self)._remove_object, objects))

    def _remove_object(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # rm would interpret [ and * as patterns
            self._ask(lambda fs, path: fs.rm_file(path), "removed")


def _put_file(local: Path, fs: Any, path: str) -> None:
    fs.put_file(str(local), path)


def _split_query(url: str) -> tuple[str, str]:
    if not url.startswith(("http://", "https://")):  # S3's names may hold any character
        return url, ""
    path, mark, query = url.partition("?")
    return path.rstrip("/"), mark + query


def _relative(paths: Iterable[str], root: str) -> list[str]:
    return sorted(path.removeprefix(root).lstrip("/") for path in paths)


def stamps(locations: Iterable[RemotePath]) -> list[str]:
    """Return for each object what changes when its content does: its size, and a tag or its date.

    A folder is listed once where many are in it. Of an object that is not there the stamp is empty.
    """
    locations = list(locations)
    by_folder: dict[RemotePath, list[RemotePath]] = {}
    for location in locations:
        by_folder.setdefault(location.parent, []).append(location)
    with ThreadPoolExecutor(REQUESTS) as pool:
        found = dict(ChainMap(*pool.map(_stamps_in, by_folder, by_folder.values())))
    return [found.get(location, "") for location in locations]


def _stamps_in(folder: RemotePath, locations: Sequence[RemotePath]) -> dict[RemotePath, str]:
    found = {}
    if len(locations) > REQUESTS:
        with contextlib.suppress(FileNotFoundError):
            for one in folder._ask(lambda fs, path: fs.ls(path, detail=True)):
                found[folder._joined(posixpath.basename(one["name"]))] = _stamp(one)
        return found
    for location in locations:
        with contextlib.suppress(FileNotFoundError):
            found[location] = _stamp(location._ask(lambda fs, path: fs.info(path)))
    return found


def _stamp(described: Mapping[str, Any]) -> str:
    version = next((described[key] for key in _VERSION_KEYS if described.get(key)), "")
    return f"{described.get('size')}-{version}"


class _Retried(io.RawIOBase):
    """An object as a file; each read is a request, made again where it fails."""

    def __init__(self, location: RemotePath) -> None:
        self._object, self._place, self._size = PinnedObject(location), 0, location.size()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place}.get(whence, self._size)
        return self._place

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._place))
        content = self._object.read(self._place, wanted) if wanted else b""
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        self._object.close()
        super().close()


class PinnedObject:
    """One object of a store, read by ranges at the version that was met first.

    Where a driver can, each request says which version it expects (s3fs sends the ETag); a replaced
    object is then an error, and is opened again: whether it still is what it should be, digests
    tell. Threads may share one; they take turns.
    """

    def __init__(self, location: RemotePath) -> None:
        self.location = location
        self._turn = threading.Lock()
        self._file: Any = None

    def read(self, start: int, length: int) -> bytes:
        """Return `length` bytes from `start` [bytes]; fewer only where the object ends.

        Raises
        ------
        FileNotFoundError, StoreError
            See `patiently`.
        """
        with self._turn:
            return patiently(str(self.location), partial(self._read, start, length))

    def _read(self, start: int, length: int) -> bytes:
        try:
            if self._file is None:
                fs, path = filesystem(self.location.url)
                self._file = fs.open(path, "rb", cache_type="none")
            self._file.seek(start)
            content = bytes(self._file.read(length))
            _refuse_other_length(content, max(0, min(length, int(self._file.size) - start)))
        except BaseException:
            self.close()
            raise
        return content

    def close(self) -> None:
        """Give up the version; the next read takes the one that is there then."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _refuse_other_length(content: bytes, expected: int) -> None:
    if len(content) != expected:
        raise OSError(f"{len(content)} bytes came instead of {expected}")
