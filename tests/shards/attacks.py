"""Shards that were damaged or forged: what no reader may take for good.

Each attack is a function that returns the bytes of a tar, given the members of a good one. `sign`
makes index and manifest fit an attacked shard again, as somebody would who can write all files.
"""

import functools
import gzip
import io
import itertools
import json
import os
import pickle
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cocoseg.shards.manifest import (
    IndexRow,
    build_index,
    member_digest,
    publish_index,
    read_index,
    read_manifest,
)
from cocoseg.storage import locate
from msgspec import structs, to_builtins
from PIL import Image

SHARD = "shard-000000.tar"
BLOCK = 512
END = bytes(2 * BLOCK)

Members = list[tuple[str, bytes]]
"""Names and contents, three a sample: image, mask, json."""


class Payload:
    """Writes a file when unpickled: nobody may do that."""

    def __reduce__(self):
        return os.mkdir, ("unpickled-by-a-reader",)


PICKLE = pickle.dumps(Payload())


def header(name, size=0, kind=b"0", link=b"", magic=b"ustar\x0000", size_field=None):
    """One block; fields may hold what no library would write."""
    block = bytearray(BLOCK)
    encoded = name if isinstance(name, bytes) else name.encode()
    for place, field in (
        (0, encoded[:100]),
        (100, b"0000644\0"),
        (108, b"0000000\0"),
        (116, b"0000000\0"),
        (124, b"%011o\0" % size if size_field is None else size_field),
        (136, b"00000000000\0"),
        (156, kind),
        (157, link),
        (257, magic),
    ):
        block[place : place + len(field)] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def entry(name, content=b"", **fields):
    return header(name, len(content), **fields) + content + bytes(-len(content) % BLOCK)


def pax(kind=b"x", **records):
    lines = b""
    for keyword, value in records.items():
        line = b" " + keyword.replace("__", ".").encode() + b"=" + str(value).encode() + b"\n"
        length = len(line) + 2
        length = len(line) + len(str(length)) if len(str(length)) != 2 else length
        lines += str(length).encode() + line
    return entry("PaxHeaders/x", lines, kind=kind)


def tar(*blocks):
    whole = b"".join(blocks) + END
    return whole + bytes(-len(whole) % tarfile.RECORDSIZE)


def plain(members):
    return [entry(name, content) for name, content in members]


def replaced(members, place, content=None, name=None):
    changed = list(members)
    changed[place] = (name or changed[place][0], changed[place][1] if content is None else content)
    return tar(*plain(changed))


def with_block(block, at=3):
    """Put blocks between two samples."""

    def attack(members):
        blocks = plain(members)
        return tar(*blocks[:at], block, *blocks[at:])

    return attack


def before_first(block):
    return with_block(block, at=0)


def copied_sample(members, key):
    old = members[0][0].partition(".")[0]
    return [(name.replace(old, key), content) for name, content in members[:3]]


def png_chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width, height, *chunks, color=0):
    head = struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0)
    body = b"".join(chunks)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + body + png_chunk(b"IEND", b"")


@functools.cache
def zeros(count):
    """Deflated zeros, a thousandth of their size."""
    deflate = zlib.compressobj(9)
    piece = bytes(2**20)
    parts = [deflate.compress(piece) for _ in range(count // len(piece))]
    return b"".join(parts) + deflate.compress(bytes(count % len(piece))) + deflate.flush()


def size_of(photo):
    with Image.open(io.BytesIO(photo)) as image:
        return image.size


def claimed_png_bomb(members):
    return replaced(members, 1, png(65000, 65000, png_chunk(b"IDAT", zeros(2**24))))


def real_png_bomb(members):
    """169 million pixels that are all there: below Pillow's limit."""
    return replaced(members, 1, png(13000, 13000, png_chunk(b"IDAT", zeros(13000 * 13001))))


def text_png_bomb(members):
    """The right size, and a text beside it that unpacks to 256 MiB."""
    width, height = size_of(members[0][1])
    text = png_chunk(b"zTXt", b"Comment\0\0" + zeros(2**28))
    return replaced(
        members, 1, png(width, height, text, png_chunk(b"IDAT", zeros((width + 1) * height)))
    )


def jpeg_claiming(photo, width, height):
    at = next(photo.index(mark) for mark in (b"\xff\xc0", b"\xff\xc2") if mark in photo)
    return photo[: at + 5] + struct.pack(">HH", height, width) + photo[at + 9 :]


def jpeg_bomb(members):
    return replaced(members, 0, jpeg_claiming(members[0][1], 65000, 65000))


def small_jpeg_bomb(members):
    """169 million pixels, below Pillow's limit: decoding them takes half a gigabyte."""
    return replaced(members, 0, jpeg_claiming(members[0][1], 13000, 13000))


def palette_mask(members):
    with Image.open(io.BytesIO(members[1][1])) as mask:
        buffer = io.BytesIO()
        image = Image.fromarray(np.asarray(mask)).convert("P")
        image.save(buffer, "PNG")
    return replaced(members, 1, buffer.getvalue())


def two_headers_in_one_png(members):
    """A mask of the right size by its first header, and of another by its second."""
    width, height = size_of(members[0][1])
    second = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 8000, 8, 0, 0, 0, 0))
    data = png_chunk(b"IDAT", zeros(20000 * 8000))
    return replaced(members, 1, png(width, height, second, data))


def wrong_checksum_in_mask(members):
    mask = bytearray(members[1][1])
    mask[-13] ^= 1  # the CRC of the last IDAT
    return replaced(members, 1, bytes(mask))


def swapped_masks(members):
    changed = list(members)
    changed[1], changed[4] = (members[1][0], members[4][1]), (members[4][0], members[1][1])
    return tar(*plain(changed))


def swapped_image_and_mask(members):
    changed = list(members)
    changed[0], changed[1] = (members[0][0], members[1][1]), (members[1][0], members[0][1])
    return tar(*plain(changed))


def short_size(members):
    """The first photo claims fewer bytes: the next header would be read amidst its pixels."""
    name, content = members[0]
    blocks = plain(members)
    blocks[0] = header(name, len(content) - BLOCK) + blocks[0][BLOCK:]
    return tar(*blocks)


def broken_checksum(members):
    blocks = plain(members)
    blocks[3] = blocks[3][:150] + b"9" + blocks[3][151:]
    return tar(*blocks)


def concatenated(members):
    return tar(*plain(members)) + tar(*plain(copied_sample(members, "000000999999")))


def inner_end(members):
    blocks = plain(members)
    return tar(*blocks[:3], END, *blocks[3:])


def empty_block_inside(members):
    blocks = plain(members)
    return tar(*blocks[:3], bytes(BLOCK), *blocks[3:])


def padding_that_speaks(members):
    blocks = plain(members)
    blocks[2] = blocks[2][:-5] + b"evil!"
    return tar(*blocks)


def oversized(field):
    def attack(members):
        blocks = plain(members)
        blocks[3] = header(members[3][0], size_field=field) + blocks[3][BLOCK:]
        return tar(*blocks)

    return attack


def without_sample(members):
    return tar(*plain(members[3:]))


def member_gone(place):
    return lambda members: tar(*plain(members[:place] + members[place + 1 :]))


def json_is(content):
    return lambda members: replaced(members, 2, content)


def photo_is(content):
    return lambda members: replaced(members, 0, content)


def mask_is(content):
    return lambda members: replaced(members, 1, content)


def extra(name, content=b"x", **fields):
    return with_block(entry(name, content, **fields))


def beside(extension, content):
    """A further member of the first sample."""

    def attack(members):
        key = members[0][0].partition(".")[0]
        blocks = plain(members)
        return tar(*blocks[:3], entry(f"{key}.{extension}", content), *blocks[3:])

    return attack


def pax_before_first(**records):
    return before_first(pax(**records))


def pax_sparse(members):
    name, content = members[0]
    records = {"GNU__sparse__major": 1, "GNU__sparse__minor": 0, "GNU__sparse__realsize": 2**40}
    records["GNU__sparse__name"] = name
    return tar(
        pax(**records), entry(name, b"0\n".ljust(BLOCK, b"\0") + content), *plain(members[1:])
    )


def resized_by_pax(members):
    return pax_before_first(size=len(members[0][1]) - 7)(members)


def same_keys_as(change):
    return lambda members: tar(
        *plain(members), *plain(copied_sample(members, change(members[0][0].partition(".")[0])))
    )


def composed_and_decomposed(members):
    keys = ("caf\u00e9", "cafe\u0301")
    return tar(*plain(members), *(b for key in keys for b in plain(copied_sample(members, key))))


def upper_and_lower(members):
    keys = ("photo-a", "PHOTO-A")
    return tar(*plain(members), *(b for key in keys for b in plain(copied_sample(members, key))))


def json_in_another_case(members):
    name = members[2][0].upper()
    return tar(*plain(members[:3]), entry(name, b"{}"), *plain(members[3:]))


@dataclass(frozen=True)
class Attack:
    """One way to spoil a shard."""

    forge: Callable[[Members], bytes]
    foreign: bool = True
    """Whether `index` refuses it too: not what other writers may do."""
    signed: bool = True
    """Whether there is any way to sign it that leaves something to be found."""
    fools: bool = False
    """Whether the reader must believe it once it is signed: it decodes what it is given."""
    costly: bool = False
    """Whether decoding it without a look at its header takes much memory."""


ATTACKS: dict[str, Attack] = {
    "path traversal": Attack(extra("../../evil.jpg")),
    "path traversal inside": Attack(extra("a/../../evil.jpg")),
    "absolute name": Attack(extra("/tmp/evil.jpg")),
    "drive letter": Attack(extra("C:/evil.jpg")),
    "backslash": Attack(extra("..\\evil.jpg")),
    "name behind NUL": Attack(extra(b"a.jpg\0/../evil.sh")),
    "control character": Attack(extra("a\x1b[2J.jpg")),
    "line feed": Attack(extra("a\nb.jpg")),
    "invalid UTF-8": Attack(extra(b"a\xff.jpg")),
    "right to left": Attack(extra("a\u202egpj.jpg")),
    "empty name": Attack(extra("")),
    "no extension": Attack(extra("README")),
    "hidden file": Attack(extra(".jpg")),
    "long name by prefix": Attack(extra("x" * 90 + "/../a.jpg")),
    "symbolic link": Attack(extra("a.jpg", b"", kind=b"2", link=b"/etc/passwd")),
    "hard link": Attack(extra("a.jpg", b"", kind=b"1", link=b"/etc/passwd")),
    "character device": Attack(extra("a.jpg", b"", kind=b"3")),
    "block device": Attack(extra("a.jpg", b"", kind=b"4")),
    "pipe": Attack(extra("a.jpg", b"", kind=b"6")),
    "folder": Attack(extra("a", b"", kind=b"5"), foreign=False),
    "folder above": Attack(extra("..", b"", kind=b"5")),
    "folder with bytes": Attack(extra("a", b"x" * 600, kind=b"5")),
    "contiguous file": Attack(extra("a.jpg", kind=b"7")),
    "unknown type": Attack(extra("a.jpg", kind=b"Z")),
    "unknown kind of tar": Attack(extra("a.jpg", magic=b"rats!\x0000")),
    "GNU sparse": Attack(extra("a.jpg", kind=b"S", magic=b"ustar  \0")),
    "PAX sparse": Attack(pax_sparse),
    "PAX path": Attack(pax_before_first(path="evil.jpg")),
    "PAX path traversal": Attack(pax_before_first(path="../../evil.jpg")),
    "PAX size": Attack(resized_by_pax),
    "PAX hdrcharset": Attack(pax_before_first(hdrcharset="BINARY")),
    "PAX linkpath": Attack(pax_before_first(linkpath="/etc/passwd")),
    "PAX that cannot be read": Attack(before_first(entry("p", b"999 path=x\n", kind=b"x"))),
    "PAX of negative length": Attack(before_first(entry("p", b"-5 path=x\n", kind=b"x"))),
    "PAX twice": Attack(before_first(pax(mtime=1.5) + pax(mtime=2.5))),
    "PAX for all": Attack(before_first(pax(b"g", path="evil.jpg"))),
    "PAX at the end": Attack(lambda members: tar(*plain(members), pax(mtime=1.5))),
    "PAX bomb": Attack(before_first(entry("p", b"9" * 2**20, kind=b"x"))),
    "GNU long name": Attack(before_first(entry("././@LongLink", b"evil.jpg\0", kind=b"L"))),
    "GNU long name bomb": Attack(before_first(entry("././@LongLink", b"a" * 2**20, kind=b"L"))),
    "GNU long link": Attack(before_first(entry("././@LongLink", b"/etc/passwd\0", kind=b"K"))),
    "pickle beside": Attack(beside("pkl", PICKLE)),
    "pickle by another name": Attack(beside("pyd", PICKLE)),
    "array beside": Attack(beside("npy", b"\x93NUMPY")),
    "gzip beside": Attack(beside("json.gz", gzip.compress(b"{}"))),
    "second image": Attack(beside("webp", b"RIFF")),
    "second mask": Attack(beside("seg.png", b"\x89PNG")),
    "gzipped tar": Attack(lambda members: gzip.compress(tar(*plain(members)), 1)),
    "a member twice": Attack(lambda members: tar(*plain([*members[:3], members[2], *members[3:]]))),
    "a key twice": Attack(same_keys_as(lambda key: key)),
    "keys that differ in case": Attack(upper_and_lower),
    "keys that differ in their Unicode form": Attack(composed_and_decomposed),
    "json in another case": Attack(json_in_another_case),
    "PNG bomb by its header": Attack(claimed_png_bomb, costly=True),
    "PNG bomb": Attack(real_png_bomb, costly=True),
    "PNG bomb of text": Attack(text_png_bomb, costly=True),
    "PNG of two headers": Attack(two_headers_in_one_png, costly=True),
    "JPEG bomb": Attack(jpeg_bomb, costly=True),
    "JPEG bomb below the limit": Attack(small_jpeg_bomb, costly=True),
    "photo is a pickle": Attack(photo_is(PICKLE)),
    "photo is gzip": Attack(photo_is(gzip.compress(b"x" * 999))),
    "photo is empty": Attack(photo_is(b"")),
    "photo is text": Attack(photo_is(b"<html>404</html>")),
    "mask is a pickle": Attack(mask_is(PICKLE)),
    "mask is empty": Attack(mask_is(b"")),
    "mask of a palette": Attack(palette_mask),
    "mask with a wrong checksum": Attack(wrong_checksum_in_mask, fools=True),
    "json is deep": Attack(json_is(b"[" * 10**6), costly=True),
    "json is deep in objects": Attack(json_is(b'{"a":' * 10**6), costly=True),
    "json is cut": Attack(json_is(b'{"width": 1')),
    "json is a pickle": Attack(json_is(PICKLE)),
    "swapped masks": Attack(swapped_masks, foreign=False, fools=True),
    "swapped image and mask": Attack(swapped_image_and_mask),
    "image is gone": Attack(member_gone(0)),
    "mask is gone": Attack(member_gone(1)),
    "json is gone": Attack(member_gone(2), foreign=False),
    "sample is gone": Attack(without_sample, foreign=False, signed=False),
    "second archive": Attack(concatenated),
    "trailing garbage": Attack(lambda members: tar(*plain(members)) + b"x" * BLOCK),
    "no end mark": Attack(lambda members: b"".join(plain(members))),
    "half an end mark": Attack(lambda members: b"".join(plain(members)) + bytes(BLOCK)),
    "end mark inside": Attack(inner_end),
    "empty block inside": Attack(empty_block_inside),
    "padding that speaks": Attack(padding_that_speaks),
    "broken checksum": Attack(broken_checksum),
    "size too short": Attack(short_size),
    "size beyond the end": Attack(oversized(b"77777777777\0")),
    "size of 2^63": Attack(oversized(b"\x80" + bytes(3) + b"\x80" + bytes(7))),
    "negative size": Attack(oversized(b"\xff" * 12)),
    "size that is no number": Attack(oversized(b"0x0000000ff\0")),
}


def members_of(path: Path) -> Members:
    with tarfile.open(path, "r:") as archive:
        return [(info.name, archive.extractfile(info).read()) for info in archive]


def sign(folder: Path) -> None:
    """Make index and manifest fit the first shard again: what a plain look makes of it.

    Rows of new keys repeat what the first one says of size and classes.
    """
    manifest = read_manifest(str(folder))
    index = read_index(str(folder), manifest)
    rows = [index.row(position) for position in range(len(index))]
    first = manifest.shards[0].samples
    content = (folder / SHARD).read_bytes()
    rows[:first] = _rows_of(content, rows[:first])
    sizes = [len(rows) - sum(shard.samples for shard in manifest.shards[1:])]
    sizes += [shard.samples for shard in manifest.shards[1:]]
    ends = np.cumsum([0, *sizes])
    parts = [rows[a:b] for a, b in itertools.pairwise(ends)]
    index = build_index(parts)
    index_entry, classes_entry = publish_index(locate(folder), index)
    shards = [structs.replace(s, samples=n) for s, n in zip(manifest.shards, sizes, strict=True)]
    shards[0] = structs.replace(
        shards[0], bytes=len(content), sha256=locate(folder / SHARD).sha256()
    )
    pixels = np.zeros(256, np.int64)
    np.add.at(pixels, index.classes["train_id"], index.classes["pixels"])
    signed = structs.replace(
        manifest,
        shards=tuple(shards),
        samples=sum(sizes),
        bytes=sum(shard.bytes for shard in shards),
        class_pixels=tuple(pixels[: len(manifest.class_pixels)].tolist()),
        ignored_pixels=int(pixels[255]),
        index=index_entry,
        index_classes=classes_entry,
    )
    (folder / "manifest.json").write_text(json.dumps(to_builtins(signed)))


def _plain_walk(content: bytes) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of regular files, as far as it goes.

    `tarfile` does not serve: it never returns from some of the attacks (Python 3.11).
    """
    place = 0
    while (block := content[place : place + BLOCK]).strip(b"\0"):
        try:
            size = int(block[124:136].strip(b" \0"), 8)
        except ValueError:
            return
        if block[156:157] == b"0":
            yield block[:100].partition(b"\0")[0].decode(errors="replace"), place + BLOCK, size
        place += BLOCK + size + -size % BLOCK


def _rows_of(content: bytes, rows: list[IndexRow]) -> list[IndexRow]:
    places: dict[str, dict[str, tuple[int, int]]] = {}
    for name, offset, size in _plain_walk(content):
        key, _, extension = name.partition(".")
        places.setdefault(key, {})[extension] = (offset, size)
    signed = []
    old = {row.key: row for row in rows}
    for key in places if len(places) >= len(rows) else old:
        row, there = old.get(key, rows[0]), places.get(key, {})
        own = [
            there.get(name) or (min(row.offsets[i], len(content)), 0)
            for i, name in enumerate((row.extension, "png", "json"))
        ]
        own = [(offset, min(size, len(content) - offset)) for offset, size in own]
        signed.append(
            structs.replace(
                row,
                key=key,
                offsets=tuple(offset for offset, _ in own),
                lengths=tuple(size for _, size in own),
                digests=tuple(member_digest(content[o : o + n]) for o, n in own),
            )
        )
    return signed
