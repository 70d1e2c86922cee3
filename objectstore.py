"""Objects in a store, through fsspec: requests are retried, and reads pinned to one version.

Requests fail in ways that pass: too many at once, a server that restarts, a connection that breaks,
a body that ends early. Such a request is retried after a pause, a bounded number of times. Objects
are read, written and removed whole: doing so twice does no harm. What is missing or forbidden stays
so, and is reported immediately.
"""

import contextlib
import copy
import random
import threading
import time
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .errors import CocosegError, ConfigError, DataError, StoreError

REQUESTS = 16
"""At once, where many are made."""
ATTEMPTS = 6
FIRST_PAUSE = 0.5
"""Seconds before the second attempt; doubled each time, 15.5 s in all."""

_Answer = TypeVar("_Answer")
_FINAL = (IsADirectoryError, NotADirectoryError, CocosegError, TypeError)
_MISSING = (404, 410)
_DENIED = (401, 403)
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "generation", "mtime"),
    *("LastModified", "last_modified", "updated", "created"),
)
"""What drivers call what changes with an object; the first that is there counts."""
_WITHOUT_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # botocore's


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
        raise ConfigError(f"{url}: {error}. For S3: pip install 'cocoseg[s3]'") from None
    except ValueError as error:
        raise ConfigError(f"{url}: {error}") from None
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


def patiently(url: str, request: Callable[[], _Answer], done: str = "read") -> _Answer:
    """Return what `request` does; it is called again where it fails in a way that may pass.

    Parameters
    ----------
    done
        What the object is by it, for messages.

    Raises
    ------
    FileNotFoundError
        If the object is missing; `IsADirectoryError`, `NotADirectoryError` as `request` raises
        them.
    StoreError
        If access is denied, or the last attempt failed too; names `url`.
    """
    for attempt in range(ATTEMPTS):
        try:
            return request()
        except _FINAL:
            raise
        except Exception as error:  # each driver has its own kinds, few of them are an OSError
            status = _status(error)
            if isinstance(error, FileNotFoundError) and status in (None, *_MISSING):
                raise
            named = type(error).__name__
            if status in _DENIED or isinstance(error, PermissionError):
                raise StoreError(f"{url}: access is denied: {_told(error)}") from None
            if named in _WITHOUT_CREDENTIALS:
                raise StoreError(f"{url}: {_told(error)}") from None
            if attempt == ATTEMPTS - 1:
                raise StoreError(
                    f"{url}: cannot be {done}: {_told(error)}; tried {ATTEMPTS} times"
                ) from None
        pause(attempt)
    raise AssertionError


def pause(attempt: int) -> None:
    """Wait after a failed attempt, the first being 0: longer each time, and not all at once."""
    time.sleep(FIRST_PAUSE * 2**attempt * random.uniform(0.75, 1.25))  # noqa: S311 - no secret


def read_object(url: str, at_most: int | None = None) -> bytes:
    """Return a whole object.

    Raises
    ------
    FileNotFoundError, StoreError
        See `patiently`.
    DataError
        If it has more bytes than `at_most`; they are not fetched.
    """

    def read() -> bytes:
        fs, path = filesystem(url)
        with fs.open(path, "rb", cache_type="none") as file:
            refuse_larger(file.size or 0, at_most)
            content = bytes(file.read())
            if file.size is not None:  # a driver's cat_file() fills up with zeros
                _refuse_other_length(content, file.size)
        return content

    return patiently(url, read)


def write_object(url: str, content: bytes | Path) -> None:
    """Write a whole object, from memory or from a local file.

    Raises
    ------
    StoreError
        See `patiently`; also if there is no such bucket.
    """

    def write() -> None:
        fs, path = filesystem(url)
        if isinstance(content, Path):
            fs.put_file(str(content), path)
        else:
            fs.pipe_file(path, content)

    try:
        patiently(url, write, "written")
    except FileNotFoundError as error:
        raise StoreError(f"{url}: cannot be written: {_told(error)}") from None


def remove_objects(url: str, names: Iterable[str]) -> None:
    """Remove objects below a folder; what is not there is no error.

    Raises
    ------
    StoreError
        See `patiently`.
    """
    fs, root = filesystem(url)

    def remove(name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # rm would take [ and * for patterns
            patiently(f"{url}/{name}", lambda: fs.rm_file(f"{root}/{name}"), "removed")

    url, root = url.rstrip("/"), root.rstrip("/")
    with ThreadPoolExecutor(REQUESTS) as pool:
        list(pool.map(remove, names))


def read_range(url: str, start: int, length: int) -> bytes:
    """Return `length` bytes of an object from `start` [bytes]; fewer only where it ends.

    Raises
    ------
    FileNotFoundError, StoreError
        See `patiently`.
    """

    def read() -> bytes:
        fs, path = filesystem(url)
        content = bytes(fs.cat_file(path, start=start, end=start + length))
        if len(content) != length:  # one request more, where something is wrong or ends
            _refuse_other_length(content, max(0, min(length, int(fs.size(path)) - start)))
        return content

    return patiently(url, read)


def stamps(urls: Iterable[str]) -> list[str]:
    """Return for each object what changes when its content does: its size, and a tag or its date.

    A folder is listed once where many are in it. Of an object that is not there the stamp is empty.

    Raises
    ------
    StoreError
        See `patiently`.
    """
    urls = list(urls)
    by_folder: dict[str, list[str]] = {}
    for url in urls:
        by_folder.setdefault(url.rpartition("/")[0], []).append(url)
    with ThreadPoolExecutor(REQUESTS) as pool:
        found = dict(ChainMap(*pool.map(_stamps_in, by_folder, by_folder.values())))
    return [found.get(url, "") for url in urls]


def _stamps_in(folder: str, urls: Sequence[str]) -> dict[str, str]:
    found = {}
    if len(urls) > REQUESTS:
        fs, path = filesystem(folder)
        with contextlib.suppress(FileNotFoundError):
            for one in patiently(folder, lambda: fs.ls(path, detail=True)):
                found[f"{folder}/{one['name'].rpartition('/')[2]}"] = _stamp(one)
        return found
    for url in urls:
        fs, path = filesystem(url)
        with contextlib.suppress(FileNotFoundError):
            found[url] = _stamp(patiently(url, partial(fs.info, path)))
    return found


def _stamp(described: Mapping[str, Any]) -> str:
    version = next((described[key] for key in _VERSION_KEYS if described.get(key)), "")
    return f"{described.get('size')}-{version}"


class PinnedObject:
    """One object of a store, read by ranges at the version that was met first.

    Where a driver can, each request says which version it wants (s3fs sends the ETag); a replaced
    object is then an error, and is opened anew: whether it still is what it should be, digests
    tell. Threads may share one; they take turns.
    """

    def __init__(self, url: str) -> None:
        self.url = url
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
            return patiently(self.url, lambda: self._read(start, length))

    def _read(self, start: int, length: int) -> bytes:
        try:
            if self._file is None:
                fs, path = filesystem(self.url)
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


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error, where a driver keeps it."""
    while error is not None:
        answer = getattr(error, "response", None)  # botocore
        if isinstance(answer, Mapping):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:
            status = getattr(error, "status", None)  # aiohttp
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def refuse_larger(size: int, at_most: int | None) -> None:
    """Raise a `DataError` for a file of more bytes than `at_most`."""
    if at_most is not None and size > at_most:
        raise DataError(f"{size} bytes; at most {at_most}")


def _refuse_other_length(content: bytes, expected: int) -> None:
    if len(content) != expected:
        raise OSError(f"{len(content)} bytes came instead of {expected}")


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())[:300]
    status = _status(error)
    http = f"HTTP {status}: " if status is not None else ""
    return f"{http}{type(error).__name__}{text and ': '}{text}"
