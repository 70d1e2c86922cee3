"""Where the bytes of a folder's shards come from: a disk, a cache of an object store, or itself.

Each gives ranges of shards and is safe to share among threads.
"""

import os
import threading
from collections import OrderedDict
from typing import Protocol

from ..errors import DataError
from ..storage import LocalPath, Location
from ..storage.remote import PinnedObject, RemotePath
from .cache import ShardCache
from .config import ReadConfig
from .manifest import ShardEntry

_OPEN_OBJECTS = 256  # of one folder and process: far more than a plan of equal shards uses


class ShardFiles(Protocol):
    """The shards of one folder."""

    remote: bool
    """Whether a read may wait for a network: several should be in flight."""

    def read(self, shard: ShardEntry, start: int, length: int) -> bytes:
        """Return `length` bytes of a shard from `start` [bytes]; fewer only where it ends.

        Raises
        ------
        DataError
            If the shard is missing, or is not what the manifest says.
        StoreError, ConfigError
            If the store does not answer, or the cache has no room.
        """

    def discard(self, shard: ShardEntry) -> None:
        """Forget what is kept of a shard: what came of it was wrong."""


def open_files(folder: Location, config: ReadConfig) -> ShardFiles:
    """Return the shards of a folder, as `config` says they are to be read."""
    if isinstance(folder, LocalPath):
        return _LocalFiles(folder)
    assert isinstance(folder, RemotePath)
    return _CachedFiles(folder, config) if config.remote == "cache" else _RemoteFiles(folder)


class _LocalFiles:
    remote = False

    def __init__(self, folder: LocalPath) -> None:
        self.folder = os.fspath(folder)

    def read(self, shard: ShardEntry, start: int, length: int) -> bytes:
        path = os.path.join(self.folder, shard.name)
        try:
            descriptor = os.open(path, os.O_RDONLY)  # 10 us; kept open, a replaced file lingers
            try:
                return os.pread(descriptor, length, start)
            finally:
                os.close(descriptor)
        except FileNotFoundError:
            raise DataError(f"{path}: the shard is missing") from None
        except OSError as error:
            raise DataError(f"{path}: the shard cannot be read: {error.strerror}") from None

    def discard(self, shard: ShardEntry) -> None:
        pass  # nothing is kept


class _CachedFiles:
    remote = True

    def __init__(self, folder: RemotePath, config: ReadConfig) -> None:
        self.folder = folder
        self.cache = ShardCache(config.cache_dir, config.cache_bytes)

    def read(self, shard: ShardEntry, start: int, length: int) -> bytes:
        return self.cache.read(self.folder / shard.name, shard, start, length)

    def discard(self, shard: ShardEntry) -> None:
        self.cache.discard(shard)


class _RemoteFiles:
    remote = True

    def __init__(self, folder: RemotePath) -> None:
        self.folder = folder
        self._objects: OrderedDict[str, PinnedObject] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, shard: ShardEntry, start: int, length: int) -> bytes:
        stored = self._object(shard)
        try:
            return stored.read(start, length)
        except FileNotFoundError:
            raise DataError(f"{stored.location}: the shard is missing") from None

    def discard(self, shard: ShardEntry) -> None:
        with self._lock:
            self._objects.pop(shard.name, None)

    def _object(self, shard: ShardEntry) -> PinnedObject:
        with self._lock:
            if shard.name not in self._objects:
                self._objects[shard.name] = PinnedObject(self.folder / shard.name)
                if len(self._objects) > _OPEN_OBJECTS:
                    self._objects.popitem(last=False)
            self._objects.move_to_end(shard.name)
            return self._objects[shard.name]
