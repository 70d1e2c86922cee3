"""From a member's bytes to pixels: images and masks, nothing else.

Bytes come here only after the index has vouched for them; they are never unpickled or chosen by
extension.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from .. import photo
from ..errors import CocosegError, DataError
from ..photo import BadPhoto
from .manifest import IndexRow
from .png import Mask, decode_plain, read_size

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Where Pillow refuses an image as a bomb: 179 million."""
_STRETCHED = {"L;2", "L;4"}  # Pillow's names of what it brings from fewer bits to 0…255


_EXPECTED = "expected 8- or 16-bit grayscale ('cocoseg prepare --masks' reads other kinds)"


def decode_sample(
    image: bytes, mask: bytes, row: IndexRow, where: str, bits: int
) -> tuple[NDArray[np.uint8], Mask]:
    """Decode image and mask of one sample.

    Parameters
    ----------
    bits
        Of the mask's train ids, 8 or 16.

    Returns
    -------
    tuple
        Image as `decode_photo`; train ids, shape (H, W), uint8 or uint16.

    Raises
    ------
    DataError
        As `decode_photo` and `decode_mask`; begins with `where`.
    CocosegError
        If there is not enough memory.
    """
    try:
        pixels = decode_photo(image, row, where)
        train_ids = decode_mask(mask, where, expected=pixels.shape[:2])
    except MemoryError:  # no fault of the sample
        raise CocosegError(f"{where}: not enough memory to decode it") from None
    return pixels, of_bits(train_ids, bits)


def of_bits(mask: Mask, bits: int) -> Mask:
    """Return train ids as uint8 or uint16: other writers mix both kinds."""
    if bits == 8:
        return mask.astype(np.uint8, copy=False)
    return mask.astype(np.uint16, copy=False)


def decode_photo(content: bytes, row: IndexRow, where: str) -> NDArray[np.uint8]:
    """Decode an image as its index row says it lies over the mask.

    Returns
    -------
    ndarray
        uint8 RGB, shape (H, W, 3), C-contiguous, writable.

    Raises
    ------
    DataError
        If it cannot be decoded, or has another size than the index says, which is told before any
        pixel is allocated; begins with `where`.
    """
    try:
        return photo.decode(content, row.orientation, size=(row.width, row.height))
    except BadPhoto as bad:
        wrong_size = bad.reason == "size-mismatch"
        says = f", the index says {row.width} x {row.height}" if wrong_size else ""
        raise DataError(f"{where}: image: {bad.detail}{says}") from None


def decode_mask(content: bytes, where: str, expected: tuple[int, ...] | None = None) -> Mask:
    """Decode a mask file.

    Parameters
    ----------
    content
        A single-channel grayscale PNG, 8 or 16 bits.
    where
        Named in errors.
    expected
        (H, W) that it must have: compared before any pixel is allocated.

    Returns
    -------
    ndarray
        Train ids, shape (H, W), uint8 or uint16, C-contiguous, writable.

    Raises
    ------
    DataError
        If it is anything else.
    """
    if not content:
        raise DataError(f"{where}: mask: is empty")
    said = read_size(content)
    _compare(said, expected, where)
    plain = decode_plain(content) if said and said[0] * said[1] <= MOST_PIXELS else None
    if plain is not None:
        return plain
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            _compare(image.size[::-1], expected, where)  # it may hold a second header
            mode, stretched = image.mode, {str(tile.args) for tile in image.tile} & _STRETCHED
            pixels: NDArray[np.generic] = np.array(image)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: mask: is not a PNG") from None
    except Exception as error:  # Pillow raises many kinds on broken files
        raise DataError(f"{where}: mask: {type(error).__name__}: {error}") from None
    if mode not in ("L", "I;16"):
        raise DataError(f"{where}: mask: mode {mode}, {_EXPECTED}")
    if stretched:
        bits = stretched.pop().removeprefix("L;")
        raise DataError(f"{where}: mask: {bits} bits per pixel, {_EXPECTED}")
    return np.asarray(pixels, np.uint8) if mode == "L" else np.asarray(pixels, np.uint16)


def mask_of_another_size(where: str, mask: tuple[int, ...], image: tuple[int, ...]) -> DataError:
    """Return the error of a mask that is not as large as its image: (width, height) each."""
    sizes = (" x ".join(map(str, size)) for size in (mask, image))
    return DataError("{}: mask {} and image {} differ in size".format(where, *sizes))


def _compare(size: tuple[int, int] | None, expected: tuple[int, ...] | None, where: str) -> None:
    if expected is not None and size not in (None, tuple(expected)):
        raise mask_of_another_size(where, size[::-1], expected[::-1])
