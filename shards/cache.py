"""A local folder that holds shards of object stores: shared by processes, bounded in bytes.

A shard is kept under its SHA-256: runs and ranks share it whatever its URL, and a shard that was
replaced in the store is another file. It is fetched under the name ``SHA256.part`` by whoever locks
that file first, checked, and renamed. The longest unused ones go when room is needed; who is just
reading one keeps it open. Files of other names are let be.

Parts are claimed, and those of dead processes removed, under one lock for the folder: none can be
taken for abandoned between its creation and its lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import ConfigError, DataError
from ..storage.remote import PinnedObject, RemotePath
from ..storage.retry import ATTEMPTS, pause
from .manifest import ShardEntry

_LOCK = ".lock"
_OURS = re.compile(r"[0-9a-f]{64}\.(tar|part)")
_CHUNK = 16 << 20  # bytes a request: what a failure costs, and a worker holds
_WAIT = 0.05  # seconds between two looks for room that others will give back


class ShardCache:
    """Shards of object stores, on a local disk.

    Parameters
    ----------
    folder
        Created when needed.
    capacity
        Most bytes of shards in it, those being fetched included.
    """

    def __init__(self, folder: str, capacity: int) -> None:
        self.folder = Path(folder).expanduser()
        self.capacity = capacity

    def read(self, url: RemotePath, shard: ShardEntry, start: int, length: int) -> bytes:
        """Return `length` bytes of a shard from `start` [bytes], fetching all of it if need be.

        Raises
        ------
        DataError
            If the store does not have it, or something else than the manifest says.
        StoreError
            If the store does not answer.
        ConfigError
            If there is no room for it.
        """
        while True:
            try:
                descriptor = os.open(self._path(shard), os.O_RDONLY)
            except (FileNotFoundError, NotADirectoryError):
                self._fetch(url, shard)
                continue
            try:
                now = time.time_ns()  # the kernel's own clock ticks every few milliseconds
                with contextlib.suppress(OSError):  # it is another user's: not ours to keep
                    os.utime(descriptor, ns=(now, now))
                return os.pread(descriptor, length, start)
            finally:
                os.close(descriptor)

    def discard(self, shard: ShardEntry) -> None:
        """Remove a shard that turned out to be damaged; the next read fetches it again."""
        with contextlib.suppress(FileNotFoundError):
            self._path(shard).unlink()

    def _path(self, shard: ShardEntry) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _fetch(self, url: RemotePath, shard: ShardEntry) -> None:
        if shard.bytes > self.capacity:
            raise ConfigError(
                f"{url}: has {shard.bytes:,} bytes, more than the cache may hold "
                f"({self.capacity:,}): raise cache_bytes, or read ranges (remote: range)"
            )
        part = self._path(shard).with_suffix(".part")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            while not self._path(shard).exists():
                with self._claimed(part) as descriptor:
                    if descriptor is not None:
                        self._fill(descriptor, part, url, shard)
        except OSError as error:
            raise ConfigError(f"{self.folder}: cannot hold {url}: {error}") from None

    @contextlib.contextmanager
    def _claimed(self, part: Path) -> Iterator[int | None]:
        """Give the descriptor of a part that is ours, or None when who had it is done with it."""
        with self._alone():
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
            ours = _try_lock(descriptor)
        try:
            if not ours:
                fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits
            yield descriptor if ours else None
        finally:
            os.close(descriptor)

    def _fill(self, descriptor: int, part: Path, url: RemotePath, shard: ShardEntry) -> None:
        try:
            if self._path(shard).exists():  # somebody else fetched it before we claimed the part
                part.unlink()
                return
            os.truncate(descriptor, 0)  # what a killed process left counts no longer
            self._make_room(descriptor, shard)
            _download(url, shard, descriptor)
            with self._alone():  # who counts the bytes meanwhile would see neither name
                part.rename(self._path(shard))
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _make_room(self, part: int, shard: ShardEntry) -> None:
        """Take the bytes of a shard out of the capacity, evicting what was not used for longest."""
        while True:
            with self._alone():
                while self._used() + shard.bytes > self.capacity:
                    if not self._evict():
                        break
                else:
                    while not _allocate(part, shard.bytes):
                        if not self._evict():
                            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    return
            time.sleep(_WAIT)  # others are fetching; what they finish can be evicted

    def _used(self) -> int:
        used = 0
        for path in self._files():
            if path.suffix == ".part" and _remove_abandoned(path):
                continue
            with contextlib.suppress(FileNotFoundError):
                used += path.stat().st_size
        return used

    def _evict(self) -> bool:
        """Remove the shard that was not used for longest; return whether there was one."""
        ages = []
        for path in self._files():
            with contextlib.suppress(FileNotFoundError):
                if path.suffix == ".tar":
                    ages.append((path.stat().st_mtime_ns, path))
        if ages:
            min(ages)[1].unlink(missing_ok=True)
        return bool(ages)

    def _files(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if _OURS.fullmatch(path.name)]

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Wait until no other process changes the folder."""
        descriptor = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _download(url: RemotePath, shard: ShardEntry, part: int) -> None:
    for attempt in range(ATTEMPTS):
        if _copy(url, shard.bytes, part) == shard.sha256:
            return
        if attempt < ATTEMPTS - 1:
            pause(attempt)
    raise DataError(
        f"{url}: the shard differs from the manifest (sha256), fetched {ATTEMPTS} times; it was "
        "replaced or damaged: upload or prepare it again"
    )


def _copy(url: RemotePath, length: int, part: int) -> str:
    """Copy an object to a file, and return its SHA-256."""
    digest = hashlib.sha256()
    # No flush to the disk: a file that a power cut spoils is found by its samples' digests.
    with contextlib.closing(PinnedObject(url)) as stored:
        for start in range(0, length, _CHUNK):
            try:
                content = stored.read(start, min(_CHUNK, length - start))
            except FileNotFoundError:
                raise DataError(f"{url}: the shard is missing") from None
            os.pwrite(part, content, start)
            digest.update(content)
    return digest.hexdigest()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_abandoned(part: Path) -> bool:
    """Remove a part whose process is dead: nobody holds its lock; return whether it is gone."""
    try:
        descriptor = os.open(part, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if not _try_lock(descriptor):
            return False
        part.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _allocate(descriptor: int, length: int) -> bool:
    """Reserve the disk space of a file; return whether there was enough."""
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, length)
        else:
            os.truncate(descriptor, length)
    except OSError as error:
        os.truncate(descriptor, 0)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return False
    return True
