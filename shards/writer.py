"""Write one shard: a plain tar whose bytes depend on the samples alone."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from .manifest import IndexRow, member_digest


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its mask, as it goes into a shard."""

    key: str
    photo: bytes
    """The image file, untouched."""
    extension: str
    """Its extension by content (see `photo.EXTENSIONS`)."""
    mask: bytes
    """The mask file: a single-channel PNG of train ids."""
    meta: Mapping[str, object]
    """What ``KEY.json`` holds."""
    width: int
    height: int
    """Size of the mask [pixels]."""
    orientation: int
    """The turn, an EXIF orientation 1…8, that brings the stored photograph over the mask."""
    class_pixels: tuple[tuple[int, int], ...]
    """(train id, pixels) of the values in the mask, ascending."""


class ShardRecord(msgspec.Struct, frozen=True):
    """A finished shard."""

    bytes: int
    sha256: str
    rows: tuple[IndexRow, ...]


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardRecord:
    """Write samples to a new tar at `path`, in the order given: image, mask, json.

    Owners, times and modes are fixed, so that equal samples give equal bytes.
    """
    rows: list[IndexRow] = []
    with open(path, "xb") as file:
        digesting = _Digesting(file)
        # USTAR: a header is one block of 512 bytes, so offsets are known without parsing.
        with tarfile.open(fileobj=digesting, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            rows.extend(_append(tar, sample) for sample in samples)
        return ShardRecord(digesting.written, digesting.hash.hexdigest(), tuple(rows))


def _append(tar: tarfile.TarFile, sample: Sample) -> IndexRow:
    meta = json.dumps(sample.meta, ensure_ascii=False, separators=(",", ":")).encode()
    members = ((sample.extension, sample.photo), ("png", sample.mask), ("json", meta))
    offsets = []
    for extension, content in members:
        header = tarfile.TarInfo(f"{sample.key}.{extension}")
        header.size, header.mtime, header.mode = len(content), 0, 0o644
        offsets.append(tar.offset + tarfile.BLOCKSIZE)
        tar.addfile(header, io.BytesIO(content))
    return IndexRow(
        key=sample.key,
        extension=sample.extension,
        offsets=(offsets[0], offsets[1], offsets[2]),
        lengths=(len(sample.photo), len(sample.mask), len(meta)),
        digests=(member_digest(sample.photo), member_digest(sample.mask), member_digest(meta)),
        width=sample.width,
        height=sample.height,
        orientation=sample.orientation,
        class_pixels=sample.class_pixels,
    )


class _Digesting(io.RawIOBase):
    """A binary file that hashes and counts what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.written = 0

    def writable(self) -> bool:
        return True

    def write(self, content: bytes) -> int:  # type: ignore[override]
        self.hash.update(content)
        self.written += len(content)
        return self.file.write(content)

    def tell(self) -> int:
        return self.written
