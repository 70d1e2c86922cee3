"""An image's bytes: which format it is, how EXIF turns it, and its pixels as uint8 RGB."""

import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from . import jpeg
from .errors import DataError

# Pillow's format name → extension in a shard. A PNG photo must not be named as the mask is.
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with further pictures behind it (phones); its first one counts
    "PNG": "image.png",
    "WEBP": "webp",
    "TIFF": "tif",
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG2000": "jp2",
    "AVIF": "avif",
    "HEIF": "heic",  # by pillow-heif, where it is installed
    "PPM": "ppm",
    **{form: form.lower() for form in ("DIB", "TGA", "PCX", "SGI", "QOI", "ICO", "DDS", "PSD")},
}
"""The others that Pillow opens are not read: PostScript would start another program, and videos,
volumes and metafiles are not images."""

MAX_BYTES = 2**30
"""Larger files are not read; images of more pixels than Pillow allows, 179 million, neither."""

MAX_SIDE = 2**26
"""Pixels; rows that are longer are more than Pillow's integers can count, in bits."""

_HEIC_SUFFIXES = {".heic", ".heif", ".hif"}
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")
"""ISO/IEC 23008-12, 10.2: what follows ``ftyp`` in the first box of the file."""
_LITTER = {
    *("__macosx", "@eadir", "$recycle.bin", "lost+found", "thumbs.db", "desktop.ini"),
    *(".ds_store", ".appledouble", ".spotlight-v100", ".fseventsd", ".trashes", ".trash"),
    *(".thumbnails", ".ipynb_checkpoints", ".git", ".files.json"),
}
"""Names, in lower case, that file systems, archivers and programs use; as do those with ``._``."""

# EXIF orientation (TIFF 6.0, tag 274) → what turns the stored pixels upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION_TAG = 0x0112
_JPEGS = ("JPEG", "MPO")
_PNG_EXIF = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")
"""Where Pillow finds EXIF in a PNG; it decodes the pixels to get to what is behind them."""
_PNG_END = b"\0\0\0\0IEND\xae\x42\x60\x82"  # the empty IEND chunk
_OPPOSITE = {6: 8, 8: 6}  # which turn undoes a turn; all others undo themselves
_COUNTED_BY_SEEKING = ("GIF", "TIFF")
_KINDS = {"1": "gray", "L": "gray", "P": "palette", "CMYK": "CMYK"}
_TURNED_BY_PILLOW = ("TIFF",)  # these alone it turns by itself, the size when opened


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Return the extensions of images, with their dots, in lower case."""
    Image.init()
    known = (suffix for suffix, form in Image.EXTENSION.items() if form in EXTENSIONS)
    return tuple({*known, *_HEIC_SUFFIXES})


def is_image_name(path: str) -> bool:
    """Return whether a file is an image by its name: `suffixes`, and not `is_litter`."""
    return path.lower().endswith(suffixes()) and not is_litter(path)


def is_litter(path: str) -> bool:
    """Return whether a file was left by a file system, an archiver or a program, as ``._name``."""
    return any(part.startswith("._") or part.lower() in _LITTER for part in path.split("/"))


class BadPhoto(DataError):
    """An image that cannot be trusted; `reason` is its quarantine code."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return (BadPhoto, (self.reason, self.detail))


@dataclass(frozen=True, slots=True)
class PhotoInfo:
    """What an image's header says."""

    extension: str
    """Extension by content, lower case, as shards name it (``jpg``, ``image.png`` …)."""
    width: int
    height: int
    """Size of the stored pixels, before any turn [pixels]."""
    orientation: int
    """EXIF orientation, 1…8; 1 where there is none."""
    mode: str
    """Pillow's mode: ``RGB``, ``L``, ``CMYK``, ``P``, ``I;16`` …"""
    alpha: bool
    """Whether it has a transparency, which decoding drops."""
    frames: int
    """Pictures in the file; the first one counts."""

    def size(self, orientation: int) -> tuple[int, int]:
        """Return (width, height) [pixels] after a turn by `orientation`."""
        return _turned((self.width, self.height), orientation)


def inspect(content: bytes) -> PhotoInfo:
    """Read an image's header.

    Raises
    ------
    BadPhoto
        ``empty-file``, ``undecodable-image``, ``unsupported-format`` or ``image-too-large``; for a
        PNG with EXIF, which may stand behind the pixels, also as `check`.
    """
    with _open(content) as image:
        return _info(image, content)


def check(content: bytes, full: bool = False) -> PhotoInfo:
    """Read the header and make sure that the file is whole.

    Parameters
    ----------
    full
        Decode every pixel. Otherwise only a file whose end is not where its format says is decoded:
        50 x faster, and every file that was cut is found, and every PNG that was damaged.

    Raises
    ------
    BadPhoto
        As `inspect`, ``truncated-image``, and ``damaged-image`` for a file that has its end and
        cannot be decoded, or a PNG with a wrong checksum.
    """
    with _open(content) as image:
        info, form = _info(image, content), str(image.format)
        if full or not _ends_as_it_should(content, form):
            _load(image, content)
            if not _has_end(content, form):
                raise BadPhoto("truncated-image", "no end marker follows the pixels")
    if info.extension == EXTENSIONS["PNG"]:
        _verify_png(content)
    return info


def _ends_as_it_should(content: bytes, form: str) -> bool:
    """Return whether a file's last bytes are those of its format; False for other formats."""
    if form in _JPEGS:
        return jpeg.ends_with_marker(content)
    if form == "PNG":
        return content.endswith(_PNG_END)
    if form in ("WEBP", "BMP"):  # both say their length in the header
        place, less = (4, 8) if form == "WEBP" else (2, 0)
        return int.from_bytes(content[place : place + 4], "little") + less == len(content)
    return False


def _has_end(content: bytes, form: str) -> bool:
    """Return whether there is an end, with whatever behind it; a decoder may not miss it."""
    if form in _JPEGS:
        return jpeg.has_end(content)
    return form != "PNG" or _PNG_END in content


def decode(
    content: bytes, orientation: int | None = None, size: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode an image to RGB.

    Gray is repeated, palettes and CMYK are converted, alpha is dropped, 16-bit samples keep their
    upper byte (Pillow's own conversion would clip them to white).

    Parameters
    ----------
    orientation
        The turn to apply, 1…8; by default the one in EXIF.
    size
        (width, height) that it must have after the turn [pixels]. Where `orientation` is given, it
        is compared before any pixel is decoded or allocated.

    Returns
    -------
    ndarray
        uint8 RGB, shape (H, W, 3), C-contiguous, writable.

    Raises
    ------
    BadPhoto
        If the bytes are not a complete image of a supported format; ``size-mismatch``.
    MemoryError
        If it does not fit.
    """
    with _open(content) as image:
        _extension(image)
        by_pillow = image.format in _TURNED_BY_PILLOW
        known = orientation is not None and not by_pillow
        own = 1 if known else _orientation(image, content)  # EXIF costs time, in a PNG all pixels
        stored = _stored_size(image, own)
        turns = [own if orientation is None else orientation]
        if size is not None and _turned(stored, turns[0]) != size:
            width, height = _turned(stored, turns[0])
            raise BadPhoto("size-mismatch", f"the photo is {width} x {height}")
        if by_pillow:
            turns.insert(0, _OPPOSITE.get(own, own))
        return _upright(image, content, turns)


def _upright(image: Image.Image, content: bytes, turns: Sequence[int]) -> NDArray[np.uint8]:
    pixels = jpeg.decode(content, image.size) if image.format in _JPEGS else None
    if pixels is None:
        pixels = _decode_by_pillow(image, content)
    for turn in turns:
        if turn in _TURNS:
            pixels = np.array(Image.fromarray(pixels).transpose(_TURNS[turn]))
    return pixels


def kind(content: bytes) -> str:
    """Return what `decode` makes RGB of: ``gray``, ``palette``, ``CMYK``, ``16 bits``, ``alpha``.

    Empty for plain RGB.

    Raises
    ------
    BadPhoto
        If the header cannot be read.
    """
    with _open(content) as image:
        if _has_alpha(image):
            return "alpha"
        if image.mode.startswith("I;16"):
            return "16 bits"
        return _KINDS.get(image.mode, "")


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info


def _decode_by_pillow(image: Image.Image, content: bytes) -> NDArray[np.uint8]:
    _load(image, content)
    if image.mode.startswith("I;16"):  # TIFF and PNG, 16 bits a sample
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode == "La":  # gray times alpha, in TIFFs: Pillow divides on this way alone
        image = image.convert("LA")
    if image.mode != "RGB":
        image = image.convert("RGB")
    return np.array(image, dtype=np.uint8)


def _open(content: bytes) -> Image.Image:
    if not content:
        raise BadPhoto("empty-file", "the file has 0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(content))
    except UnidentifiedImageError:
        if content[4:8] == b"ftyp" and content[8:12] in _HEIC_BRANDS and _learn_heic():
            return _open(content)
        start = bytes(content[:16])
        raise BadPhoto("undecodable-image", f"is not an image: it starts with {start!r}") from None
    except Image.DecompressionBombError as error:
        raise BadPhoto("image-too-large", str(error)) from None
    except Exception as error:  # Pillow's plugins raise many kinds on hostile headers
        raise BadPhoto("undecodable-image", f"{type(error).__name__}: {error}") from None
    if max(image.size) > MAX_SIDE:
        size = f"{image.size[0]:,} x {image.size[1]:,}"
        raise BadPhoto("image-too-large", f"{size} pixels; at most {MAX_SIDE:,} on a side")
    return image


def _learn_heic() -> bool:
    """Make Pillow open HEIC files; return whether it did not before.

    Raises
    ------
    BadPhoto
        If pillow-heif is not installed.
    """
    if "HEIF" in Image.OPEN:
        return False
    try:
        import pillow_heif
    except ImportError:
        detail = "is an image of type heic: pip install 'cocoseg[heic]'"
        raise BadPhoto("unsupported-format", detail) from None
    pillow_heif.register_heif_opener()
    return True


def _info(image: Image.Image, content: bytes) -> PhotoInfo:
    extension = _extension(image)
    orientation = _orientation(image, content)
    width, height = _stored_size(image, orientation)
    frames = _frames(image, content)
    return PhotoInfo(extension, width, height, orientation, image.mode, _has_alpha(image), frames)


def _extension(image: Image.Image) -> str:
    extension = EXTENSIONS.get(image.format or "")
    if extension is None:
        known = ", ".join(EXTENSIONS)
        raise BadPhoto("unsupported-format", f"is {image.format}; supported: {known}")
    if image.mode in ("I", "F"):  # measurements, not an image: no range to bring to 0…255
        raise BadPhoto("unsupported-format", "has 32-bit samples; supported: 8 and 16 bits")
    return extension


def _stored_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Return (width, height) of the stored pixels, whose EXIF says `orientation`."""
    return _turned(image.size, orientation if image.format in _TURNED_BY_PILLOW else 1)


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    width, height = size
    return (height, width) if orientation >= 5 else (width, height)  # 5…8 swap the axes


def _orientation(image: Image.Image, content: bytes) -> int:
    if image.format == "PNG":
        if not any(mark in content for mark in _PNG_EXIF):
            return 1
        _load(image, content)  # getexif() would: a failure would go unseen, and not come again
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block says nothing of the pixels; counted as "no turn"
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _frames(image: Image.Image, content: bytes) -> int:
    if image.format == "JPEG":
        return 1
    try:
        if image.format in _COUNTED_BY_SEEKING:  # on a broken picture, it stays there
            with _open(content) as another:
                return int(getattr(another, "n_frames", 1))
        return int(getattr(image, "n_frames", 1))
    except Exception:  # what follows the first picture is broken: it is not read
        return 1


def _verify_png(content: bytes) -> None:
    """Compare every chunk with its CRC, which decoding does not."""
    with _open(content) as image:
        try:
            image.verify()
        except Exception as error:
            raise BadPhoto("damaged-image", f"{type(error).__name__}: {error}") from None


def _load(image: Image.Image, content: bytes) -> None:
    try:
        image.load()
    except MemoryError:  # no fault of the image
        raise
    except Exception as error:  # OSError, SyntaxError, struct.error …: whatever the plugin meets
        whole = _ends_as_it_should(content, str(image.format))
        reason = "damaged-image" if whole else "truncated-image"
        raise BadPhoto(reason, f"{type(error).__name__}: {error}") from None
