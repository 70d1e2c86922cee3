"""Whatever is wrong with JSON, annotations, photographs or archives: never a wrong mask or a crash.

One table. Each case spoils a data set of three images, the third of which is the victim, and says
how the command line must end: refused as a whole (nothing is published), the victim quarantined,
or accepted and counted.
"""

import gzip
import io
import json
import os
import signal
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

WIDTH, HEIGHT = 16, 12
SOUND = [[1, 1, 9, 1, 9, 9, 1, 9]]
VICTIM, SPOILT = 3, 77  # the image and the annotation at fault


@dataclass(frozen=True)
class Case:
    """What is done to the data set, and how the command must end."""

    spoil: Callable[[Any], Path | None]
    """Changes the set before its JSON is written; may return an archive to take for the images."""
    code: int
    says: str
    """In the message (codes 2 and 3), the reason code (4), or the name of a count (0)."""
    detail: str = ""
    """In the detail of the quarantined images."""
    annotation: int | None = None
    images: tuple[int, ...] = (VICTIM,)
    """Those that are quarantined."""
    text: Callable[[bytes], bytes] = field(default=bytes)
    """Changes the bytes of the JSON."""
    flags: tuple[str, ...] = ()
    verified: bool = True
    """Whether ``verify``, which decodes every pixel, finds nothing wrong either."""


# ---- the JSON as a whole


def text(change: Callable[[bytes], bytes], code: int, says: str, **more: Any) -> Case:
    return Case(lambda coco: None, code, says, text=change, **more)


def swapped(old: str, new: str, says: str) -> Case:
    """Replace the last occurrence in the JSON, which is the victim's, and be refused."""

    def change(content: bytes) -> bytes:
        head, found, tail = content.rpartition(old.encode())
        assert found, old
        return head + new.encode("utf-8", "surrogateescape") + tail

    return text(change, 3, says)


def first(key: str, **values: Any) -> Callable[[Any], None]:
    """Change the last entry of a top-level list; None removes what is ``...``."""

    def spoil(coco: Any) -> None:
        entry = coco.content[key][-1]
        for name, value in values.items():
            if value is ...:
                del entry[name]
            else:
                entry[name] = value

    return spoil


def refused(spoil: Callable[[Any], Any], says: str, code: int = 3) -> Case:
    return Case(spoil, code, says)


def without(key: str) -> Callable[[Any], None]:
    def spoil(coco: Any) -> None:
        del coco.content[key]

    return spoil


def more(image_id: int, **settings: Any) -> Callable[[Any], None]:
    """Draw one more image."""

    def spoil(coco: Any) -> None:
        coco.photo(image_id, **settings)

    return spoil


def doubled(key: str) -> Callable[[Any], None]:
    return lambda coco: coco.content[key].append(dict(coco.content[key][-1]))


DEEP = 100_000
FILES = {
    "empty": text(lambda c: b"", 3, "is empty"),
    "spaces": text(lambda c: b" \n\t", 3, "is not JSON"),
    "HTML": text(lambda c: b"<!DOCTYPE html><p>404", 3, "is not JSON"),
    "a JPEG": text(lambda c: jpeg(), 3, "is not JSON"),
    "gzip": text(gzip.compress, 3, "is compressed (gzip)"),
    "cut after a byte": text(lambda c: c[:1], 3, "is not JSON"),
    "cut in images": text(lambda c: c[: len(c) // 4], 3, "is not JSON"),
    "cut in annotations": text(lambda c: c[: len(c) * 2 // 3], 3, "is not JSON"),
    "cut before the last brace": text(lambda c: c[:-1], 3, "is not JSON"),
    "twice in one file": text(lambda c: c + c, 3, "is not JSON"),
    "trailing zeros": text(lambda c: c + bytes(512), 3, "is not JSON"),
    "trailing comma": text(lambda c: c[:-1] + b",}", 3, "is not JSON"),
    "single quotes": text(lambda c: c.replace(b'"', b"'"), 3, "is not JSON"),
    "a comment": text(lambda c: b"// COCO\n" + c, 3, "is not JSON"),
    "a hole of zeros": text(lambda c: c[:99] + bytes(99) + c[198:], 3, "is not JSON"),
    "a list": text(lambda c: b"[" + c + b"]", 3, "is not COCO"),
    "null": text(lambda c: b"null", 3, "is not COCO"),
    "a string": text(lambda c: b'"images"', 3, "is not COCO"),
    "an empty object": text(lambda c: b"{}", 3, "is missing"),
    "images twice": text(lambda c: b'{"images":[],' + c[1:], 3, "given twice"),
    "annotations twice": text(lambda c: c[:-1] + b',"annotations":[]}', 3, "given twice"),
    "categories twice": text(lambda c: c[:-1] + b',"categories":[]}', 3, "given twice"),
    "images twice, escaped": text(lambda c: c[:-1] + b',"\\u0069mages":[]}', 3, "given twice"),
    "info twice": text(lambda c: b'{"info":0,"info":0,' + c[1:], 3, "given twice"),
    "leading zero": swapped("[[1, 1,", "[[01, 1,", "is not JSON"),
    "hexadecimal": swapped("[[1, 1,", "[[0x1, 1,", "is not JSON"),
    "broken UTF-8 in a name": swapped("3.jpg", "\udcff.jpg", "is not JSON"),
    "half a surrogate pair": swapped("3.jpg", "\\ud83d.jpg", "is not JSON"),
    "nested too deep": swapped("[[1, 1,", "[" * DEEP + "]" * DEEP + ",[[1, 1,", "recursion"),
    "objects nested too deep": text(
        lambda c: c[:-1] + b',"x":' + b'{"x":' * DEEP + b"0" + b"}" * (DEEP + 1), 3, "recursion"
    ),
    "images missing": refused(without("images"), "$.images is missing"),
    "annotations missing": Case(
        lambda coco: coco.content.update(labels=coco.content.pop("annotations")),
        3,
        "$.annotations is missing",
    ),
    "categories missing": refused(without("categories"), "$.categories is missing"),
    "images null": refused(lambda coco: coco.content.update(images=None), "`$.images`"),
    "images an object": refused(lambda coco: coco.content.update(images={"1": {}}), "`$.images`"),
    "images of names": refused(lambda coco: coco.content["images"].append("4.jpg"), "[3]`"),
    "images empty": refused(lambda c: c.content.update(images=[], annotations=[]), "is empty"),
    "a null among annotations": refused(lambda c: c.content["annotations"].append(None), "[3]`"),
    "image id twice": refused(doubled("images"), "$.images: id 3 is given 2 times"),
    "category id twice": refused(
        lambda c: c.content["categories"].append({"id": 7, "name": "bird"}),
        "$.categories: id 7 is given 2 times",
    ),
}

# ---- ids, sizes and names in it

IMAGES, ANNOTATIONS, CATEGORIES = "`$.images[2].", "`$.annotations[2].", "`$.categories[2]."
FIELDS = {
    **{
        f"image id {value!r:.20}": refused(first("images", id=value), f"{IMAGES}id`")
        for value in ("x", "3.5", True, 3.5, None, [], 10**30)
    },
    **{
        f"annotation id {value!r:.20}": refused(first("annotations", id=value), f"{ANNOTATIONS}id`")
        for value in ("x", True, 77.5, {}, -(2**63) - 1)
    },
    **{
        f"category id {value!r:.20}": refused(first("categories", id=value), f"{CATEGORIES}id`")
        for value in ("x", False, 7.5, None)
    },
    **{
        f"image_id {value!r:.20}": refused(
            first("annotations", image_id=value), f"{ANNOTATIONS}image_id`"
        )
        for value in ("x", True, 3.5, None, 10**4000)
    },
    **{
        f"category_id {value!r:.20}": refused(
            first("annotations", category_id=value), f"{ANNOTATIONS}category_id`"
        )
        for value in ("x", True, 1.5, None, 10**4000)
    },
    "unknown image": refused(first("annotations", image_id=99), "(id 77): image_id 99 is not in"),
    "unknown category": refused(first("annotations", category_id=0), "(id 77): category_id 0"),
    "image id missing": refused(first("images", id=...), "missing required field `id`"),
    "image_id missing": refused(first("annotations", image_id=...), "field `image_id`"),
    "category_id missing": refused(first("annotations", category_id=...), "field `category_id`"),
    "width missing": refused(first("images", width=...), "missing required field `width`"),
    "width null": refused(first("images", width=None), f"{IMAGES}width`"),
    "width a string": refused(first("images", width="x"), f"{IMAGES}width`"),
    "width a float": refused(first("images", width=16.5), f"{IMAGES}width`"),
    "height a bool": refused(first("images", height=True), f"{IMAGES}height`"),
    "file_name missing": refused(first("images", file_name=...), "field `file_name`"),
    "file_name null": refused(first("images", file_name=None), f"{IMAGES}file_name`"),
    "file_name a number": refused(first("images", file_name=3), f"{IMAGES}file_name`"),
    "category name null": refused(first("categories", name=None), f"{CATEGORIES}name`"),
    "crowd a string": refused(first("annotations", iscrowd="no"), f"{ANNOTATIONS}iscrowd`"),
    "crowd a float": refused(first("annotations", iscrowd=0.5), f"{ANNOTATIONS}iscrowd`"),
}


def entered(reason: str, detail: str = "", **values: Any) -> Case:
    """Quarantine the victim for its entry in ``images``."""
    return Case(first("images", **values), 4, reason, detail)


def rival(name: str, images: tuple[int, ...], reason: str = "shared-file") -> Case:
    """Enter a fourth image of this file name."""
    detail = "2 images are this file" if reason == "shared-file" else ""
    return Case(lambda coco: coco.entry(4, name), 4, reason, detail, images=images)


ENTRIES = {
    "width 0": entered("bad-size", "0 x 12", width=0),
    "height negative": entered("bad-size", "16 x -12", height=-12),
    "width of 31 digits": entered("bad-size", "annotated as 1000", width=10**30),
    "width of 4,001 digits": entered("bad-size", "annotated as 1000", width=10**4000),
    "width 2^31": entered("bad-size", "2147483648", width=2**31),
    "50,000 x 50,000 annotated": entered("size-mismatch", "16 x 12", width=50_000, height=50_000),
    "width and height swapped": entered("size-mismatch", "12 x 16", width=12, height=16),
    "one pixel too wide": entered("size-mismatch", "17 x 12", width=17),
    "name empty": entered("bad-file-name", "empty", file_name=""),
    "name with NUL": entered("bad-file-name", "NUL", file_name="3.jpg\0.png"),
    "name absolute": entered("missing-file", "'/etc/passwd'", file_name="/etc/passwd"),
    "name of Windows": entered("missing-file", "no ", file_name="C:\\data\\4.jpg"),
    "name a URL": entered("missing-file", file_name="https://example.com/4.jpg?d=5.jpg"),
    "name a URL without a path": entered("missing-file", file_name="https://3.jpg"),
    "name a bad URL": entered("missing-file", file_name="https://[3.jpg"),
    "name a pipe:": entered("missing-file", file_name="pipe://cat 3.jpg"),
    "name leads out": entered("missing-file", file_name="../instances.json"),
    "name leads out, encoded": entered("missing-file", file_name="%2e%2e%2Finstances.json"),
    "name a folder that leads out": entered("missing-file", file_name="3.jpg/.."),
    "name a dot": entered("missing-file", "no '.'", file_name="."),
    "name another's folder": entered("missing-file", file_name="1.jpg/9.jpg"),
    "name of a million letters": entered("missing-file", "xxx…", file_name="x" * 10**6),
    "name with a line feed": entered("missing-file", "\\n", file_name="3\n.jpg"),
    "two images one file": rival("3.jpg", (3, 4)),
    "two spellings of one file": rival("./3.jpg", (3, 4)),
    "two cases of one file": rival("3.JPG", (4,), "missing-file"),
    "a folder before the name of another": rival("train/3.jpg", (4,), "missing-file"),
}

# ---- its annotations


def instance(segmentation: Any, code: int, says: str, detail: str = "", **more: Any) -> Case:
    """Give the victim an instance; a str is raw JSON."""
    if isinstance(segmentation, str):
        return Case(
            first("annotations", segmentation="HERE", **more),
            code,
            says,
            detail,
            annotation=SPOILT if code == 4 else None,
            text=lambda content: content.replace(b'"HERE"', segmentation.encode("latin-1")),
        )
    return Case(
        first("annotations", segmentation=segmentation, **more),
        code,
        says,
        detail,
        annotation=SPOILT if code == 4 else None,
    )


def bad(segmentation: Any, reason: str, detail: str = "", **more: Any) -> Case:
    return instance(segmentation, 4, reason, detail, **more)


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"size": list(size) if isinstance(size, tuple) else size, "counts": counts}


SEGMENTATIONS = {
    "a word": bad([["one", 1, 5, 1, 5, 5]], "bad-polygon", "flat list of numbers"),
    "NaN as text": bad([["NaN", 1, 5, 1, 5, 5]], "bad-polygon", "flat list of numbers"),
    "1e999 as text": bad([["1e999", 1, 5, 1, 5, 5]], "coordinates-far-off", "inf"),
    "null among coordinates": bad([[None, 1, 5, 1, 5, 5]], "bad-polygon", "segmentation[0]"),
    "a bool among coordinates": bad([[True, 1, 5, 1, 5, 5]], "bad-polygon"),
    "two points as pairs": bad([[[1, 1], [5, 1]]], "bad-polygon", "4 numbers"),
    "points as triples": bad([[[1, 1, 0], [5, 1, 0], [5, 5, 0]]], "bad-polygon"),
    "single points": bad([[1, 1], [5, 1], [5, 5]], "bad-polygon", "2 numbers"),
    "a box not in a list": bad([1, 1, 5, 5], "bad-polygon", "4 numbers"),
    "an odd polygon": bad([[1, 1, 5, 1, 5, 5, 1]], "bad-polygon", "7 numbers"),
    "a polygon of 4 numbers": bad([[1, 1, 5, 5]], "bad-polygon", "4 numbers"),
    "a polygon of 2 numbers": bad([[1, 1]], "bad-polygon", "2 numbers"),
    "a polygon of none": bad([[]], "bad-polygon", "0 numbers"),
    "a bad polygon behind a good one": bad([*SOUND, [1, 1]], "bad-polygon", "segmentation[1]"),
    **{
        f"{name} coordinate": bad(f"[[{name},1,5,1,5,5]]", "bad-segmentation", "NaN, infinite")
        for name in ("NaN", "Infinity", "-Infinity")
    },
    "RLE of NaN": bad('{"size":[12,16],"counts":[NaN]}', "bad-segmentation", "NaN, infinite"),
    "1e999": bad("[[1e999,1,5,1,5,5]]", "bad-segmentation", "out of range"),
    "-1e999": bad("[[1,-1e999,5,1,5,5]]", "bad-segmentation", "out of range"),
    "1e9": bad("[[1e9,1,5,1,5,5]]", "coordinates-far-off", "x 5…1e+09"),
    "-1e308": bad("[[1,-1e308,5,1,5,5]]", "coordinates-far-off", "y -1e+308…5"),
    "an integer of 400 digits": bad(f"[[1,1,{'9' * 400},1,5,5]]", "coordinates-far-off"),
    "an integer of 5,000 digits": bad(f"[[1,1,{'9' * 5000},1,5,5]]", "bad-segmentation"),
    "just too far": bad([[1, 1, 32.01, 1, 5, 5]], "coordinates-far-off", "x 1…32.01"),
    "just too far back": bad([[1, -16.01, 5, 1, 5, 5]], "coordinates-far-off", "y -16.01…5"),
    "an endless outline": bad([[-16, 0, 32, 5] * 150_000], "bad-polygon", "outline"),
    "a polygon nested": bad("[" * 900 + "]" * 900, "bad-polygon", "flat list"),
    "bytes that are not valid UTF-8": bad('"\xff"', "bad-segmentation", "utf-8"),
    "text": bad('"1 1 5 1 5 5"', "bad-segmentation", "str"),
    "a number": bad(5, "bad-segmentation", "int"),
    "true": bad(True, "bad-segmentation", "bool"),
    "RLE that ends early": bad(rle([10, 20]), "rle-sum-mismatch", "30, not 12 x 16"),
    "RLE that ends late": bad(rle([10, 183]), "rle-sum-mismatch", "193, not 12 x 16"),
    "RLE of nothing": bad(rle([]), "rle-sum-mismatch", "0, not"),
    "RLE beyond 32 bits": bad(rle([2**32, 192]), "rle-sum-mismatch", "4294967488"),
    "RLE beyond 64 bits": bad(rle([2**64]), "rle-sum-mismatch", "more than 2^63"),
    "RLE of 4,299 digits": bad(rle([int("9" * 4299)] * 9), "rle-sum-mismatch"),
    "negative RLE": bad(rle([-1, 193]), "bad-rle", "negative"),
    "RLE of floats": bad(rle([96.5, 95.5]), "bad-rle", "integers"),
    "RLE of bools": bad(rle([True, 191]), "bad-rle", "integers"),
    "RLE without counts": bad({"size": [HEIGHT, WIDTH]}, "bad-rle", "counts"),
    "RLE with null counts": bad(rle(None), "bad-rle", "counts"),
    "RLE without size": bad({"counts": [192]}, "bad-rle", "size None"),
    "RLE of another size": bad(rle([192], (8, 24)), "rle-size-mismatch", "[8, 24], image [12, 16]"),
    "RLE of the turned size": bad(rle([192], (WIDTH, HEIGHT)), "rle-size-mismatch"),
    "RLE of a negative size": bad(rle([192], (-HEIGHT, -WIDTH)), "rle-size-mismatch"),
    "RLE of a float size": bad(rle([192], (12.5, 16)), "bad-rle", "[12.5, 16]"),
    "RLE of one number's size": bad(rle([192], (12,)), "bad-rle", "[12]"),
    "RLE of a text's size": bad(rle([192], "12x16"), "bad-rle", "12x16"),
    "RLE of a giant's size": bad(rle([192], (2**40, 2**40)), "rle-size-mismatch"),
    "compressed RLE: empty": bad(rle(""), "rle-sum-mismatch", "0, not"),
    "compressed RLE: cut in a number": bad(rle("PP"), "bad-rle", "cut"),
    "compressed RLE: ends early": bad(rle("P1"), "rle-sum-mismatch", "32, not"),
    "compressed RLE: a space": bad(rle("P6 "), "bad-rle", "strange character at 2"),
    "compressed RLE: a NUL": bad(rle("P6\0"), "bad-rle", "strange character"),
    "compressed RLE: no ASCII": bad(rle("é"), "bad-rle", "strange character"),
    "compressed RLE: a long number": bad(rle("o" * 40 + "0"), "bad-rle", "a number of 41"),
    "compressed RLE: negative": bad(rle("O"), "bad-rle", "negative"),
    "compressed RLE: in bytes": bad('{"size":[12,16],"counts":"\xff"}', "bad-segmentation"),
    "a bad crowd that would be dropped": Case(
        first("annotations", segmentation=rle([1]), iscrowd=1),
        4,
        "rle-sum-mismatch",
        annotation=SPOILT,
        flags=("--crowd", "drop"),
    ),
}

ACCEPTED = {
    "byte order mark": text(lambda c: b"\xef\xbb\xbf" + c, 0, "instances"),
    "no segmentation: null": instance(None, 0, "no_segmentation"),
    "no segmentation: []": instance([], 0, "no_segmentation"),
    "no segmentation: {}": instance({}, 0, "no_segmentation"),
    "no segmentation: absent": Case(first("annotations", segmentation=...), 0, "no_segmentation"),
    "zero area": instance([[5, 5, 5, 5, 5, 5]], 0, "zero_area"),
    "out of bounds": instance([[-1, -1, 17, 0, 9, 13]], 0, "out_of_bounds"),
    "negative zero": instance([[-0.0, 1, 9, 1, 9, 9]], 0, "instances"),
    "RLE with runs of zero": instance(rle([5, 0, 0, 3, 0, 0, 184]), 0, "instances"),
    "RLE with more keys": instance(rle([5, 3, 184]) | {"x": 1}, 0, "instances"),
    "crowd true": Case(first("annotations", iscrowd=True), 0, "crowds"),
    "crowd null": Case(first("annotations", iscrowd=None), 0, "instances"),
    "annotation ids twice": Case(first("annotations", id=1), 0, "duplicate_annotation_ids"),
    "annotation without id": Case(first("annotations", id=...), 0, "instances"),
    "wrong area and bbox": Case(first("annotations", area=-5, bbox=["x"]), 0, "instances"),
    "1e999 that nobody reads": text(lambda c: c[:-1] + b',"x":1e999}', 0, "instances"),
    "supercategory 1e999": text(
        lambda c: c.replace(b'"name"', b'"supercategory":1e999,"name"'), 0, "instances"
    ),
    "an image without annotations": Case(more(4), 0, "without_annotations"),
    "a file in another folder": Case(
        first("images", file_name="train/3.jpg"), 0, "found_elsewhere"
    ),
    **{
        f"file_name {name!r}": Case(first("images", file_name=name), 0, "absolute_names")
        for name in (
            "/data/upload/4/3.jpg",
            "C:\\data\\3.jpg",
            "https://example.com/3.jpg?key=1#top",
            "file:///3.jpg",
            "../images/3.jpg",
            "x/../../images/3.jpg",
            "..\\3.jpg",
        )
    },
}

# ---- the victim's photograph


def encoded(image: Image.Image, form: str, **save: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **save)
    return buffer.getvalue()


def picture(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    noise = np.random.default_rng(3).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(noise).convert(mode)


def jpeg(mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT), **save: Any) -> bytes:
    return encoded(picture(mode, size), "JPEG", **save)


def png(mode: str = "RGB", **save: Any) -> bytes:
    return encoded(picture(mode), "PNG", **save)


def animated(form: str) -> bytes:
    return encoded(
        picture(), form, save_all=True, append_images=[Image.new("RGB", (WIDTH, HEIGHT))]
    )


def chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def claimed_png(width: int, height: int, *before: bytes, bits: int = 8) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = (chunk(b"IHDR", header), *before, chunk(b"IDAT", zlib.compress(b"\0")))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0x55
    return bytes(changed)


def jpeg_with_thumbnail() -> tuple[bytes, int]:
    """Return a JPEG whose EXIF holds a JPEG, and where that ends."""
    thumbnail = jpeg(size=(8, 6))
    entries = struct.pack(">HHII", 0x201, 4, 1, 44) + struct.pack(
        ">HHII", 0x202, 4, 1, len(thumbnail)
    )
    tiff = b"MM\0*" + struct.pack(">IHIH", 8, 0, 14, 2) + entries + bytes(4) + thumbnail
    content = jpeg(exif=b"Exif\0\0" + tiff)
    return content, content.index(thumbnail) + len(thumbnail)


def orientation(kind: int, value: bytes) -> bytes:
    """Return a JPEG with this TIFF type and value as its orientation."""
    entry = struct.pack(">HHHI", 1, 0x0112, kind, 1) + value + bytes(4)
    return jpeg(exif=b"Exif\0\0MM\0*" + struct.pack(">I", 8) + entry)


def file(content: bytes, code: int, says: str, detail: str = "", **more: Any) -> Case:
    """Give the victim a file of this content."""

    def spoil(coco: Any) -> None:
        (coco.images / "3.jpg").write_bytes(content)

    return Case(spoil, code, says, detail, **more)


def photo(content: bytes, reason: str, detail: str = "", **more: Any) -> Case:
    return file(content, 4, reason, detail, **more)


def place(put: Callable[[Path], Any], reason: str, detail: str = "", **more: Any) -> Case:
    """Put something else where the victim's file is."""

    def spoil(coco: Any) -> None:
        path = coco.images / "3.jpg"
        path.unlink()
        put(path)

    return Case(spoil, 4, reason, detail, **more)


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def unreadable(path: Path) -> None:
    if os.geteuid():
        path.touch(0o000)
    elif Path("/proc/self/mem").exists():  # root may read everything, but not what is not there
        path.symlink_to("/proc/self/mem")
    else:
        pytest.skip("nothing is unreadable for root here")


def giant(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**30 + 1)  # takes no room on the disk


def bind(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


THUMBNAIL, THUMBNAIL_END = jpeg_with_thumbnail()
TWO = {form: animated(form) for form in ("MPO", "PNG", "GIF", "WEBP", "TIFF")}
IDAT = png().index(b"IDAT")
PHOTOGRAPHS = {
    "missing": place(lambda path: None, "missing-file", "no '3.jpg' in"),
    "0 bytes": photo(b"", "empty-file", "0 bytes"),
    "zeros": photo(bytes(500), "undecodable-image"),
    "HTML": photo(b"<!DOCTYPE html><title>404</title>", "undecodable-image", "<!DOCTYPE"),
    "SVG": photo(b'<svg xmlns="http://www.w3.org/2000/svg"/>', "undecodable-image", "<svg"),
    "HEIC": photo(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "undecodable-image", "heic"),
    "MP4": photo(b"\0\0\0\x18ftypmp42\0\0\0\0isommp42" + bytes(99), "undecodable-image"),
    "a Git LFS pointer": photo(b"version https://git-lfs.github.com/spec/v1", "undecodable-image"),
    "Base64": photo(b"data:image/jpeg;base64,/9j/4AAQSkZJRg==", "undecodable-image"),
    "PPM: cut": photo(encoded(picture(), "PPM")[:-9], "truncated-image"),
    "JPEG 2000: cut": photo(
        encoded(picture(), "JPEG2000")[:-99] if features.check("jpg_2000") else b"\xff\x4f\xff\x51",
        "truncated-image" if features.check("jpg_2000") else "undecodable-image",
    ),
    "EPS": photo(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 12\n%%EndComments\n",
        "unsupported-format",
        "is EPS",
    ),
    "32-bit float TIFF": photo(encoded(picture("F"), "TIFF"), "unsupported-format", "32-bit"),
    "32-bit integer TIFF": photo(encoded(picture("I"), "TIFF"), "unsupported-format", "32-bit"),
    "another size": photo(jpeg(size=(12, 12)), "size-mismatch", "12 x 12; annotated as 16 x 12"),
    "JPEG: start alone": photo(jpeg()[:2], "undecodable-image"),
    "JPEG: cut in the header": photo(jpeg()[:100], "undecodable-image"),
    "JPEG: cut before the pixels": photo(jpeg()[: jpeg().index(b"\xff\xda")], "truncated-image"),
    "JPEG: cut in the pixels": photo(jpeg()[:-30], "truncated-image"),
    "JPEG: no end marker": photo(jpeg()[:-2], "truncated-image"),
    "JPEG: half an end marker": photo(jpeg()[:-1], "truncated-image"),
    "JPEG: cut in the thumbnail": photo(THUMBNAIL[: THUMBNAIL_END - 40], "undecodable-image"),
    "JPEG: cut behind the thumbnail": photo(THUMBNAIL[:THUMBNAIL_END], "undecodable-image"),
    "JPEG: thumbnail, cut in the pixels": photo(THUMBNAIL[:-30], "truncated-image"),
    "JPEG: half copied, zeros": photo(jpeg()[:-30] + bytes(4096), "truncated-image"),
    "JPEG: thumbnail, half copied": photo(THUMBNAIL[:-3] + bytes(4096), "truncated-image"),
    "JPEG: 0 x 0": photo(jpeg().replace(b"\0\x0c\0\x10", bytes(4)), "undecodable-image"),
    "JPEG: 65,535 x 65,535": photo(jpeg().replace(b"\0\x0c\0\x10", b"\xff" * 4), "image-too-large"),
    "MPO: cut in the first": photo(TWO["MPO"][:400], "undecodable-image"),
    "PNG: signature alone": photo(png()[:8], "undecodable-image"),
    "PNG: cut in the header": photo(png()[:20], "undecodable-image"),
    "PNG: cut in the pixels": photo(png()[: IDAT + 50], "truncated-image"),
    "PNG: cut before the end": photo(png()[:-16], "truncated-image"),
    "PNG: wrong CRC of the header": photo(flipped(png(), 30), "undecodable-image"),
    "PNG: damaged pixels": photo(flipped(png(), IDAT + 5), "damaged-image"),
    "PNG: wrong CRC": photo(flipped(png(), len(png()) - 14), "damaged-image"),
    "PNG: 0 x 0": photo(claimed_png(0, 0), "undecodable-image"),
    "PNG: pixels missing, checked": photo(
        claimed_png(WIDTH, HEIGHT), "damaged-image", flags=("--check-images", "full")
    ),
    "PNG: 50,000 x 50,000": photo(claimed_png(50_000, 50_000), "image-too-large", "2500000000"),
    "PNG: 2^31 x 2^31": photo(claimed_png(2**31 - 1, 2**31 - 1), "image-too-large"),
    "PNG: a text of 10 MB": photo(
        claimed_png(WIDTH, HEIGHT, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**7), 9))),
        "undecodable-image",
        "too large",
    ),
    "animated PNG: cut in the second": photo(TWO["PNG"][:-40], "truncated-image", "no end"),
    "animated PNG: cut in the first": photo(TWO["PNG"][:120], "truncated-image"),
    "GIF: cut": photo(encoded(picture(), "GIF")[:-40], "truncated-image"),
    "GIF: header alone": photo(encoded(picture(), "GIF")[:13], "undecodable-image"),
    "WebP: cut": photo(encoded(picture(), "WEBP")[:-20], "undecodable-image"),
    "WebP: header alone": photo(b"RIFF\x08\0\0\0WEBPVP8 ", "undecodable-image"),
    "animated WebP: cut": photo(TWO["WEBP"][:-20], "undecodable-image"),
    "TIFF: header alone": photo(encoded(picture(), "TIFF")[:8], "undecodable-image"),
    "TIFF: cut": photo(encoded(picture(), "TIFF")[:-100], "truncated-image"),
    "TIFF: LZW, cut": photo(
        encoded(picture(), "TIFF", compression="tiff_lzw")[:150], "undecodable-image"
    ),
    "BMP: cut": photo(encoded(picture(), "BMP")[:-9], "truncated-image"),
    "BMP: header alone": photo(encoded(picture(), "BMP")[:20], "undecodable-image"),
    "a folder": place(Path.mkdir, "missing-file"),
    "a dangling link": place(link("nowhere"), "missing-file"),
    "a link to itself": place(link("3.jpg"), "missing-file"),
    "a link through a file": place(link("1.jpg/x"), "missing-file"),
    "a link too long": place(link("x" * 300), "missing-file"),
    "a link to a device": place(link("/dev/zero"), "missing-file"),
    "a named pipe": place(os.mkfifo, "missing-file"),
    "a socket": place(bind, "missing-file"),
    "a file that may not be read": place(unreadable, "unreadable-file"),
    "a file of more than 1 GB": place(giant, "file-too-large", "1073741825 bytes"),
}


def tiny(coco: Any) -> None:
    (coco.images / "3.jpg").write_bytes(jpeg(size=(1, 1)))
    first("images", width=1, height=1)(coco)
    first("annotations", segmentation=[[0, 0, 1, 0, 1, 1, 0, 1]])(coco)


TRAILING = ("bytes", b"\0\xff\xda rest"), ("zeros", bytes(999)), ("a PNG", png())
WHOLE = {
    "JPEG": file(jpeg(), 0, "instances"),
    **{f"JPEG and {name}": file(jpeg() + more, 0, "instances") for name, more in TRAILING},
    "JPEG with thumbnail": file(THUMBNAIL, 0, "instances"),
    "JPEG with broken EXIF": file(jpeg(exif=b"Exif\0\0MM\0*\xff\xff\xff\xff"), 0, "instances"),
    "JPEG of orientation 9": file(orientation(3, b"\0\x09\0\0"), 0, "instances"),
    "JPEG of orientation a text": file(orientation(2, b"up\0\0"), 0, "instances"),
    "JPEG of CMYK": file(jpeg("CMYK"), 0, "photo_CMYK"),
    "gray JPEG": file(jpeg("L"), 0, "photo_L"),
    "MPO": file(TWO["MPO"], 0, "photo_animated"),
    "MPO cut in the second": file(TWO["MPO"][:-30], 0, "instances"),
    "PNG": file(png(), 0, "instances"),
    "PNG with alpha": file(png("RGBA"), 0, "photo_RGBA"),
    "gray PNG with alpha": file(png("LA"), 0, "photo_alpha"),
    "PNG with palette": file(png("P"), 0, "photo_P"),
    "1-bit PNG": file(png("1"), 0, "photo_1"),
    "16-bit PNG": file(encoded(Image.new("I;16", (WIDTH, HEIGHT)), "PNG"), 0, "photo_I_16"),
    "PNG with pixels missing, unchecked": file(
        claimed_png(WIDTH, HEIGHT), 0, "instances", verified=False
    ),
    "PNG with bytes behind it": file(png() + b"more", 0, "instances"),
    "animated PNG": file(TWO["PNG"], 0, "photo_animated"),
    "GIF": file(encoded(picture(), "GIF"), 0, "photo_P"),
    "animated GIF": file(TWO["GIF"], 0, "photo_animated"),
    "WebP": file(encoded(picture(), "WEBP"), 0, "instances"),
    "animated WebP": file(TWO["WEBP"], 0, "photo_animated"),
    "TIFF": file(encoded(picture(), "TIFF"), 0, "instances"),
    "TIFF of two pages": file(TWO["TIFF"], 0, "photo_animated"),
    "BMP": file(encoded(picture(), "BMP"), 0, "instances"),
    "1 x 1": Case(tiny, 0, "instances"),
    "two files that differ in case": Case(more(4, name="3.JPG"), 0, "instances"),
}

# ---- archives


def archive(
    pack: Callable[[Any, Path], Any],
    suffix: str,
    code: int,
    says: str,
    detail: str = "",
    **more: Any,
) -> Case:
    """Pack the images and take the archive for the folder."""

    def spoil(coco: Any) -> Path:
        path: Path = coco.images.with_suffix(suffix)
        pack(coco, path)
        return path

    return Case(spoil, code, says, detail, **more)


def packed(coco: Any, path: Path, method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    """Zip the images, the victim last, and return the zip's bytes."""
    with zipfile.ZipFile(path, "w", method) as zipped:
        for photo in sorted(coco.images.iterdir()):
            zipped.write(photo, photo.name)
    return bytearray(path.read_bytes())


def zip_with(
    change: Callable[[bytearray, int, int], Any], method: int = zipfile.ZIP_DEFLATED
) -> Callable[[Any, Path], None]:
    """Change the bytes of a zip; is told where the victim's two headers begin."""

    def pack(coco: Any, path: Path) -> None:
        content = packed(coco, path, method)
        change(content, content.rindex(b"PK\3\4"), content.rindex(b"PK\1\2"))
        path.write_bytes(content)

    return pack


def put(content: bytearray, place: int, layout: str, value: int) -> None:
    struct.pack_into(layout, content, place, value)


def zip_and(*members: tuple[str, bytes]) -> Callable[[Any, Path], None]:
    """Zip the good images and these members."""

    def pack(coco: Any, path: Path) -> None:
        (coco.images / "3.jpg").unlink()
        packed(coco, path)
        with zipfile.ZipFile(path, "a") as zipped, pytest.MonkeyPatch.context() as patch:
            patch.setattr("warnings.warn", lambda *_, **__: None)  # of the double name
            for name, content in members:
                zipped.writestr(name, content)

    return pack


def tar_and(*members: tuple[tarfile.TarInfo | str, bytes]) -> Callable[[Any, Path], None]:
    """Tar the good images and these members."""

    def pack(coco: Any, path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            for photo in ("1.jpg", "2.jpg"):
                tar.add(coco.images / photo, photo)
            for member, content in members:
                one = tarfile.TarInfo(member) if isinstance(member, str) else member
                one.size = len(content) if one.isreg() else one.size
                tar.addfile(one, io.BytesIO(content))

    return pack


def special(kind: bytes, target: str = "", name: str = "3.jpg") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def tar_with(change: Callable[[bytearray, int], bytes | None]) -> Callable[[Any, Path], None]:
    """Change the bytes of a tar; is told where the victim's header begins."""

    def pack(coco: Any, path: Path) -> None:
        tar_and(("3.jpg", jpeg()))(coco, path)
        content = bytearray(path.read_bytes())
        path.write_bytes(change(content, content.rindex(b"3.jpg\0")) or content)

    return pack


def sized(content: bytearray, header: int, size: int) -> None:
    content[header + 124 : header + 136] = size.to_bytes(12, "big", signed=True)
    content[header + 124] |= 0x80  # a binary number, not octal digits
    content[header + 148 : header + 156] = b" " * 8
    content[header + 148 : header + 156] = b"%06o\0 " % sum(content[header : header + 512])


ARCHIVES = {
    "zip: not one": archive(
        lambda c, path: path.write_bytes(jpeg()), ".zip", 3, "not a readable zip"
    ),
    "zip: empty file": archive(lambda c, path: path.touch(), ".zip", 3, "not a readable zip"),
    "zip: cut in half": archive(
        lambda c, path: path.write_bytes(packed(c, path)[:-800]), ".zip", 3, "not a readable zip"
    ),
    "zip: cut in the directory": archive(
        lambda c, path: path.write_bytes(packed(c, path)[:-30]), ".zip", 3, "not a readable zip"
    ),
    "zip: pixels damaged": archive(
        zip_with(lambda c, local, central: put(c, local + 60, "<I", 0)),
        ".zip",
        4,
        "damaged-archive",
    ),
    "zip: pixels damaged, stored": archive(
        zip_with(lambda c, local, central: put(c, local + 99, "<I", 0), zipfile.ZIP_STORED),
        ".zip",
        4,
        "damaged-archive",
        "checksum",
    ),
    "zip: wrong CRC": archive(
        zip_with(lambda c, local, central: put(c, central + 16, "<I", 5)),
        ".zip",
        4,
        "damaged-archive",
        "checksum",
    ),
    "zip: encrypted": archive(
        zip_with(lambda c, local, central: put(c, central + 8, "<H", 1)),
        ".zip",
        4,
        "unreadable-file",
        "encrypted",
    ),
    "zip: BZIP2": archive(
        zip_with(lambda *_: None, zipfile.ZIP_BZIP2),
        ".zip",
        3,
        "method 12",
        images=(),
    ),
    "zip: unknown method": archive(
        zip_with(lambda c, local, central: put(c, central + 10, "<H", 97)),
        ".zip",
        4,
        "unreadable-file",
        "method 97",
    ),
    "zip: 3 GB claimed": archive(
        zip_with(lambda c, local, central: put(c, central + 24, "<I", 3 * 10**9)),
        ".zip",
        4,
        "file-too-large",
        "3000000000",
    ),
    "zip: 3 GB stored claimed": archive(
        zip_with(lambda c, local, central: put(c, central + 20, "<I", 3 * 10**9)),
        ".zip",
        4,
        "file-too-large",
        "3000000000",
    ),
    "zip: inflates to more than it claims": archive(
        zip_with(lambda c, local, central: put(c, central + 24, "<I", 9)),
        ".zip",
        4,
        "damaged-archive",
    ),
    "zip: lies elsewhere": archive(
        zip_with(lambda c, local, central: put(c, central + 42, "<I", 5)),
        ".zip",
        4,
        "damaged-archive",
    ),
    "zip: lies behind the end": archive(
        zip_with(lambda c, local, central: put(c, central + 42, "<I", 2**31)),
        ".zip",
        4,
        "damaged-archive",
        "ends",
    ),
    "zip: a folder of the name": archive(zip_and(("3.jpg/", b"")), ".zip", 4, "missing-file"),
    "zip: 0 bytes": archive(zip_and(("3.jpg", b"")), ".zip", 4, "empty-file"),
    "zip: a member twice, the last is whole": archive(
        zip_and(("3.jpg", b"old"), ("3.jpg", jpeg())), ".zip", 0, "instances"
    ),
    "zip: a member twice, the last is not": archive(
        zip_and(("3.jpg", jpeg()), ("3.jpg", b"new")), ".zip", 4, "undecodable-image", "new"
    ),
    "zip: leads out": archive(zip_and(("../../3.jpg", jpeg())), ".zip", 0, "found_elsewhere"),
    "zip: absolute": archive(zip_and(("/etc/3.jpg", jpeg())), ".zip", 0, "found_elsewhere"),
    "zip: a dot": archive(zip_and((".", jpeg())), ".zip", 4, "missing-file"),
    "tar: not one": archive(
        lambda c, path: path.write_bytes(jpeg()), ".tar", 3, "not an uncompressed tar"
    ),
    "tar: empty file": archive(lambda c, path: path.touch(), ".tar", 3, "not an uncompressed tar"),
    "tar: gzip": archive(
        lambda c, path: (tar_and()(c, path), path.write_bytes(gzip.compress(path.read_bytes()))),
        ".tar",
        3,
        "not an uncompressed tar",
    ),
    "tar.gz": archive(lambda c, path: path.touch(), ".tar.gz", 2, "unpack it first"),
    "rar": archive(lambda c, path: path.touch(), ".rar", 2, "unpack it first"),
    "a pipe": archive(lambda c, path: os.mkfifo(path), ".tar", 2, "neither a folder nor a file"),
    "no archive": archive(lambda c, path: None, ".zip", 2, "no such folder"),
    "tar: cut in a photo": archive(
        tar_with(lambda c, header: c[: header + 700]), ".tar", 3, "unexpected end of data"
    ),
    "tar: cut in a header": archive(
        tar_with(lambda c, header: c[: header + 100]), ".tar", 3, "damaged or cut at byte"
    ),
    "tar: cut between two": archive(
        tar_with(lambda c, header: c[:header]), ".tar", 3, "damaged or cut at byte"
    ),
    "tar: a header damaged": archive(
        tar_with(lambda c, header: put(c, header + 148, "<I", 0)),
        ".tar",
        3,
        "damaged or cut at byte",
    ),
    "tar: a negative size": archive(
        tar_with(lambda c, header: sized(c, header, -2048)), ".tar", 3, "negative size"
    ),
    "tar: a terabyte claimed": archive(
        tar_with(lambda c, header: sized(c, header, 2**40)), ".tar", 3, "unexpected end of data"
    ),
    "tar: hard link": archive(
        tar_and((special(tarfile.LNKTYPE, "1.jpg"), b"")), ".tar", 4, "missing-file"
    ),
    "tar: link": archive(
        tar_and((special(tarfile.SYMTYPE, "1.jpg"), b"")), ".tar", 4, "missing-file"
    ),
    "tar: device": archive(tar_and((special(tarfile.CHRTYPE), b"")), ".tar", 4, "missing-file"),
    "tar: pipe": archive(tar_and((special(tarfile.FIFOTYPE), b"")), ".tar", 4, "missing-file"),
    "tar: sparse": archive(
        tar_and((special(tarfile.GNUTYPE_SPARSE), b"")), ".tar", 4, "missing-file"
    ),
    "tar: 0 bytes": archive(tar_and(("3.jpg", b"")), ".tar", 4, "empty-file"),
    "tar: a member twice": archive(
        tar_and(("3.jpg", b"old"), ("./3.jpg", jpeg())), ".tar", 0, "instances"
    ),
    "tar: leads out": archive(tar_and(("../3.jpg", jpeg())), ".tar", 0, "found_elsewhere"),
}


TABLE = {
    f"{kind}: {name}": case
    for kind, cases in {
        "JSON": FILES,
        "field": FIELDS,
        "entry": ENTRIES,
        "segmentation": SEGMENTATIONS,
        "accepted": ACCEPTED,
        "photo": PHOTOGRAPHS,
        "whole": WHOLE,
        "archive": ARCHIVES,
    }.items()
    for name, case in cases.items()
}


@pytest.fixture(autouse=True)
def never_hangs():
    def ring(*_: object) -> None:
        raise TimeoutError("hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken EXIF
@pytest.mark.parametrize("case", TABLE.values(), ids=TABLE)
def test_bad_input_never_becomes_a_wrong_mask(case, coco_set, tmp_path, run_cocoseg, stored):
    for image_id in (1, 2, VICTIM):
        coco_set.photo(image_id)
        coco_set.annotate(image_id, SOUND, id=SPOILT if image_id == VICTIM else image_id)
    images = case.spoil(coco_set)
    coco_set.write()
    coco_set.json.write_bytes(case.text(coco_set.json.read_bytes()))
    output = tmp_path / "shards"
    source = ("--annotations", coco_set.json, "--images", images or coco_set.images)
    ran = run_cocoseg(
        "prepare", *source, "--output", output, "--engine", "inline", "--json", *case.flags
    )
    assert ran.code == case.code, ran.err
    left = {path.name for path in tmp_path.rglob("*") if path.name.startswith(".")}
    assert left == set()
    if case.code in (2, 3):
        assert case.says in ran.err
        assert str(images or coco_set.json) in ran.err
        assert (ran.out, len(ran.err) < 2000) == ("", True)
        assert not output.exists() or not any(output.iterdir())
        return
    summary = json.loads(ran.out)
    lines = (output / "quarantine.jsonl").read_bytes().splitlines() if case.code == 4 else []
    quarantined = [json.loads(line) for line in lines]
    expected = case.images if case.code == 4 else ()
    assert sorted(entry["image_id"] for entry in quarantined) == list(expected)
    for entry in quarantined:
        assert (entry["reason"], entry["annotation_id"]) == (case.says, case.annotation)
        assert case.detail in entry["detail"]
        assert 0 < len(entry["detail"]) < 1100
    assert summary["quarantined"] == ({case.says: len(expected)} if expected else {})
    assert summary["samples"] + len(quarantined) == len(coco_set.content["images"])
    samples = {sample.meta["image_id"]: sample for sample in stored(output).values()}
    assert samples.keys() == {entry["id"] for entry in coco_set.content["images"]} - {*expected}
    for image_id in (1, 2):
        assert samples[image_id].photo == (coco_set.images / f"{image_id}.jpg").read_bytes()
        assert np.count_nonzero(samples[image_id].mask) == 64
    if case.code == 0:
        assert summary["counts"][case.says] >= 1
        assert samples[VICTIM].mask.any() or case.says in ("no_segmentation", "zero_area")
    verified = run_cocoseg("verify", output, "--json")
    assert verified.code == (0 if case.verified else 3), verified.out


@pytest.mark.parametrize("put", [None, Path.mkdir, os.mkfifo], ids=["nothing", "folder", "pipe"])
def test_annotations_that_are_no_file_are_a_usage_error(coco_set, tmp_path, run_cocoseg, put):
    coco_set.photo(1)
    if put is not None:
        put(coco_set.json)
    ran = run_cocoseg("prepare", *coco_set.flags, "--output", tmp_path / "shards")
    assert (ran.code, ran.out) == (2, "")
    assert str(coco_set.json) in ran.err
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize("engine", ["inline", "local"])
def test_a_file_name_that_is_no_utf_8_is_quarantined(tmp_path, run_cocoseg, engine):
    (tmp_path / "images").mkdir()
    for name in (b"1.jpg", b"caf\xe9.jpg"):
        Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + name)).write_bytes(jpeg())
    flags = ("--images", tmp_path / "images", "--output", tmp_path / "shards")
    ran = run_cocoseg("prepare", *flags, "--engine", engine, "--workers", 1, "--json")
    assert ran.code == 4
    assert json.loads(ran.out)["samples"] == 1
    (entry,) = map(json.loads, (tmp_path / "shards" / "quarantine.jsonl").read_text().splitlines())
    assert (entry["reason"], entry["file_name"]) == ("bad-file-name", "caf\ufffd.jpg")
