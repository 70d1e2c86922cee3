"""Walk the members of a tar, and refuse what no shard needs.

The standard library's `tarfile` reads archives of all times: it ends without a word at a broken
header and where a file was cut between two members, lets extended headers rename and resize what
follows them, and knows links, devices and files with holes. Each of these has hidden something from
somebody. Here a tar is a row of regular files, each of a kind that a sample is made of, up to its
end mark.
"""

import mmap
import re
import tarfile
import unicodedata
from collections.abc import Iterator
from typing import NoReturn

import msgspec

from ..errors import DataError

BLOCK = tarfile.BLOCKSIZE
MAX_MEMBER = 2**30
"""Larger members are refused: no image or mask has a gibibyte [bytes]."""
MAX_MEMBERS = 1_000_000
"""Of one shard; writers make shards of some thousand samples."""
MAX_NAME = 512
"""Of one name: the index is as wide as its longest key [bytes]."""
MAX_EXTENSION = 2**16
"""Of a PAX header or a long name; writers need some hundred [bytes]."""
KINDS = frozenset({"jpg", "jpeg", "png", "webp", "tif", "tiff", "bmp", "gif", "json"})

_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
_MAGICS = (b"ustar\x0000", b"ustar  \0", bytes(8))  # POSIX, GNU, and the tars before both
_WHAT = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.DIRTYPE: "a folder",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a file with holes (GNU sparse)",
    tarfile.GNUTYPE_LONGNAME: "a GNU long name",
    tarfile.GNUTYPE_LONGLINK: "a GNU long link name",
    tarfile.XHDTYPE: "a PAX header",
    tarfile.XGLTYPE: "a PAX header for all members",
}
_SHORT = (99, 100)  # bytes of a long name that writers also put into the plain header
_NAMING = (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME)
# What writers say in PAX headers that changes neither name, place nor size of a member.
_HARMLESS = re.compile(
    rb"[acm]time|[ug]id|[ug]name|comment|LIBARCHIVE\..+|SCHILY\.(dev|ino|nlink|fflags|xattr\..+)"
)
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # make text look like other


class Member(msgspec.Struct, frozen=True):
    """A regular file in a tar."""

    name: str
    offset: int
    """First byte of its content in the tar."""
    size: int
    """[bytes]."""

    @property
    def key(self) -> str:
        """What WebDataset calls ``__key__``: the name up to the first dot of its last part."""
        return self.name[: -len(self.extension) - 1]

    @property
    def extension(self) -> str:
        """What follows that dot."""
        return self.name.rpartition("/")[2].partition(".")[2]

    @property
    def kind(self) -> str:
        """The last part of the extension, lower case: ``png`` of ``seg.PNG``."""
        return self.extension.rpartition(".")[2].lower()


def walk(content: bytes | mmap.mmap, where: str, foreign: bool = False) -> Iterator[Member]:
    """Yield the members of a tar in their order.

    Parameters
    ----------
    content
        The whole file.
    where
        Named in errors.
    foreign
        Whether another program wrote it: folders are passed over, and PAX headers and GNU long
        names may give names that fit no plain header. Our own writer makes none of these.

    Raises
    ------
    DataError
        At the first thing that no writer of shards makes, and if there is no end mark, or anything
        behind it; begins with `where`.
    """
    for magic, program in _COMPRESSIONS.items():
        if content[: len(magic)] == magic:
            raise DataError(
                f"{where}: is not a tar but {program}; unpack it: ranges of it are read"
            )
    place = 0
    seen: dict[str, str] = {}
    told: _LongName | None = None
    while (block := content[place : place + BLOCK]).strip(b"\0"):
        at = _Place(where, place)
        header = _parse(block, at)
        data = place + BLOCK
        place = data + header.size + -header.size % BLOCK
        if place > len(content):
            at.refuse(f"{header.name!r} ends behind the end of the file: it was cut")
        if content[data + header.size : place].strip(b"\0"):
            at.refuse(f"{header.name!r} is filled up with something else than zeros")
        if foreign and header.type in _NAMING:
            if told is not None:
                at.refuse("two extended headers for one member")
            if header.size > MAX_EXTENSION:
                what = _WHAT[header.type]
                at.refuse(f"{what} of {header.size} bytes; at most {MAX_EXTENSION}")
            told = _LongName.read(header, content[data : data + header.size], at)
            continue
        name, told = header.name if told is None else told.settle(block, header, at), None
        folder = foreign and header.type == tarfile.DIRTYPE and not header.size
        if folder and name in (".", "./"):
            continue
        if problem := name_problem(name.removesuffix("/") if folder else name):
            at.refuse(f"the name {name!r} {problem}")
        if folder:
            continue
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            at.refuse(f"{name!r} is {_WHAT.get(header.type, 'of an unknown type')}, no file")
        member = Member(name, data, header.size)
        if not member.key.rpartition("/")[2] or member.kind not in KINDS:
            at.refuse(
                f"{name!r} is not a photo, mask or json of a sample: pack the shard without it"
            )
        same = folded(name)
        if same in seen:
            at.refuse(f"{name!r} is there already, as {seen[same]!r}")
        seen[same] = name
        if len(seen) > MAX_MEMBERS:
            at.refuse(f"more than {MAX_MEMBERS} members")
        yield member
    if told is not None:
        raise DataError(f"{where}: ends with an extended header that names nothing")
    _check_end(content, where, place)


def name_problem(name: str) -> str | None:
    """Say what is wrong with the name of a member, or of a shard, if anything is."""
    if len(name.encode(errors="surrogatepass")) > MAX_NAME:
        return f"has more than {MAX_NAME} bytes"
    if any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in name):
        return "holds control characters or is not valid UTF-8"
    if any(direction in name for direction in _DIRECTIONS):
        return "changes the direction of writing"
    if "\\" in name or name.startswith("/") or name[1:2] == ":":
        return "is absolute or holds a backslash"
    if not all(key_path(name).split("/")) or {".", ".."} & set(_parts(name)):
        return "is empty, or has a part that is empty, '.' or '..'"
    return None


def key_path(key: str) -> str:
    """Return the plain relative path for files of a sample: tar writes ``./`` before all names."""
    return key.removeprefix("./")


def folded(name: str) -> str:
    """Return what names have in common that some file systems take for one."""
    plain = unicodedata.normalize("NFC", key_path(name)).casefold()
    return unicodedata.normalize("NFC", plain)


def _parts(name: str) -> list[str]:
    return key_path(name).split("/")


class _Place(msgspec.Struct, frozen=True):
    where: str
    offset: int

    def refuse(self, what: str) -> NoReturn:
        raise DataError(f"{self.where}: byte {self.offset}: {what}")


def _parse(block: bytes, at: _Place) -> tarfile.TarInfo:
    """Read one header; the member's name may still be told by an extended one."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        at.refuse(f"is not a tar header ({error}): the tar is damaged, or no tar")
    if block[257:265] not in _MAGICS:
        at.refuse("is the header of an unknown kind of tar")
    if block[:100].partition(b"\0")[2].strip(b"\0"):
        at.refuse("hides something behind a name")
    if not 0 <= header.size <= MAX_MEMBER:
        at.refuse(f"{header.name!r} claims {header.size} bytes; at most {MAX_MEMBER}")
    return header


class _LongName(msgspec.Struct, frozen=True):
    """What an extended header says of the next member: its name, or nothing that matters."""

    name: bytes | None
    size: bytes | None = None

    @classmethod
    def read(cls, header: tarfile.TarInfo, content: bytes, at: _Place) -> "_LongName":
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return cls(content.removesuffix(b"\0"))
        records = _pax_records(content, at)
        return cls(records.get(b"path"), records.get(b"size"))

    def settle(self, block: bytes, header: tarfile.TarInfo, at: _Place) -> str:
        """Return the name of the member whose plain header follows."""
        if self.size is not None and self.size != b"%d" % header.size:
            at.refuse(f"a PAX header gives {header.name!r} another size")
        if self.name is None:
            return header.name
        try:
            name = self.name.decode()
        except UnicodeDecodeError:
            at.refuse(f"the long name {self.name!r} is not valid UTF-8")
        # Readers without PAX see the short name: what fits of the long one, in UTF-8 or ASCII.
        fits = {
            long[:width]
            for long in (self.name, name.encode("ascii", "replace"))
            for width in _SHORT
        }
        if block[:100].rstrip(b"\0") not in fits and header.name != name:
            at.refuse(f"an extended header calls {header.name!r} {name!r}")
        return name


def _pax_records(content: bytes, at: _Place) -> dict[bytes, bytes]:
    """Read ``LENGTH KEYWORD=VALUE`` lines (POSIX.1-2001, pax, "Extended Header")."""
    records: dict[bytes, bytes] = {}
    while content:
        digits = content[:6].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record, content = content[:length], content[length:]
        keyword, sign, value = record[len(digits) + 1 :].partition(b"=")
        if len(record) < length or not sign or not value.endswith(b"\n") or keyword in records:
            at.refuse("a PAX header that cannot be read")
        if keyword not in (b"path", b"size") and not _HARMLESS.fullmatch(keyword):
            at.refuse(f"a PAX header says {keyword.decode(errors='replace')!r}: repack the shard")
        records[keyword] = value[:-1]
    return records


def _check_end(content: bytes | mmap.mmap, where: str, place: int) -> None:
    if content[place : place + 2 * BLOCK] != bytes(2 * BLOCK) or len(content) % BLOCK:
        raise DataError(
            f"{where}: has no end mark at byte {place}, two empty blocks: it was cut, or never "
            "finished"
        )
    for start in range(place, len(content), MAX_EXTENSION):
        if content[start : start + MAX_EXTENSION].strip(b"\0"):
            raise DataError(f"{where}: holds something behind its end mark at byte {place}")
