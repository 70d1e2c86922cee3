"""Under which other names the file of an image may lie: what exporters make of file names.

Only strings are handled here. A name is looked up in the list of files of the image folder, so that
no other file is ever opened, whatever the name says.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

_WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]")
_PERCENT = re.compile("%[0-9A-Fa-f]{2}")
_LOCAL_FILE = re.compile(r"[?&]d=([^&#]+)")  # Label Studio: /data/local-files/?d=folder/x.jpg
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")  # Label Studio: /data/upload/4/1a2b3c4d-x.jpg
_COCO = re.compile(r"(?:coco_(?:train|val|test)\d{4}_)?(\d{12}\.jpg)")


def spellings(file_name: str) -> Iterator[tuple[str, str]]:
    """Yield other names of the file, the most probable first, each after what it is counted as."""
    relative = not is_absolute(file_name)
    candidates = [file_name]
    if not relative:
        candidates = [] if "://" in file_name else candidates
        candidates += _LOCAL_FILE.findall(file_name)
        candidates.append(path_of_url(file_name))
    for candidate in candidates:
        yield ("found_elsewhere" if relative else "absolute_names"), candidate
    for candidate in candidates:
        if _PERCENT.search(candidate):
            yield ("encoded_names" if relative else "absolute_names"), unquote(candidate)
    for candidate in candidates:
        base = unquote(candidate).replace("\\", "/").rpartition("/")[2]
        if upload := _UPLOAD.fullmatch(base):
            yield "upload_prefixes", upload[1]


def is_absolute(file_name: str) -> bool:
    """Return whether a name is a URL, an absolute path, or leads out of the image folder."""
    return (
        "://" in file_name
        or file_name.startswith(("/", "\\"))
        or _WINDOWS_DRIVE.match(file_name) is not None
        or ".." in file_name.replace("\\", "/").split("/")
    )


def path_of_url(url: str) -> str:
    """Return the path in a URL, without host, query and fragment."""
    try:
        return urlsplit(url).path.lstrip("/")
    except ValueError:  # a host such as '[x'
        return ""


def folded(name: str) -> tuple[str, ...]:
    """Return the folders and the base name, alike in any case and Unicode form."""
    parts = PurePosixPath(name.replace("\\", "/").casefold()).parts
    return parts if name.isascii() else tuple(unicodedata.normalize("NFC", p) for p in parts)


def coco_number(name: str) -> str | None:
    """Return what the names of an image in all releases of COCO end with; None for other names."""
    match = _COCO.fullmatch(name.replace("\\", "/").rpartition("/")[2].lower())
    return match[1] if match else None
