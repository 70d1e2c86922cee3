"""What the members of a sample must be by content, whatever their names say."""

import msgspec
import numpy as np

from .. import photo
from ..errors import DataError
from ..photo import EXTENSIONS, BadPhoto, PhotoInfo
from ..taxonomy import Taxonomy
from .decode import decode_mask, mask_of_another_size

_AT_ONCE = 2**22  # pixels, which NumPy counts as int64


def photo_header(content: bytes, where: str) -> PhotoInfo:
    """Return what the header of an image says; its pixels, which may be many, are let be.

    Raises
    ------
    DataError
        If it is not an image, or one of too many pixels; begins with `where`.
    """
    try:
        return photo.inspect(content)
    except BadPhoto as bad:
        raise DataError(f"{where}: image: {bad.detail}") from None


def check_photo(content: bytes, where: str) -> None:
    """Decode an image whole.

    Raises
    ------
    DataError
        If it is damaged; begins with `where`.
    """
    try:
        photo.check(content, full=True)
    except BadPhoto as bad:
        raise DataError(f"{where}: image: {bad.detail}") from None


def mask_size(content: bytes, where: str) -> tuple[int, int]:
    """Return (width, height) [pixels] by the header of a mask; its pixels are let be.

    Raises
    ------
    DataError
        If it is not stored as a gray PNG: its values are not train ids; begins with `where`.
    """
    try:
        info = photo.inspect(content)
    except BadPhoto as bad:
        raise DataError(f"{where}: mask: {bad.detail}") from None
    if info.extension != EXTENSIONS["PNG"]:
        raise DataError(f"{where}: mask: is {info.extension}, expected a PNG of train ids")
    if info.mode in ("P", "PA"):
        raise DataError(
            f"{where}: mask: has a palette, which programs read as colors: save its indices as "
            "gray, PIL.Image.fromarray(numpy.asarray(mask)), and pack the shard again"
        )
    if info.mode not in ("L", "I;16"):
        raise DataError(
            f"{where}: mask: mode {info.mode}, expected 8- or 16-bit grayscale: train ids, no "
            "colors"
        )
    if info.orientation != 1:
        raise DataError(f"{where}: mask: is turned by EXIF, which programs read differently")
    return info.width, info.height


def count_classes(
    content: bytes, where: str, size: tuple[int, int], taxonomy: Taxonomy
) -> tuple[tuple[int, int], ...]:
    """Count the pixels of each class in a mask.

    Parameters
    ----------
    size
        (width, height) that it must have [pixels].

    Returns
    -------
    tuple
        (train id, pixels) of the values that it holds, ascending.

    Raises
    ------
    DataError
        If it is damaged, or holds anything but train ids and the ignore index; begins with `where`.
    """
    said = mask_size(content, where)
    if said != size:
        raise mask_of_another_size(where, said, size)
    try:
        photo.check(content)
    except BadPhoto as bad:
        raise DataError(f"{where}: mask: {bad.detail}") from None
    mask = decode_mask(content, where, expected=size[::-1])
    if mask.shape != size[::-1]:
        raise DataError(f"{where}: mask: has other pixels than its header says")
    pixels = np.zeros(np.iinfo(mask.dtype).max + 1, np.int64)
    for start in range(0, mask.size, _AT_ONCE):
        pixels += np.bincount(mask.ravel()[start : start + _AT_ONCE], minlength=len(pixels))
    values = np.flatnonzero(pixels).tolist()
    strange = [v for v in values if v >= taxonomy.num_classes and v != taxonomy.ignore_index]
    if strange:
        raise DataError(
            f"{where}: mask: holds {', '.join(map(str, strange[:5]))}, not train ids: they "
            f"are 0 to {taxonomy.num_classes - 1}, and {taxonomy.ignore_index} is ignored"
        )
    return tuple((value, int(pixels[value])) for value in values)


class Described(msgspec.Struct, frozen=True):
    """What the json of a sample from `prepare` repeats of the index."""

    width: int
    height: int
    orientation: int


def read_described(content: bytes, where: str) -> Described:
    """Read the json of a sample from `prepare`.

    Raises
    ------
    DataError
        If it cannot be read; begins with `where`.
    """
    try:
        return msgspec.json.decode(content, type=Described)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DataError(f"{where}: its json cannot be read: {error}") from None


def check_json(content: bytes, where: str) -> None:
    """Make sure that a member is JSON; nothing of it is kept, however large it claims to be.

    Raises
    ------
    DataError
        If it is not; begins with `where`.
    """
    try:
        msgspec.json.decode(content, type=msgspec.Raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise DataError(f"{where}: its json cannot be read: {error}") from None
