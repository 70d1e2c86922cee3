"""What a folder of shards says of itself: ``manifest.json`` and the index beside it.

The manifest is written last: a folder is complete when it is there. The index tells where each
sample lies, so that a reader needs no tar parsing; it is plain NumPy (``index.npy``, one record a
sample, and ``index-classes.npy``, the classes in each), memory-mapped and shared by all workers.
"""

import hashlib
import io
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

from ..errors import CocosegError, ConfigError, DataError, first_line
from ..storage import LocalPath, Location, locate
from ..storage.retry import ATTEMPTS, pause
from ..taxonomy import Taxonomy
from .tarball import MAX_NAME, name_problem

MANIFEST_NAME = "manifest.json"
FORMAT = "cocoseg-shards"
VERSION = 2
INDEX_NAMES = ("index.npy", "index-classes.npy")
MEMBERS = ("image", "mask", "json")
ADOPTED = "index"
"""The setting ``made_by`` of shards that other programs wrote."""


_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class FileEntry(msgspec.Struct, frozen=True):
    """A file beside the shards."""

    name: str
    bytes: _Size
    sha256: str


class ShardEntry(msgspec.Struct, frozen=True):
    """One tar."""

    name: str
    bytes: _Size
    sha256: str
    samples: _Size


class SourceEntry(msgspec.Struct, frozen=True):
    """One annotation file that the shards were made from."""

    name: str
    sha256: str
    images: int
    annotations: int


class Manifest(msgspec.Struct, frozen=True):
    """The whole of ``manifest.json``: no times, no host names, no worker counts."""

    format: str
    version: int
    taxonomy: dict[str, Any]
    settings: dict[str, Any]
    sources: tuple[SourceEntry, ...]
    versions: dict[str, str]
    samples: _Size
    bytes: _Size
    counts: dict[str, int]
    """Findings: instances, crowds, quarantined images …"""
    class_pixels: tuple[int, ...]
    """Mask pixels by train id."""
    ignored_pixels: int
    shards: tuple[ShardEntry, ...]
    index: FileEntry
    index_classes: FileEntry
    masks: bool = True
    """Whether the samples have masks: not where no annotations were given."""
    class_instances: tuple[int, ...] = ()
    """Instances by train id; none are counted in shards of other programs."""

    @property
    def classes(self) -> Taxonomy:
        """The taxonomy that the masks follow."""
        return Taxonomy.from_dict(self.taxonomy)

    @property
    def adopted(self) -> bool:
        """Whether another program wrote the shards, and ``cocoseg index`` what lies beside them."""
        return self.settings.get("made_by") == ADOPTED

    def to_json(self) -> str:
        """Return the file's text."""
        return json.dumps(msgspec.to_builtins(self), indent=1, ensure_ascii=False) + "\n"


class IndexRow(msgspec.Struct, frozen=True):
    """Where one sample lies; the shard is known from the context."""

    key: str
    extension: str
    """Extension of the image's member."""
    offsets: tuple[int, int, int]
    """First byte of the image, mask and json data in the tar; 0 for what is not there."""
    lengths: tuple[int, int, int]
    """Their sizes [bytes]."""
    digests: tuple[bytes, bytes, bytes]
    """Their `member_digest`."""
    width: int
    height: int
    """Size of the mask [pixels]."""
    orientation: int
    """The turn, an EXIF orientation 1…8, that brings the stored image over the mask."""
    class_pixels: tuple[tuple[int, int], ...]
    """(train id, pixels) of the values in the mask, ascending; the ignore index included."""


def member_digest(content: bytes) -> bytes:
    """Return the 16-byte XXH3 digest that the index keeps of each member.

    It tells damage, 60 x faster than a cryptographic one; against forgery there is the SHA-256 of
    each shard in the manifest.
    """
    return xxhash.xxh3_128_digest(content)


@dataclass(frozen=True, slots=True)
class Index:
    """All samples of a folder, in the order of the shards; N samples."""

    samples: NDArray[np.void]
    """Structured, shape (N,): see `_dtype`."""
    classes: NDArray[np.void]
    """Structured (train_id, pixels), one record for each class in each sample."""
    files: tuple[str, str] | None = None
    """Local files that both are mapped from; None where they are held in memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process maps the same pages; the one that read the index has checked it.
        if self.files is not None:
            return map_index, (self.files,)
        return Index, (self.samples, self.classes)

    def __len__(self) -> int:
        return len(self.samples)

    def row(self, position: int) -> IndexRow:
        """Return the row of one sample, 0 ≤ position < N.

        Raises
        ------
        DataError
            If its key is not valid UTF-8.
        """
        record = self.samples[position]
        start, count = int(record["classes_start"]), int(record["classes"])
        offsets, lengths = record["offsets"].tolist(), record["lengths"].tolist()
        digests = tuple(record["digests"][i].tobytes() for i in range(3))
        try:
            key, extension = record["key"].decode(), record["extension"].decode()
        except UnicodeDecodeError:
            raise DataError(f"index.npy: record {position}: its key is not valid UTF-8") from None
        return IndexRow(
            key=key,
            extension=extension,
            offsets=tuple(offsets),
            lengths=tuple(lengths),
            digests=digests,
            width=int(record["width"]),
            height=int(record["height"]),
            orientation=int(record["orientation"]),
            class_pixels=tuple((int(t), int(n)) for t, n in self.classes[start : start + count]),
        )


_CLASS_DTYPE = np.dtype([("train_id", "<u2"), ("pixels", "<u4")])


_EXTENSION_LENGTH = 9  # "image.png", the longest that `prepare` gives; others have longer ones


def _dtype(key_length: int, extension_length: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("key", f"S{key_length}"),
            ("shard", "<u4"),
            ("extension", f"S{extension_length}"),
            ("offsets", "<u8", 3),
            ("lengths", "<u4", 3),
            ("digests", "u1", (3, 16)),
            ("width", "<u4"),
            ("height", "<u4"),
            ("orientation", "u1"),
            ("classes_start", "<u8"),
            ("classes", "<u4"),
        ]
    )


def build_index(shards: Sequence[Sequence[IndexRow]]) -> Index:
    """Join the rows of all shards, in shard order."""
    rows = [(shard, row) for shard, part in enumerate(shards) for row in part]
    key_length = max((len(row.key.encode()) for _, row in rows), default=1)
    extension_length = max((len(row.extension.encode()) for _, row in rows), default=0)
    samples = np.zeros(len(rows), _dtype(key_length, max(extension_length, _EXTENSION_LENGTH)))
    classes: list[tuple[int, int]] = []
    for i, (shard, row) in enumerate(rows):
        digests = np.frombuffer(b"".join(row.digests), np.uint8).reshape(3, 16)
        start, count = len(classes), len(row.class_pixels)
        samples[i] = (
            row.key.encode(),
            shard,
            row.extension.encode(),
            row.offsets,
            row.lengths,
            digests,
            row.width,
            row.height,
            row.orientation,
            start,
            count,
        )
        classes.extend(row.class_pixels)
    return Index(samples, np.array(classes, _CLASS_DTYPE))


def join_indices(parts: Sequence[Index]) -> Index:
    """Join the indices of single shards; the i-th becomes shard i."""
    widths = [
        max((part.samples.dtype[name].itemsize for part in parts), default=least)
        for name, least in (("key", 1), ("extension", _EXTENSION_LENGTH))
    ]
    common = _dtype(*widths)
    joined = np.concatenate([np.zeros(0, common), *(p.samples.astype(common) for p in parts)])
    joined["shard"] = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    starts = np.cumsum([0, *(len(part.classes) for part in parts)])[:-1]
    joined["classes_start"] += np.repeat(starts, [len(p) for p in parts]).astype(np.uint64)
    return Index(
        joined, np.concatenate([np.zeros(0, _CLASS_DTYPE), *(part.classes for part in parts)])
    )


def pack_index(index: Index) -> tuple[bytes, bytes]:
    """Return the contents of ``index.npy`` and ``index-classes.npy``."""
    packed = []
    for array in (index.samples, index.classes):
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        packed.append(buffer.getvalue())
    return packed[0], packed[1]


def unpack_index(samples: bytes, classes: bytes) -> Index:
    """Read what `pack_index` returned."""
    return Index(_load(io.BytesIO(samples)), _load(io.BytesIO(classes)))


def publish_index(folder: Location, index: Index) -> tuple[FileEntry, FileEntry]:
    """Write the two index files into `folder` and return their entries for the manifest."""
    entries = []
    for name, content in zip(INDEX_NAMES, pack_index(index), strict=True):
        (folder / name).publish_bytes(content)
        entries.append(FileEntry(name, len(content), hashlib.sha256(content).hexdigest()))
    return entries[0], entries[1]


def read_manifest(folder: str | Location) -> Manifest:
    """Read ``manifest.json``.

    Raises
    ------
    ConfigError
        If `folder` does not exist.
    DataError
        If it holds no manifest (unfinished, or made by another program) or one that is broken, or
        names files in other folders.
    """
    folder = locate(folder)
    url = folder / MANIFEST_NAME
    try:
        content = url.read_bytes()
    except ConfigError:
        if not folder.exists():
            raise ConfigError(f"{folder}: no such folder") from None
        splits = [
            name for name in folder.list_folders() if (folder / name / MANIFEST_NAME).exists()
        ]
        if splits:
            raise ConfigError(
                f"{folder}: contains the folders of shards {', '.join(splits[:8])}: give one of "
                f"them, such as {folder / splits[0]}"
            ) from None
        raise DataError(
            f"{folder}: holds no {MANIFEST_NAME}: 'cocoseg prepare' has not finished there (run it "
            "again to complete it), or it is not a folder of cocoseg shards ('cocoseg index' makes "
            "one of other WebDataset shards)"
        ) from None
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DataError(f"{url}: broken manifest: {error}") from None
    if manifest.format != FORMAT or manifest.version != VERSION:
        raise DataError(
            f"{url}: format {manifest.format!r} version {manifest.version}; this cocoseg reads "
            f"{FORMAT!r} version {VERSION}"
        )
    names = [shard.name for shard in manifest.shards]
    for name in (*names, manifest.index.name, manifest.index_classes.name):
        if "/" in name or name_problem(name):
            raise DataError(f"{url}: names {name!r}, which is not a file beside it")
    return manifest


def read_index(folder: str | Location, manifest: Manifest, kept: str | None = None) -> Index:
    """Read the index and check it; it is memory-mapped where it lies on a local disk.

    Parameters
    ----------
    kept
        Local folder that gets, and may hold, a copy of an object store's.

    Raises
    ------
    DataError
        If a file is missing, differs from the manifest's digest, or does not fit the manifest: the
        reader may ask for every byte that an index names.
    ConfigError
        If `kept` cannot hold a copy.
    """
    folder = locate(folder)
    samples, classes = (
        _open(folder / entry.name, entry, kept)
        for entry in (manifest.index, manifest.index_classes)
    )
    files = None
    if isinstance(samples, np.memmap) and isinstance(classes, np.memmap):
        files = (str(samples.filename), str(classes.filename))
    index = Index(samples, classes, files)
    _check_index(folder, index, manifest)
    return index


def _open(url: Location, entry: FileEntry, kept: str | None) -> NDArray[np.void]:
    try:
        if isinstance(url, LocalPath):
            _vouched(url, entry)
            return _map(url.url)
        if kept is not None:
            return _map(_keep(url, entry, kept).url)
        return _load(io.BytesIO(_vouched(url, entry)))
    except CocosegError:
        raise
    except Exception as error:  # NumPy raises many kinds on hostile headers
        raise DataError(f"{url}: is not an index: {first_line(error)}") from None


def _map(file: str) -> NDArray[np.void]:
    return _load(file, mmap_mode="r")


_PARSING = threading.Lock()


def _load(file: str | io.BytesIO, mmap_mode: Literal["r"] | None = None) -> NDArray[np.void]:
    """Load one array, one thread at a time.

    NumPy reads a header by `ast.literal_eval`. Where two threads do, Python 3.11.7 raised "AST
    constructor recursion depth mismatch" once in some hundred calls (see CPython issue 106905).
    """
    with _PARSING:
        loaded: Any = np.load(file, mmap_mode=mmap_mode, allow_pickle=False)
    if not isinstance(loaded, np.ndarray):
        raise ValueError("an archive of arrays")
    return loaded


def map_index(files: tuple[str, str]) -> Index:
    """Map ``index.npy`` and ``index-classes.npy``, which have been checked."""
    return Index(_map(files[0]), _map(files[1]), files)


def _keep(url: Location, entry: FileEntry, kept: str) -> LocalPath:
    """Return a local copy of an index file, by its digest: fetched if it is not there."""
    path = LocalPath(os.path.expanduser(kept)) / f"{entry.sha256}.npy"
    if not path.exists() or path.sha256() != entry.sha256:
        content = _vouched(url, entry)
        try:
            path.publish_bytes(content)
        except OSError as error:
            raise ConfigError(f"{kept}: cannot hold {url}: {error}") from None
    return path


def _vouched(url: Location, entry: FileEntry) -> bytes:
    attempts = ATTEMPTS if url.remote else 1
    for attempt in range(attempts):
        try:
            content = url.read_bytes()
        except ConfigError as error:
            raise DataError(str(error)) from None
        if hashlib.sha256(content).hexdigest() == entry.sha256:
            return content
        if attempt < attempts - 1:
            pause(attempt)
    raise DataError(f"{url}: differs from the manifest (sha256); fetch or prepare it again")


def _check_index(folder: Location, index: Index, manifest: Manifest) -> None:
    samples, classes = index.samples, index.classes
    names = samples.dtype.names or ()
    widths = [samples.dtype[name].itemsize if name in names else 1 for name in ("key", "extension")]
    fit = samples.dtype == _dtype(*widths) and classes.dtype == _CLASS_DTYPE
    if not fit or samples.ndim != 1 or classes.ndim != 1:
        raise DataError(f"{folder}: the index has other columns than this version reads: {names}")
    known = len(manifest.shards)
    counts = np.bincount(np.minimum(samples["shard"], known), minlength=known + 1)
    if counts.tolist() != [*(shard.samples for shard in manifest.shards), 0]:
        raise DataError(f"{folder}: the index and the manifest count samples differently")
    sizes = np.array([shard.bytes for shard in manifest.shards], np.uint64)
    sizes = sizes[samples["shard"]][:, None]
    if (samples["lengths"] > sizes - np.minimum(samples["offsets"], sizes)).any():
        raise DataError(f"{folder}: the index has members behind the end of their shards")


_PLAIN = bytes({*range(0x20, 0x7F), *b"\n"} - {*b"\\:"})
_DOUBTFUL = (b"\n\n", b"//", b"\n/", b"/\n", b"\n.", b"/.")


def check_names(folder: str | Location, index: Index) -> None:
    """Make sure that keys and extensions are names of files: commands write files called so.

    `verify` goes without, as it reports each of them.

    Raises
    ------
    DataError
        If one is not a relative path below a folder, or no text.
    """
    for column in ("key", "extension"):
        names = index.samples[column].tolist()
        # Nearly all are plain, which is seen at once of all of them: 0.1 s for COCO's.
        lines = b"\n".join((b"", *names, b""))
        if (
            not lines.translate(None, _PLAIN)
            and not any(text in lines for text in _DOUBTFUL)
            and lines.count(b"\n") == len(names) + 1
            and max(map(len, names), default=0) <= MAX_NAME
        ):
            continue
        for position, name in enumerate(names):
            problem = name_problem(name.decode(errors="surrogateescape"))
            if problem:
                raise DataError(
                    f"{folder}: index.npy: record {position}: the {column} {name!r} {problem}"
                )
