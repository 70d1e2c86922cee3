"""Write one shard: a plain tar whose bytes depend on the samples alone."""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .manifest import Index, IndexRow, build_index, member_digest


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with its mask, as it goes into a shard."""

    key: str
    photo: bytes
    """The image file, untouched."""
    extension: str
    """Its extension by content (see `photo.EXTENSIONS`)."""
    mask: bytes | None
    """The mask file, a single-channel PNG of train ids; None where there are no annotations."""
    meta: Mapping[str, object]
    """What ``KEY.json`` holds."""
    width: int
    height: int
    """Size of the mask [pixels]."""
    orientation: int
    """The turn, an EXIF orientation 1…8, that brings the stored photograph over the mask."""
    class_pixels: tuple[tuple[int, int], ...]
    """(train id, pixels) of the values in the mask, ascending."""


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """A finished shard."""

    bytes: int
    sha256: str
    index: Index
    """Of this shard alone."""


def write_shard(path: Path, samples: Iterable[Sample]) -> ShardRecord:
    """Write samples to a new tar at `path`, in the order given: image, mask (if any), json.

    Owners, times and modes are fixed, so that equal samples give equal bytes.
    """
    rows: list[IndexRow] = []
    with open(path, "xb") as file:
        tar = _Tar(file)
        rows.extend(_append(tar, sample) for sample in samples)
        tar.finish()
        return ShardRecord(tar.written, tar.digest.hexdigest(), build_index([rows]))


def _append(tar: "_Tar", sample: Sample) -> IndexRow:
    meta = json.dumps(sample.meta, ensure_ascii=False, separators=(",", ":")).encode()
    offsets = (
        tar.append(f"{sample.key}.{sample.extension}", sample.photo),
        tar.append(f"{sample.key}.png", sample.mask) if sample.mask is not None else 0,
        tar.append(f"{sample.key}.json", meta),
    )
    mask = sample.mask or b""
    return IndexRow(
        key=sample.key,
        extension=sample.extension,
        offsets=offsets,
        lengths=(len(sample.photo), len(mask), len(meta)),
        digests=(member_digest(sample.photo), member_digest(mask), member_digest(meta)),
        width=sample.width,
        height=sample.height,
        orientation=sample.orientation,
        class_pixels=sample.class_pixels,
    )


class _Tar:
    """A tar in the making, hashed as it is written.

    Headers are the standard library's, in the USTAR format: one block each, so that offsets are
    known without parsing. Its `TarFile` would copy each file in small pieces.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.written = 0

    def append(self, name: str, content: bytes) -> int:
        """Append a file; return the offset of its content [bytes]."""
        header = tarfile.TarInfo(name)
        header.size, header.mtime, header.mode = len(content), 0, 0o644
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.written
        self._write(content)
        self._write(bytes(-len(content) % tarfile.BLOCKSIZE))
        return offset

    def finish(self) -> None:
        """Write the two empty blocks that end a tar, and fill its last record."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))
        self._write(bytes(-self.written % tarfile.RECORDSIZE))

    def _write(self, content: bytes) -> None:
        self.digest.update(content)
        self.written += len(content)
        self.file.write(content)
