"""Read samples by the index: one range each, checked against its digests, and decoded.

Nothing is unpickled, extracted or chosen by extension: only bytes that the manifest vouches for are
decoded, as an image or as a mask.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..errors import CocosegError, ConfigError, DataError, StoreError
from ..storage import locate
from ..storage.retry import ATTEMPTS, pause
from ..taxonomy import Taxonomy
from .config import ReadConfig
from .decode import decode_photo, decode_sample
from .files import ShardFiles, open_files
from .manifest import (
    MEMBERS,
    Index,
    IndexRow,
    Manifest,
    ShardEntry,
    check_names,
    member_digest,
    read_index,
    read_manifest,
)
from .png import Mask

_IN_FLIGHT = 8  # requests of one process at a time


@dataclass(frozen=True, slots=True)
class Sample:
    """One decoded sample."""

    key: str
    image: NDArray[np.uint8]
    """RGB, shape (H, W, 3), turned as the mask is."""
    mask: Mask
    """Train ids, shape (H, W): uint8, or uint16 beyond 254 classes."""


class BadSample(DataError):
    """A sample that cannot be had as the manifest describes it; the text names shard and key."""

    def __init__(self, shard: str, key: str, problem: str) -> None:
        super().__init__(f"{shard}: sample {key}: {problem}")
        self.shard = shard
        self.key = key
        self.problem = problem

    def __reduce__(self) -> tuple[Any, ...]:
        return BadSample, (self.shard, self.key, self.problem)


def good(sample: Sample | CocosegError) -> Sample:
    """Return a sample that was read, or raise what is wrong with it."""
    if isinstance(sample, CocosegError):
        raise sample
    return sample


class Mismatch(DataError):
    """Bytes that are not those the index vouches for."""


class ShardSet:
    """One or several folders of shards as one sequence of samples.

    Parameters
    ----------
    folders
        Local paths or URLs of folders that hold a ``manifest.json``; all of one taxonomy.
    masks
        Whether the masks will be read.
    config
        How shards in an object store are read.

    Raises
    ------
    ConfigError
        If a folder does not exist, or the taxonomies differ, or there are no masks.
    DataError
        If a manifest or index is missing or broken.
    StoreError
        If an object store does not answer.
    """

    def __init__(
        self, folders: Sequence[str], masks: bool = True, config: ReadConfig | None = None
    ) -> None:
        if not folders:
            raise ConfigError("no folder of shards was given")
        self.folders = tuple(folders)
        self._locations = tuple(map(locate, folders))
        self.config = config or ReadConfig()
        self.manifests: tuple[Manifest, ...] = tuple(read_manifest(folder) for folder in folders)
        self.indices: tuple[Index, ...] = tuple(
            read_index(folder, manifest, self.config.cache_dir)
            for folder, manifest in zip(folders, self.manifests, strict=True)
        )
        for folder, index in zip(folders, self.indices, strict=True):
            check_names(folder, index)
        self._ends = np.cumsum([len(index) for index in self.indices])
        self._process: _Process | None = None
        self.taxonomy: Taxonomy = self.manifests[0].classes
        for folder, manifest in zip(folders, self.manifests, strict=True):
            if manifest.classes.names != self.taxonomy.names:
                raise ConfigError(
                    f"{folder} and {folders[0]} were prepared with different classes; "
                    "prepare both with the same --classes"
                )
            if masks and not manifest.masks:
                raise ConfigError(
                    f"{folder}: was prepared without annotations and has no masks; it serves "
                    "'cocoseg infer' alone"
                )

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_process": None}  # another process opens files of its own

    @property
    def shard_sizes(self) -> list[int]:
        """Samples in each shard, through all folders: what `SampleOrder` needs."""
        return [shard.samples for manifest in self.manifests for shard in manifest.shards]

    def row(self, position: int) -> IndexRow:
        """Return what the index says of a sample, 0 ≤ position < len(self)."""
        part, local = self._locate(position)
        return self.indices[part].row(local)

    def read(self, position: int) -> Sample:
        """Read and decode one sample.

        Raises
        ------
        BadSample
            If it is missing, differs from the manifest, or cannot be decoded.
        StoreError, ConfigError
            If the object store does not answer, or the cache has no room.
        """
        (sample,) = self.read_many([position])
        return good(sample)

    def read_many(self, positions: Sequence[int]) -> list[Sample | BadSample]:
        """Read and decode samples; of object stores, several are in flight at once.

        Returns
        -------
        list
            For each position a `Sample`, or the `BadSample` that `read` would raise.

        Raises
        ------
        StoreError, ConfigError
            As `read`.
        """
        places, bits = [self._place(position) for position in positions], self.taxonomy.bits
        return [
            members if isinstance(members, BadSample) else place.decode(members, bits)
            for place, members in zip(places, self._fetch(places, ("image", "mask")), strict=True)
        ]

    def read_image(self, position: int) -> NDArray[np.uint8]:
        """Read and decode the image alone: uint8 RGB, shape (H, W, 3).

        Raises
        ------
        BadSample
            As `read`.
        """
        place = self._place(position)
        try:
            return decode_photo(self._member(place, "image"), place.row, place.where)
        except DataError as error:
            raise place.bad(error) from None

    def read_meta(self, position: int) -> dict[str, Any]:
        """Read the JSON of a sample; empty if it has none, or anything but an object.

        Raises
        ------
        BadSample
            As `read`.
        """
        place = self._place(position)
        if not place.row.lengths[MEMBERS.index("json")]:
            return {}
        content = self._member(place, "json")
        try:
            return msgspec.json.decode(content, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return {}  # of another program

    def _member(self, place: "_Place", name: str) -> bytes:
        (members,) = self._fetch([place], (name,))
        if isinstance(members, BadSample):
            raise members
        return members[0]

    def _fetch(
        self, places: Sequence["_Place"], names: Sequence[str]
    ) -> list[list[bytes] | BadSample]:
        def fetch(place: _Place) -> list[bytes] | BadSample:
            return place.fetch(names)

        if len(places) > 1 and any(place.files.remote for place in places):
            return list(self._here().pool.map(fetch, places))
        return [fetch(place) for place in places]

    def _place(self, position: int) -> "_Place":
        part, local = self._locate(position)
        index = self.indices[part]
        shard = self.manifests[part].shards[int(index.samples["shard"][local])]
        url = str(self._locations[part] / shard.name)
        return _Place(self._here().files[part], shard, url, index.row(local))

    def _locate(self, position: int) -> tuple[int, int]:
        if not 0 <= position < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        part = int(np.searchsorted(self._ends, position, side="right"))
        return part, position - (int(self._ends[part - 1]) if part else 0)

    def _here(self) -> "_Process":
        # Neither threads nor connections survive a fork.
        if self._process is None or self._process.pid != os.getpid():
            files = tuple(open_files(folder, self.config) for folder in self._locations)
            pool = ThreadPoolExecutor(_IN_FLIGHT, "cocoseg-fetch")  # starts none before it is used
            self._process = _Process(os.getpid(), files, pool)
        return self._process


@dataclass(frozen=True, slots=True)
class _Process:
    """What one process reads with."""

    pid: int
    files: tuple[ShardFiles, ...]
    """By folder."""
    pool: ThreadPoolExecutor


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one sample lies."""

    files: ShardFiles
    shard: ShardEntry
    url: str
    row: IndexRow

    @property
    def where(self) -> str:
        return f"{self.url}: sample {self.row.key}"

    def problem(self, error: CocosegError) -> str:
        return str(error).removeprefix(f"{self.where}: ").removeprefix(f"{self.url}: ")

    def bad(self, error: CocosegError) -> BadSample:
        return BadSample(self.url, self.row.key, self.problem(error))

    def fetch(self, names: Sequence[str]) -> list[bytes] | BadSample:
        """Return members; from a store, what differs from the index is fetched again."""
        attempts = ATTEMPTS if self.files.remote else 1
        for attempt in range(attempts):
            try:
                return read_members(partial(self.files.read, self.shard), self.row, names)
            except Mismatch as mismatch:
                bad = self.bad(mismatch)
            except DataError as error:
                return self.bad(error)
            except StoreError as error:
                raise StoreError(f"{self.where}: {self.problem(error)}") from None
            self.files.discard(self.shard)
            if attempt < attempts - 1:
                pause(attempt)
        return bad

    def decode(self, members: Sequence[bytes], bits: int) -> Sample | BadSample:
        """Decode image and mask; see `decode_sample`."""
        image, mask = members
        try:
            return Sample(self.row.key, *decode_sample(image, mask, self.row, self.where, bits))
        except DataError as error:
            return self.bad(error)


def read_members(
    read: Callable[[int, int], bytes], row: IndexRow, names: Sequence[str]
) -> list[bytes]:
    """Read members of one sample in one request, and check their digests.

    Parameters
    ----------
    read
        Returns the bytes of the shard from an offset on, of a length [bytes].
    names
        Out of ``image``, ``mask``, ``json``.

    Raises
    ------
    Mismatch
        If the bytes are not those of the index.
    """
    chosen = [MEMBERS.index(name) for name in names]
    first = min(row.offsets[i] for i in chosen)
    last = max(row.offsets[i] + row.lengths[i] for i in chosen)
    content = read(first, last - first)
    members = []
    for i in chosen:
        start = row.offsets[i] - first
        member = content[start : start + row.lengths[i]]
        if member_digest(member) != row.digests[i]:
            cut = "ends inside" if len(member) < row.lengths[i] else "differs from the index in"
            raise Mismatch(
                f"the shard {cut} its {MEMBERS[i]}; fetch or prepare it again ('cocoseg verify' "
                "checks all of it)"
            )
        members.append(member)
    return members
