"""Where images lie: in a folder, a tar or a zip; and how their bytes are read.

The main process looks every name up once; workers get a `PhotoPlace` and read it, so that an
archive is listed once however many they are.
"""

import posixpath
import struct
import tarfile
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Protocol

import msgspec

from ..errors import ConfigError, DataError
from ..photo import MAX_BYTES, BadPhoto, is_image_name, is_litter
from ..storage import locate
from .names import coco_number, folded, spellings


class PhotoPlace(msgspec.Struct, frozen=True, array_like=True):
    """Where the bytes of one image lie."""

    url: str
    """The file itself, or an archive."""
    offset: int = 0
    """Of the image in a tar, of its local header in a zip [bytes]."""
    stored: int | None = None
    """Bytes that it takes up there; None for a whole file."""
    zipped: tuple[int, int, int] | None = None
    """In a zip: compression method, size and CRC-32 of the image."""


class ImageStore(Protocol):
    """A folder or an archive of images."""

    url: str
    names: Iterable[str]
    """Paths in it, with slashes."""
    sizes_are_cheap: bool
    """Whether `size` asks no server."""

    def location(self, name: str) -> PhotoPlace:
        """Return where one of `names` lies."""

    def size(self, name: str) -> int:
        """Return its size [bytes]."""


class ImageFolder:
    """The files below a folder, local or on an object store."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._folder = locate(url)
        self.sizes_are_cheap = not self._folder.remote
        try:
            self.names: Iterable[str] = self._folder.walk_files()
        except PermissionError as error:
            raise ConfigError(f"{url}: {error.filename} may not be read") from None

    def location(self, name: str) -> PhotoPlace:
        """Return where a file lies."""
        return PhotoPlace((self._folder / name).url)

    def size(self, name: str) -> int:
        """Return its size [bytes]."""
        return (self._folder / name).size()


class ImageArchive:
    """The files in an uncompressed tar, or in a zip."""

    sizes_are_cheap = True

    def __init__(self, url: str, members: Mapping[str, PhotoPlace]) -> None:
        self.url = url
        self.names: Iterable[str] = members
        self._members = members

    def location(self, name: str) -> PhotoPlace:
        """Return where a member lies."""
        return self._members[name]

    def size(self, name: str) -> int:
        """Return its size when unpacked [bytes]."""
        place = self._members[name]
        return place.zipped[1] if place.zipped is not None else place.stored or 0


def _list_tar(url: str) -> dict[str, PhotoPlace]:
    members = {}
    try:
        with locate(url).open_seekable() as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError(f"{member.name!r} has a negative size")
                if member.isreg() and not member.issparse():
                    place = PhotoPlace(url, member.offset_data, member.size)
                    members[posixpath.normpath(member.name)] = place
            file.seek(tar.offset)  # tarfile also stops, silently, at a header that is damaged
            if file.read(tarfile.BLOCKSIZE).strip(b"\0") or file.tell() <= tar.offset:
                raise tarfile.ReadError(f"it is damaged or cut at byte {tar.offset}")
    except Exception as error:  # tarfile raises many kinds on hostile headers
        raise DataError(f"{url}: is not an uncompressed tar: {error}") from None
    return members


def _list_zip(url: str) -> dict[str, PhotoPlace]:
    members = {}
    try:
        with locate(url).open_seekable() as file, zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.is_dir():
                    continue
                if not 0 <= member.header_offset < 2**63:
                    raise zipfile.BadZipFile(f"{member.filename!r} lies nowhere")
                method = -1 if member.flag_bits & 1 else member.compress_type
                zipped = (method, member.file_size, member.CRC)
                place = PhotoPlace(url, member.header_offset, member.compress_size, zipped)
                members[posixpath.normpath(member.filename)] = place
    except Exception as error:  # zipfile raises many kinds on hostile directories
        raise DataError(f"{url}: is not a readable zip: {error}") from None
    return members


def open_store(url: str, flag: str = "--images") -> ImageStore:
    """List a folder, a ``.tar`` or a ``.zip`` of images.

    Parameters
    ----------
    flag
        Named in messages.

    Raises
    ------
    ConfigError
        If there is no such thing, or it is an archive of another kind.
    DataError
        If an archive cannot be read.
    """
    place = locate(url)
    if place.is_dir():
        return ImageFolder(url)
    if not place.exists():
        raise ConfigError(f"{flag} {url}: no such folder, tar or zip")
    suffix = PurePosixPath(place.name).suffix.lower()
    if not place.is_file():  # opening a pipe would wait for ever
        raise ConfigError(f"{flag} {url}: is neither a folder nor a file")
    if suffix in (".tar", ".zip"):
        return ImageArchive(url, _list_tar(url) if suffix == ".tar" else _list_zip(url))
    raise ConfigError(f"{flag} {url}: is neither a folder nor a .tar or .zip (unpack it first)")


class Catalog:
    """Finds the image that a ``file_name`` means."""

    def __init__(self, store: ImageStore) -> None:
        self.store = store
        self._names = store.names if isinstance(store.names, Mapping) else set(store.names)
        self._deepest = max((name.count("/") + 1 for name in self._names), default=0)
        self._by_ending: dict[int, dict[tuple[str, ...], list[str]]] = {}

    def find(self, file_name: str) -> tuple[str, str]:
        """Return the name in the store, and as what it is counted; empty where the JSON names it.

        A name that is not there is looked for under other folders (exporters write paths of their
        own machine), and in the other forms of `names`; it must be the only one, or the only one
        with the most folders in common.

        Raises
        ------
        BadPhoto
            ``bad-file-name``, ``missing-file`` or ``ambiguous-file``.
        """
        if not file_name or "\0" in file_name:
            raise BadPhoto("bad-file-name", f"file_name {file_name!r} is empty or holds a NUL")
        for name in (file_name, posixpath.normpath(file_name)):
            if name in self._names:
                return name, ""
        for kind, spelling in spellings(file_name):
            nearest = self._nearest(folded(spelling))
            if nearest:
                return self._only(file_name, nearest), kind
        same = self._releases.get(coco_number(file_name), [])
        if same:
            return self._only(file_name, same), "release_names"
        raise BadPhoto("missing-file", f"no {file_name!r} in {self.store.url}")

    def __str__(self) -> str:
        number = len(self._names)
        return f"{self.store.url}, which holds {number:,} files" + (
            f" such as {readable(min(self._names))!r:.80}" if number else ""
        )

    def _only(self, file_name: str, found: Sequence[str]) -> str:
        if len(found) > 1:
            raise BadPhoto(
                "ambiguous-file",
                f"no {file_name!r} in {self.store.url}, and {len(found)} files of that name in "
                f"other folders: {', '.join(sorted(found)[:3])}",
            )
        if not found[0].isascii() and found[0] != readable(found[0]):
            raise BadPhoto("bad-file-name", f"{file_name!r} is not in UTF-8; rename the file")
        return found[0]

    def _nearest(self, parts: tuple[str, ...]) -> list[str]:
        """Return the names with the most last parts in common."""
        for length in range(min(len(parts), self._deepest), 0, -1):
            if nearest := self._ending(length).get(parts[-length:]):
                return nearest
        return []

    @cached_property
    def _releases(self) -> Mapping[str | None, list[str]]:
        """The names of COCO's images by their numbers."""
        by_number: dict[str | None, list[str]] = defaultdict(list)
        for name in self._names:
            number = coco_number(name)
            if number is not None:
                by_number[number].append(name)
        return by_number

    def _ending(self, length: int) -> Mapping[tuple[str, ...], list[str]]:
        """Return the names by their last parts, so many of them."""
        if length not in self._by_ending:
            by_ending = defaultdict(list)
            for name in self._names:
                parts = folded(readable(name))
                if len(parts) >= length:
                    by_ending[parts[-length:]].append(name)
            self._by_ending[length] = dict(by_ending)
        return self._by_ending[length]


def readable(name: str) -> str:
    """Replace bytes of a file name that are not valid UTF-8: JSON cannot hold them."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def image_names(store: ImageStore) -> Iterator[str]:
    """Yield the names of images, sorted: what there is to prepare where no JSON says it."""
    return filter(is_image_name, sorted(store.names))


def other_names(store: ImageStore) -> list[str]:
    """Return the names that are neither of images nor litter, sorted."""
    return sorted(name for name in store.names if not (is_image_name(name) or is_litter(name)))


def read_photo(location: PhotoPlace) -> bytes:
    """Return the bytes of an image.

    Raises
    ------
    BadPhoto
        ``missing-file``, ``unreadable-file``, ``file-too-large`` or ``damaged-archive``.
    """
    try:
        if location.stored is None:
            return locate(location.url).read_bytes(MAX_BYTES)
        if location.zipped is not None:
            return _unzip(location, location.stored, *location.zipped)
        return _range(location.url, location.offset, location.stored)
    except BadPhoto:
        raise
    except DataError as error:
        raise BadPhoto("file-too-large", str(error)) from None
    except ConfigError as error:
        raise BadPhoto("missing-file", str(error)) from None
    except OSError as error:
        reason = error.strerror or str(error)
        raise BadPhoto("unreadable-file", f"{location.url}: {reason}") from None


def _refuse_giant(size: int) -> None:
    if size > MAX_BYTES:
        raise BadPhoto("file-too-large", f"{size} bytes; at most {MAX_BYTES}")


def _range(url: str, offset: int, length: int) -> bytes:
    _refuse_giant(length)
    content = locate(url).read_range(offset, length)
    if len(content) < length:
        raise BadPhoto("damaged-archive", f"{url} ends inside the file, {len(content)} bytes in")
    return content


_LOCAL_HEADER = struct.Struct("<4s22xHH")  # APPNOTE.TXT 4.3.7: signature … name and extra lengths


def _unzip(location: PhotoPlace, stored: int, method: int, size: int, crc: int) -> bytes:
    if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        what = "encrypted" if method == -1 else f"compressed by method {method}"
        raise BadPhoto("unreadable-file", f"{location.url}: is {what}; repack the zip")
    _refuse_giant(size)
    header = _range(location.url, location.offset, _LOCAL_HEADER.size)
    signature, name, extra = _LOCAL_HEADER.unpack(header)
    content = _range(location.url, location.offset + _LOCAL_HEADER.size + name + extra, stored)
    if method == zipfile.ZIP_DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            content = inflater.decompress(content, size + 1)
        except zlib.error as error:
            raise BadPhoto("damaged-archive", f"{location.url}: {error}") from None
    if signature != b"PK\3\4" or len(content) != size or zlib.crc32(content) != crc:
        raise BadPhoto("damaged-archive", f"{location.url}: the file differs from its checksum")
    return content
