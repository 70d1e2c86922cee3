"""Folders of label images: which image each belongs to, and the labels in their pixels."""

import hashlib
import io
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import photo
from ..errors import ConfigError, DataError
from ..photo import BadPhoto
from ..processes import available_cores
from ..shards.png import Mask
from ..storage import LocalPath, locate
from .annotations import AnnotationFile, ImageEntry, LabelImage
from .images import Catalog, ImageArchive, ImageStore, PhotoPlace, image_names, read_photo, readable
from .label_values import LabelClasses, LabelValues, classes_of_values, color_text, named_classes
from .outlines import BadAnnotation

SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")
"""Lossless formats."""
_DENSE = 254  # up to this value masks have 8 bits, whether all values occur or not
_FEW = 16  # below this value, absent values are not reported
_LOSSLESS = ("image.png", "tif", "bmp", "gif")  # extensions of `photo.EXTENSIONS`
_LOSSY_TIFF = ("jpeg", "tiff_jpeg", "webp")  # Pillow's names of compressions
_BITS = {"L;2": 85, "L;4": 17}  # Pillow's rawmode → the factor by which it stretches to 0…255


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels in the pixels of one image."""

    values: NDArray[np.uint8] | NDArray[np.uint16] | None
    """Gray values or palette indices, shape (H, W); None where a pixel is not gray."""
    colors: NDArray[np.uint32] | None
    """0xRRGGBB, shape (H, W); None for an image of one channel."""


def list_label_images(
    images: ImageStore, masks: ImageStore, image_suffix: str, mask_suffix: str
) -> tuple[AnnotationFile, int]:
    """Find the image of every label image, by its path without suffix and extension.

    Returns
    -------
    source
        One entry for each label image, numbered in the order of their names.
    without_mask
        Number of images that have none.

    Raises
    ------
    DataError
        If there is no label image, or none has an image.
    """
    inside = _prefix(images, masks)
    every = list(_stems(image_names(masks), mask_suffix))
    found = [(stem, name) for stem, name in every if name.lower().endswith(SUFFIXES)]
    if not found:
        raise DataError(_no_mask(masks, mask_suffix))
    if inside is None:  # otherwise JPEG files may be the images
        readable_stems = {stem for stem, _ in found}  # the others are quarantined as lossy-mask
        found += [pair for pair in every if pair[0] not in readable_stems]
        found.sort(key=lambda pair: pair[1])
    own = set() if inside is None else {f"{inside}{name}" for _, name in found}
    stems: dict[str, list[str]] = defaultdict(list)
    for stem, name in _stems(image_names(images), image_suffix):
        if name not in own:
            stems[stem].append(name)
    images_by_name = {name for names in stems.values() for name in names}
    catalog = Catalog(ImageArchive(images.url, dict.fromkeys(stems, PhotoPlace(images.url))))
    twice = Counter(stem for stem, _ in found)
    entries, labels = [], {}
    for number, (stem, mask) in enumerate(found, start=1):
        try:
            if twice[stem] > 1:
                raise BadPhoto("shared-file", f"{twice[stem]} masks have the name {stem!r}")
            if f"{stem}{image_suffix}" in images_by_name:  # x.jpg.png is the mask of x.jpg
                name, moved = f"{stem}{image_suffix}", ""
            else:
                name, moved = _image_of(catalog, stems, stem)
        except BadPhoto as bad:
            label = LabelImage(mask, None, "", bad.reason, f"mask {mask!r}: {bad.detail}")
        else:
            label = LabelImage(mask, name, moved)
        labels[number] = label
        entries.append(ImageEntry(number, readable(label.image or mask), 0, 0))
    used = {label.image for label in labels.values()} - {None}
    if not used:
        raise DataError(
            f"--masks {masks.url}: none of the {len(found)} masks has an image in {images.url}; "
            f"the first is {found[0][1]!r}, and should have an image {found[0][0] + image_suffix!r}"
            ". If the names differ at the end, give --mask-suffix and --image-suffix"
        )
    sizes = (str(masks.size(n)) if masks.sizes_are_cheap else "" for _, n in found)
    listed = "\n".join(f"{name}\t{size}" for (_, name), size in zip(found, sizes, strict=True))
    source = AnnotationFile(
        name=locate(masks.url).name,
        sha256=hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest(),
        categories=(),
        images=tuple(entries),
        instances={},
        annotations=len(found),
        duplicate_annotation_ids=0,
        label_images=labels,
    )
    return source, sum(map(len, stems.values())) - len(used)


def _stems(names: Iterable[str], suffix: str) -> Iterator[tuple[str, str]]:
    """Yield the names that end in a suffix before the extension, each after the rest of it."""
    for name in names:
        root = os.path.splitext(name)[0]
        if root.endswith(suffix):
            yield root.removesuffix(suffix), name


def _no_mask(masks: ImageStore, suffix: str) -> str:
    wanted = f"{suffix}{{{','.join(SUFFIXES)}}}"
    if any(name.lower().endswith((".jpg", ".jpeg", ".webp")) for name in masks.names):
        return (
            f"--masks {masks.url}: contains JPEG or WebP files, whose pixels are not exact labels; "
            f"expected {wanted}"
        )
    return f"--masks {masks.url}: contains no file with a name that ends in {wanted}"


def _prefix(images: ImageStore, masks: ImageStore) -> str | None:
    """Return what precedes the names of masks among those of images; None if they lie apart."""
    outer, inner = (
        os.path.realpath(place) if isinstance(place, LocalPath) else place.url
        for place in map(locate, (images.url, masks.url))
    )
    if outer == inner:
        return ""
    return f"{inner[len(outer) + 1 :]}/" if inner.startswith(f"{outer}/") else None


def _image_of(catalog: Catalog, stems: Mapping[str, Sequence[str]], stem: str) -> tuple[str, str]:
    name, moved = catalog.find(stem)
    if len(stems[name]) > 1:
        raise BadPhoto("ambiguous-file", f"several images: {', '.join(stems[name][:3])}")
    return stems[name][0], moved


def label_classes(
    classes: str, mask_suffix: str, sources: Sequence[AnnotationFile], masks: Sequence[ImageStore]
) -> LabelClasses:
    """Return the classes of label images; ``auto`` reads all of them to find the values.

    Raises
    ------
    ConfigError
        See `named_classes`; if ``auto`` finds colors.
    DataError
        If ``auto`` finds no class.
    """
    if classes == "coco":
        raise ConfigError("--classes coco: is for --annotations; give the values in a file")
    if classes != "auto":
        return named_classes(classes, mask_suffix, len(sources))
    places = [
        store.location(label.mask)
        for source, store in zip(sources, masks, strict=True)
        for label in source.label_images.values()
    ]
    values: set[int] = set()
    ignored: set[int] = set()
    with ThreadPoolExecutor(available_cores()) as threads:
        for place, labels in zip(places, threads.map(_try_to_read, places), strict=True):
            if labels is None:
                continue
            if labels.values is None:
                raise ConfigError(
                    f"--masks: {locate(place.url)} contains colors ({_some_colors(labels)}): give "
                    "--classes voc, cityscapes, or a file with the colors of the classes"
                )
            largest = int(np.iinfo(labels.values.dtype).max)
            found = set(np.flatnonzero(np.bincount(labels.values.ravel())).tolist())
            ignored |= found & {largest}
            values |= found - {largest}
    if values <= {0} and ignored:
        only = " and ".join(map(str, sorted(values | ignored)))
        raise DataError(
            f"--masks: look like binary masks: they contain only {only}, and {max(ignored)} means "
            f"ignore; give --classes a file with the line '{max(ignored)}: NAME' to make it a class"
        )
    if values <= {0}:
        raise DataError("--masks: contain no class: every value is 0, or no mask can be read")
    largest = max(values)
    sparse = largest >= _FEW and len(values | {0}) <= (largest + 1) / 2
    if largest > _DENSE and sparse:
        raise ConfigError(
            f"--masks: contain {len(values):,} different values up to {largest:,}: are these "
            "instance ids? If they are classes, give --classes a file with lines 'value: name'"
        )
    notes = []
    if sparse:
        notes.append(
            f"{len(values):,} of the values 0 to {largest:,} occur, the others are classes without "
            "pixels: to name those that exist, give --classes a file with lines 'value: name'"
        )
    if ignored:
        notes.append(f"the value {max(ignored)} is ignored, unless a file of --classes lists it")
    return classes_of_values(largest, len(sources), notes)


def _try_to_read(place: PhotoPlace) -> Labels | None:
    try:
        return read_labels(read_photo(place))
    except BadPhoto:  # the build quarantines it
        return None


def _some_colors(labels: Labels) -> str:
    assert labels.colors is not None
    return ", ".join(map(color_text, np.unique(labels.colors)[:4].tolist()))


def paint_labels(content: bytes, rules: LabelValues) -> Mask:
    """Make a mask of train ids from the file of a label image.

    Returns
    -------
    ndarray
        Train ids, shape (H, W), uint8, or uint16 when the ignore index is 65535.

    Raises
    ------
    BadPhoto
        If the file is damaged, or not of a lossless format.
    BadAnnotation
        ``unknown-value``; ``unexpected-colors`` if colors have no meaning.
    """
    labels = read_labels(content, palette_colors=not rules.values)
    if labels.colors is not None and rules.colors:
        return rules.to_mask_by_color(labels.colors)
    if labels.values is None:
        detail = f"the mask contains colors ({_some_colors(labels)}), --classes lists values only"
        raise BadAnnotation("unexpected-colors", detail)
    if rules.values or labels.values.dtype != np.uint8:
        return rules.to_mask(labels.values)
    return rules.to_mask_by_color(labels.values * np.uint32(0x010101))


def read_labels(content: bytes, palette_colors: bool = False) -> Labels:
    """Decode a label image.

    Gray of 1 to 16 bits gives its values, a palette its indices, RGB its colors, and values too
    where its three channels are equal everywhere.

    Parameters
    ----------
    palette_colors
        Take the colors of a palette instead of its indices.

    Raises
    ------
    BadPhoto
        If the file is damaged, or not of a lossless format.
    """
    try:
        info = photo.check(content)
        with Image.open(io.BytesIO(content)) as image:
            lossy = image.info.get("compression") in _LOSSY_TIFF
            if lossy or info.extension not in _LOSSLESS:
                raise BadPhoto(
                    "lossy-mask",
                    f"is a {image.format} file whose pixels may not be exact labels; expected PNG, "
                    "BMP, GIF or TIFF without JPEG compression",
                )
            factor = next((_BITS[str(t.args)] for t in image.tile if str(t.args) in _BITS), 1)
            image.load()
            return _labels(image, factor, palette_colors)
    except BadPhoto as bad:
        raise BadPhoto(bad.reason, f"mask: {bad.detail}") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds on broken files
        raise BadPhoto("undecodable-image", f"mask: {type(error).__name__}: {error}") from None


def _labels(image: Image.Image, factor: int, palette_colors: bool) -> Labels:
    if image.mode == "P" and palette_colors:
        image = image.convert("RGB")
    if image.mode in ("1", "L", "P"):
        return Labels(np.array(image, np.uint8) // np.uint8(factor), None)
    if image.mode == "LA":
        return Labels(np.array(image.getchannel("L")), None)
    if image.mode.startswith("I;16"):
        return Labels(np.array(image).astype(np.uint16), None)
    if image.mode in ("RGB", "RGBA"):
        pixels: NDArray[np.uint8] = np.array(image)[:, :, :3]
        gray = bool((pixels == pixels[:, :, :1]).all())
        colors = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
        return Labels(pixels[:, :, 0] if gray else None, colors)
    raise BadPhoto("unsupported-format", f"has mode {image.mode}; expected gray, a palette or RGB")
