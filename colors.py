"""Masks as pictures for people: the VOC colour map, overlays and side by sides.

Source of the colours: the PASCAL VOC development kit (`VOCdevkit`, ``VOClabelcolormap.m``), where
the bits of a class number are dealt to red, green and blue from the highest bit down.
"""

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

VOID_COLOR = (224, 224, 192)
"""VOC's colour of ignored pixels."""


@functools.cache
def voc_colormap(size: int = 256) -> NDArray[np.uint8]:
    """Return the VOC colour map.

    Returns
    -------
    ndarray
        uint8, shape (size, 3): RGB by train id; 0 is black. Read-only.
    """
    ids = np.arange(size, dtype=np.int64)
    colors = np.zeros((size, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    colors.flags.writeable = False
    return colors


def mask_to_color(mask: NDArray[np.integer], ignore_index: int | None = None) -> NDArray[np.uint8]:
    """Colour a mask by the VOC map.

    Parameters
    ----------
    mask
        Train ids, shape (H, W), uint8 or uint16.
    ignore_index
        Value shown in `VOID_COLOR`; by default the largest value of the mask's dtype. One that
        the dtype cannot hold is in no pixel: predictions of 255 and 256 classes are uint8.

    Returns
    -------
    ndarray
        uint8 RGB, shape (H, W, 3).

    Raises
    ------
    ValueError
        If `mask` is not a two-dimensional array of unsigned integers.
    """
    if mask.ndim != 2 or mask.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"a mask is uint8 or uint16 (H, W), not {mask.dtype} {mask.shape}")
    largest = int(np.iinfo(mask.dtype).max)
    colormap = voc_colormap(largest + 1).copy()
    void = largest if ignore_index is None else ignore_index
    if void <= largest:
        colormap[void] = VOID_COLOR
    return np.take(colormap, mask, axis=0)


def overlay_mask(
    image: NDArray[np.uint8],
    mask: NDArray[np.integer],
    alpha: float = 0.55,
    ignore_index: int | None = None,
) -> NDArray[np.uint8]:
    """Lay a coloured mask over its photograph; background stays clear.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    mask
        Train ids, shape (H, W).
    alpha
        Weight of the colour, 0…1.

    Returns
    -------
    ndarray
        uint8 RGB, shape (H, W, 3).

    Raises
    ------
    ValueError
        If the sizes differ or `alpha` is outside 0…1.
    """
    if image.shape != (*mask.shape, 3):
        raise ValueError(f"image {image.shape} and mask {mask.shape} differ in size")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is 0…1, not {alpha}")
    blended = np.multiply(mask_to_color(mask, ignore_index), alpha, dtype=np.float32)
    blended += np.multiply(image, 1 - alpha, dtype=np.float32)
    overlay = np.rint(blended, out=blended).astype(np.uint8)
    np.copyto(overlay, image, where=(mask == 0)[..., None])
    return overlay


def visualize_prediction(
    image: NDArray[np.uint8],
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    names: Sequence[str] = (),
    ignore_index: int | None = None,
) -> Image.Image:
    """Put image, truth and prediction side by side, with captions and a colour key.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    truth, prediction
        Train ids, shape (H, W).
    names
        Class names by train id, for the key below; none gives no key.

    Returns
    -------
    Image
        RGB, three panels of W × H with a caption each.
    """
    panels = [
        ("image", image),
        ("truth", overlay_mask(image, truth, ignore_index=ignore_index)),
        ("prediction", overlay_mask(image, prediction, ignore_index=ignore_index)),
    ]
    height, width = truth.shape
    gap, caption = 6, 16
    entries = [int(i) for i in np.union1d(truth, prediction) if 0 < i < len(names)]
    total = 3 * width + 4 * gap
    places, key_height = _key_places([names[i] for i in entries], total, gap)
    sheet = Image.new("RGB", (total, height + caption + 2 * gap + key_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, pixels) in enumerate(panels):
        left = gap + i * (width + gap)
        draw.text((left, 2), title, fill="black")
        sheet.paste(Image.fromarray(pixels), (left, caption))
    for train_id, (x, y) in zip(entries, places, strict=True):
        top = height + caption + gap + y
        color = tuple(int(v) for v in voc_colormap(len(names))[train_id])
        draw.rectangle((x, top, x + 10, top + 10), fill=color, outline="black")
        draw.text((x + 14, top - 1), names[train_id], fill="black")
    return sheet


def _key_places(names: Sequence[str], width: int, gap: int) -> tuple[list[tuple[int, int]], int]:
    """Flow the key's entries into rows; return their top left corners and the height [pixels]."""
    font = ImageDraw.ImageDraw(Image.new("RGB", (1, 1))).getfont()
    places, x, y = [], gap, 0
    for name in names:
        need = 14 + int(font.getlength(name)) + 12
        if x + need > width and x > gap:
            x, y = gap, y + 16
        places.append((x, y))
        x += need
    return places, y + 16 if names else 0
