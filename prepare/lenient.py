"""Other forms of COCO JSON whose meaning is clear, rewritten in the usual one.

A file is read this way only where the strict decoder refuses it: text in UTF-16, ``NaN`` in fields
that are not read, ids that are text or ``1.0``. What is rewritten is counted; what has no clear
meaning stays as it is, and is refused.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from urllib.parse import unquote

import msgspec

from ..errors import DataError
from .names import path_of_url

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\3\4": "zip",
}
_KEPT = {
    "images": {"id", "file_name", "width", "height", "flickr_url", "coco_url"},
    "annotations": {"id", "image_id", "category_id", "segmentation", "iscrowd", "bbox", "area"},
    "categories": {"id", "name", "supercategory"},
}
_WHOLE = {"images": ("width", "height"), "annotations": ("iscrowd",), "categories": ()}
_REFERENCES = {"image_id": "images", "category_id": "categories"}

_STRING_OR_NON_FINITE = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|-?(?:NaN|Infinity)', re.DOTALL)
_INTEGER = re.compile(rb"-?[0-9]+")
NUMBER = re.compile(r"[+-]?[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
"""A finite number as JSON, or a careless writer, writes it."""
_MOST_DIGITS = 40  # ids have 19 at most


def plain_json(path: str, content: memoryview, counts: Counter[str]) -> memoryview | None:
    """Return the file in UTF-8 and without ``NaN`` and ``Infinity``; None where nothing is changed.

    These become ``1e999``, which is JSON: no matter in fields that nobody reads, and refused in the
    others, as a number that no float holds.

    Raises
    ------
    DataError
        If the file is compressed.
    """
    start = bytes(content[:6])
    for mark, name in _COMPRESSED.items():
        if start.startswith(mark):
            raise DataError(f"{path}: is compressed ({name}); unpack it and give the JSON file")
    encoding, recoded = json.detect_encoding(start), False
    plain = bytes(content)
    if not encoding.startswith("utf-8"):
        try:
            plain, recoded = plain.decode(encoding).encode(), True
        except UnicodeError:
            return None
    found = 0

    def finite(match: re.Match[bytes]) -> bytes:
        nonlocal found
        if match[0].startswith(b'"'):
            return match[0]
        found += 1
        return b"1e999"

    if b"NaN" in plain or b"Infinity" in plain:
        plain = _STRING_OR_NON_FINITE.sub(finite, plain)
    counts["recoded_json"] += recoded
    counts["non_finite_numbers"] += found
    return memoryview(plain) if recoded or found else None


def whole_number(raw: bytes) -> tuple[bytes, str | None] | None:
    """Read a JSON value as a whole number: ``1``, ``1.0``, ``10e-1``, ``"1"``.

    Returns
    -------
    tuple or None
        Its digits, and the count that its form belongs to; None where it is no such number.
    """
    if _INTEGER.fullmatch(raw):
        return raw, None
    text, form = _string(raw), "numbers_as_text"
    if text is None:
        text, form = raw.decode("ascii", "replace"), "whole_floats"
    if not NUMBER.fullmatch(text):
        return None
    try:
        number = Decimal(text)
    except ArithmeticError:  # an exponent beyond all bounds
        return None
    if abs(number.adjusted()) > _MOST_DIGITS or number != number.to_integral_value():
        return None
    return str(int(number)).encode(), form


def _string(raw: bytes) -> str | None:
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


class LenientLists:
    """The top-level lists of one file, rewritten one after the other: annotations come last.

    Ids that are text, such as UUIDs, are numbered from 1 in the order of the file.
    """

    def __init__(self, path: str, counts: Counter[str]) -> None:
        self._path = path
        self._counts = counts
        self._numbers: dict[str, dict[str, int]] = {}
        """By list, the numbers of ids that are text."""

    @property
    def numbered(self) -> bool:
        """Whether images or categories have numbers that are not in the file."""
        return bool(self._numbers)

    def rewrite(self, name: str, section: msgspec.Raw) -> msgspec.Raw:
        """Return a list with its ids and whole numbers written as such, where it is one.

        Raises
        ------
        DataError
            If two ids are one number written in two ways, if an id that is text is given twice to
            images, or a reference to such an id leads nowhere.
        """
        try:
            found = msgspec.json.decode(section, type=list[dict[str, msgspec.Raw]])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return section
        kept = _KEPT[name]
        entries = [{key: entry[key] for key in entry if key in kept} for entry in found]
        self._rewrite_ids(name, entries)
        for key in _WHOLE[name]:
            for entry in entries:
                self._rewrite_number(entry, key)
        if name == "images":
            self._name_by_url(entries)
        if name == "annotations":
            for key, target in _REFERENCES.items():
                self._rewrite_references(key, target, entries)
        return msgspec.Raw(msgspec.json.encode(entries))

    def _rewrite_ids(self, name: str, entries: Sequence[dict[str, msgspec.Raw]]) -> None:
        given = [entry for entry in entries if bytes(entry.get("id", b"null")) != b"null"]
        texts = [_string(bytes(entry["id"])) for entry in given]
        written = {text for text in texts if text is not None}
        if None not in texts and not all(NUMBER.fullmatch(text) for text in written):
            numbers = self._numbers[name] = {}
            for entry, text in zip(given, texts, strict=True):
                if name == "images" and text in numbers:
                    raise DataError(f"{self._path}: $.images: id {text!r} is given twice")
                number = numbers.setdefault(str(text), len(numbers) + 1)
                entry["id"] = msgspec.Raw(b"%d" % number)
            self._counts["ids_numbered"] += len(numbers)
            return
        first: dict[bytes, bytes] = {}
        for entry in given:
            before = bytes(entry["id"])
            self._rewrite_number(entry, "id")
            other = first.setdefault(bytes(entry["id"]), before)
            if other != before and name != "annotations":
                raise DataError(
                    f"{self._path}: $.{name}: the ids {other.decode()} and {before.decode()} are "
                    "one number in two forms"
                )

    def _name_by_url(self, entries: Sequence[dict[str, msgspec.Raw]]) -> None:
        """Take the file name from ``coco_url`` where there is none, as in LVIS."""
        for entry in entries:
            url = None if "file_name" in entry else _string(bytes(entry.get("coco_url", b"null")))
            if url is not None:
                path = unquote(path_of_url(url))
                entry["file_name"] = msgspec.Raw(msgspec.json.encode(path))
                self._counts["named_by_url"] += 1

    def _rewrite_number(self, entry: dict[str, msgspec.Raw], key: str) -> None:
        number = whole_number(bytes(entry[key])) if key in entry else None
        if number is not None and number[1] is not None:
            entry[key] = msgspec.Raw(number[0])
            self._counts[number[1]] += 1

    def _rewrite_references(
        self, key: str, target: str, entries: Sequence[dict[str, msgspec.Raw]]
    ) -> None:
        numbers = self._numbers.get(target)
        for position, entry in enumerate(entries):
            if numbers is None or key not in entry:
                self._rewrite_number(entry, key)
                continue
            text = _string(bytes(entry[key]))
            if text is None or text not in numbers:
                raise DataError(
                    f"{self._path}: $.annotations[{position}]: {key} "
                    f"{bytes(entry[key])[:60].decode(errors='replace')} is not in $.{target}"
                )
            entry[key] = msgspec.Raw(b"%d" % numbers[text])
