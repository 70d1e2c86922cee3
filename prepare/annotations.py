"""Read COCO JSON: categories, images, and the instances of each image.

Segmentations stay raw JSON until a worker paints them: most of the file is never turned into
Python objects here. What makes the whole file untrustworthy is refused on the spot; what concerns
one image is found when that image is painted. What is only written in another form is read by
`lenient`, where this strict way fails.
"""

import contextlib
import functools
import gc
import hashlib
import mmap
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, TypeVar

import msgspec
import numpy as np

from ..errors import ConfigError, DataError
from ..figures import named_files
from ..storage import LocalPath, locate
from ..taxonomy import Category
from .images import ImageStore, image_names, other_names, readable
from .lenient import LenientLists, plain_json

_NULL, _EMPTY = msgspec.Raw(b"null"), msgspec.Raw(b"[]")
_BLANK = re.compile(rb"null|\[\s*\]|\{\s*\}")
_UNLABELED = {"info", "images", "licenses", "categories"}
"""The top level of a file that lists images and says nothing of their contents."""


# Keys are made of ids, and names in a tar are short.
Id = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class ImageEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``images``."""

    id: Id
    file_name: str
    width: int
    height: int
    flickr_url: msgspec.Raw = _NULL
    """Where COCO took it from: tells its pictures apart, whatever they are called."""


class AnnotationEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``annotations``; ``area`` and ``bbox`` are not trusted: see `BoxEntry`."""

    image_id: Id
    category_id: Id
    id: Id | None = None
    segmentation: msgspec.Raw = _NULL
    iscrowd: int | bool | None = 0


class BoxEntry(msgspec.Struct, frozen=True, gc=False):
    """What an entry of ``annotations`` says of its object; read only without a segmentation."""

    image_id: int
    bbox: msgspec.Raw = _NULL
    area: msgspec.Raw = _NULL


class CategoryEntry(msgspec.Struct, frozen=True, gc=False):
    """An entry of ``categories``."""

    id: Id
    name: str
    supercategory: msgspec.Raw = _NULL


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """One COCO JSON, checked as a whole; or a folder of label images, or of images alone."""

    name: str
    """File name without folders."""
    sha256: str
    categories: tuple[Category, ...]
    images: tuple[ImageEntry, ...]
    instances: Mapping[int, Sequence[AnnotationEntry]]
    """By image id, in JSON order; an image without annotations is absent."""
    annotations: int
    duplicate_annotation_ids: int
    labeled: bool = True
    """Whether it has ``annotations`` at all: COCO's test sets have none."""
    forms: Mapping[str, int] = field(default_factory=dict)
    """What is written in another form than COCO's, and how often (see `lenient`)."""
    outlined: bool = True
    """Whether any annotation has a segmentation."""
    boxes: Callable[[], Mapping[int, Sequence[BoxEntry]]] = dict
    """Reads the boxes of `instances`, at the first call."""
    label_images: Mapping[int, "LabelImage"] = field(default_factory=dict)
    """By image id, where masks are label images instead of instances."""


@dataclass(frozen=True, slots=True)
class LabelImage:
    """A file whose pixels are labels, and the image that it belongs to."""

    mask: str
    """Its name in the folder, tar or zip of masks."""
    image: str | None
    """Name of the image in its folder, tar or zip; None where none is found."""
    moved: str
    """As what it is counted where the image is not beside the mask: see `names`."""
    problem: str | None = None
    detail: str = ""
    """The reason code, and the details, of what makes it useless already."""


def read_annotations(path: str) -> AnnotationFile:
    """Read and check a COCO JSON file.

    Parameters
    ----------
    path
        A local path (memory-mapped) or a URL.

    Raises
    ------
    ConfigError
        If there is no such file.
    DataError
        If it is not COCO JSON, is compressed, has a top-level list twice, or if its ids clash or
        point nowhere; the text names the file and the place in it.
    """
    content = _content(path)
    with _collector_at_rest(), ThreadPoolExecutor(1) as aside:
        # Hashing needs no interpreter: a third of a second of COCO's that nobody waits for.
        digest = aside.submit(lambda: hashlib.sha256(content).hexdigest())
        return _read(path, content, digest)


@contextlib.contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Keep the garbage collector from looking, again and again, through a million new objects.

    None of them is garbage: a tenth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read(path: str, content: memoryview, digest: "Future[str]") -> AnnotationFile:
    forms: Counter[str] = Counter()
    try:
        sections = _sections(path, content)
    except DataError:
        plain = plain_json(path, content, forms)
        if plain is None:
            raise
        sections = _sections(path, plain)
    labeled = not (sections.keys() <= _UNLABELED and "images" in sections)
    if not labeled:
        sections |= {"annotations": _EMPTY, "categories": sections.get("categories", _EMPTY)}
    lenient = LenientLists(path, forms)
    given = _decode(path, "categories", sections, list[CategoryEntry], lenient)
    images = _decode(path, "images", sections, list[ImageEntry], lenient)
    annotations = _decode(path, "annotations", sections, list[AnnotationEntry], lenient)
    categories = {(entry.id, entry.name, _text(entry.supercategory)): entry for entry in given}
    forms["repeated_categories"] += len(given) - len(categories)
    _refuse_duplicates(path, "categories", [entry.id for entry in categories.values()])
    _refuse_duplicates(path, "images", [entry.id for entry in images])
    if not images:
        raise DataError(f"{path}: $.images is empty: there is nothing to prepare")

    category_ids = {entry.id for entry in given}
    by_image: dict[int, list[AnnotationEntry]] = {entry.id: [] for entry in images}
    for position, entry in enumerate(annotations):
        if entry.category_id in category_ids and entry.image_id in by_image:
            by_image[entry.image_id].append(entry)
            continue
        where = f"{path}: $.annotations[{position}] (id {entry.id})"
        if entry.category_id not in category_ids:
            raise DataError(f"{where}: category_id {entry.category_id} is not in $.categories")
        raise DataError(f"{where}: image_id {entry.image_id} is not in $.images")
    used = {entry.category_id for entry in annotations}
    known_ids = [entry.id for entry in annotations if entry.id is not None]
    return AnnotationFile(
        name=locate(path).name,
        sha256=digest.result(),
        categories=tuple(
            Category(entry.id, entry.name, _text(entry.supercategory), entry.id in used)
            for entry in categories.values()
        ),
        images=tuple(images),
        instances={image_id: found for image_id, found in by_image.items() if found},
        annotations=len(annotations),
        duplicate_annotation_ids=len(known_ids) - len(set(known_ids)),
        labeled=labeled,
        forms={name: count for name, count in forms.items() if count},
        outlined=not all(is_blank(entry.segmentation) for entry in annotations),
        boxes=functools.cache(functools.partial(_boxes, sections["annotations"])),
    )


def is_blank(segmentation: msgspec.Raw) -> bool:
    """Return whether an annotation has no segmentation: null, or an empty list or object."""
    return _BLANK.fullmatch(segmentation) is not None


def _boxes(annotations: msgspec.Raw) -> dict[int, list[BoxEntry]]:
    by_image = defaultdict(list)
    for entry in msgspec.json.decode(annotations, type=list[BoxEntry]):
        by_image[entry.image_id].append(entry)
    return by_image


def _text(raw: msgspec.Raw) -> str | None:
    """Return a string; None for any other value, also for 1e999 and invalid UTF-8."""
    try:
        return msgspec.json.decode(raw, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def list_images(store: ImageStore) -> AnnotationFile:
    """Enter the images that no JSON describes, numbered in the order of their names.

    Their sizes are 0 here: only opening them tells.

    Raises
    ------
    DataError
        If there is none.
    """
    names = list(image_names(store))
    if not names:
        raise DataError(f"--images {store.url}: contains no image{_instead(other_names(store))}")
    return AnnotationFile(
        name=locate(store.url).name,
        sha256=hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest(),
        categories=(),
        images=tuple(ImageEntry(i, readable(name), 0, 0) for i, name in enumerate(names, start=1)),
        instances={},
        annotations=0,
        duplicate_annotation_ids=0,
        labeled=False,
    )


def _instead(names: Sequence[str]) -> str:
    return f", but {named_files(names)}" if names else ""


def _content(path: str) -> memoryview:
    """Return the file's bytes without a byte order mark; a local file is mapped, not copied."""
    local = locate(path)
    if not isinstance(local, LocalPath):
        content = memoryview(local.read_bytes())
    else:
        if os.path.exists(local) and not os.path.isfile(local) and not os.path.isdir(local):
            raise ConfigError(f"{path}: is a pipe or a device, expected a COCO JSON file")
        try:
            with open(local, "rb") as file:
                content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file") from None
        except IsADirectoryError:
            raise ConfigError(f"{path}: is a folder, expected a COCO JSON file") from None
        except ValueError:  # an empty file cannot be mapped
            raise DataError(f"{path}: is empty") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    return content[3:] if bytes(content[:3]) == b"\xef\xbb\xbf" else content


_BETWEEN = re.compile(rb'\s*[{,]\s*"(?:[^"\\]|\\.)*"\s*:\s*')


def _sections(path: str, content: memoryview) -> dict[str, msgspec.Raw]:
    """Split the top level into its values, without decoding them.

    A decoder keeps the last of two equal keys, silently. Its values are slices of `content`: where
    more than one key lies between two of them, a value was dropped.
    """
    try:
        sections = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise DataError(
            f"{path}: is not COCO: expected an object with images, annotations and categories"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        more = "; a file holds one object" if "trailing characters" in str(error) else ""
        raise DataError(f"{path}: is not JSON: {error}{more}") from None
    base = _address(content)
    end = 0
    for value in sorted((memoryview(raw) for raw in sections.values()), key=_address):
        start = _address(value) - base
        if not _BETWEEN.fullmatch(content, end, start):
            raise DataError(f"{path}: a top-level key is given twice (before byte {start})")
        end = start + value.nbytes
    if content[end:].tobytes().strip() != (b"}" if sections else b"{}"):
        raise DataError(f"{path}: a top-level key is given twice (after byte {end})")
    return sections


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0]) if view.nbytes else 0


Entry = TypeVar("Entry")


def _decode(
    path: str,
    name: str,
    sections: dict[str, msgspec.Raw],
    kind: type[list[Entry]],
    lenient: LenientLists,
) -> list[Entry]:
    if name not in sections:
        found = ", ".join(key[:40] for key in sorted(sections)[:8]) or "nothing"
        raise DataError(f"{path}: is not COCO: $.{name} is missing (the top level holds {found})")
    if not lenient.numbered:  # else a reference that is a number leads nowhere
        with contextlib.suppress(DataError):
            return _decode_strictly(path, name, sections[name], kind)
    sections[name] = lenient.rewrite(name, sections[name])
    return _decode_strictly(path, name, sections[name], kind)


def _decode_strictly(
    path: str, name: str, section: msgspec.Raw, kind: type[list[Entry]]
) -> list[Entry]:
    try:
        return msgspec.json.decode(section, type=kind)
    except msgspec.ValidationError as error:
        text = str(error)
        where = text.replace("`$", f"`$.{name}") if "`$" in text else f"{text} - at `$.{name}`"
        raise DataError(f"{path}: {where}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: $.{name} is not JSON: {error}") from None


def _refuse_duplicates(path: str, name: str, ids: list[int]) -> None:
    if len(set(ids)) != len(ids):
        twice = [value for value, count in Counter(ids).items() if count > 1]
        raise DataError(f"{path}: $.{name}: id {twice[0]} is given {Counter(ids)[twice[0]]} times")
