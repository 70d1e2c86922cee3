"""From a member's bytes to pixels: photographs and masks, nothing else.

Bytes come here only after the index has vouched for them; they are never unpickled or chosen by
extension.
"""

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .. import photo
from ..errors import DataError
from ..photo import BadPhoto
from .manifest import IndexRow
from .png import Mask, decode_plain, read_size

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 0)
"""Where Pillow refuses an image as a bomb: 179 million."""
_PNG_BITS = 24  # where a PNG's header says how many bits a sample has


def decode_photo(content: bytes, row: IndexRow, where: str) -> NDArray[np.uint8]:
    """Decode a photograph as its index row says it lies over the mask.

    Returns
    -------
    ndarray
        uint8 RGB, shape (H, W, 3).

    Raises
    ------
    DataError
        If it cannot be decoded, or has another size than the index says; begins with `where`.
    """
    try:
        return photo.decode(content, row.orientation, size=(row.width, row.height))
    except BadPhoto as bad:
        raise DataError(f"{where}: image: {bad.detail}") from None


def decode_mask(content: bytes, where: str, expected: tuple[int, ...] | None = None) -> Mask:
    """Decode a mask file.

    Parameters
    ----------
    content
        A single-channel grayscale PNG, 8 or 16 bits.
    where
        Named in errors.
    expected
        (H, W) that it must have.

    Returns
    -------
    ndarray
        Train ids, shape (H, W), uint8 or uint16.

    Raises
    ------
    DataError
        If it is anything else.
    """
    size = read_size(content)
    if expected is not None and size not in (None, tuple(expected)):  # told before it is decoded
        raise DataError(f"{where}: mask {size} and image {expected} differ in size")
    plain = decode_plain(content) if size and size[0] * size[1] <= MOST_PIXELS else None
    if plain is not None:
        return plain
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            mode = image.mode
            pixels: NDArray[np.generic] = np.array(image)
    except Exception as error:  # Pillow raises many kinds on broken files
        raise DataError(f"{where}: mask: {type(error).__name__}: {error}") from None
    if mode not in ("L", "I;16"):
        raise DataError(f"{where}: mask: mode {mode}, expected 8- or 16-bit grayscale")
    if content[_PNG_BITS] < 8:  # Pillow stretches them to 0…255
        raise DataError(f"{where}: mask: {content[_PNG_BITS]} bits a pixel, expected 8 or 16")
    return pixels.astype(np.uint8) if mode == "L" else pixels.astype(np.uint16)
