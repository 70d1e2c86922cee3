"""Masks as pictures for people: colors of classes, overlays, legends and side by sides."""

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

VOID_COLOR = (224, 224, 192)
"""VOC's color of ignored pixels."""
ERROR_COLOR = (255, 0, 0)
_KEY_SIZE = 10  # of letters and squares [pixels]


@functools.cache
def voc_colormap(size: int = 256) -> NDArray[np.uint8]:
    """Return the VOC color map.

    The bits of a class number are dealt to red, green and blue from the highest bit down. Source:
    the PASCAL VOC development kit (`VOCdevkit`, ``VOClabelcolormap.m``).

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


@functools.cache
def distinct_colormap(size: int = 256) -> NDArray[np.uint8]:
    """Return colors that are easy to tell apart: each is as far as possible from those before it.

    Distances are those of CIELAB. Beyond 256 classes the colors are those of `voc_colormap`.

    Returns
    -------
    ndarray
        uint8, shape (size, 3): RGB by train id; 0 is black. Read-only.
    """
    steps = np.arange(0, 256, 17)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _lab(grid)
    bright = (lab[:, 0] > 42) & (lab[:, 0] < 90)
    grid, lab = grid[bright], lab[bright]
    colors = voc_colormap(size).copy()
    taken = _lab(np.array([(0, 0, 0), (255, 255, 255), (128, 128, 128), VOID_COLOR]))
    nearest = np.linalg.norm(lab[:, None] - taken, axis=2).min(axis=1)
    for train_id in range(1, min(size, 256)):
        place = int(nearest.round(6).argmax())
        colors[train_id] = grid[place]
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[place], axis=1))
    colors.flags.writeable = False
    return colors


def _lab(rgb: NDArray[np.integer]) -> NDArray[np.float64]:
    """Convert sRGB, 0…255, shape (N, 3), to CIELAB (D65). Source: IEC 61966-2-1, CIE 15."""
    part = rgb / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = root.T
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=1)


Palette = Literal["distinct", "voc"]


def colormap(palette: Palette, size: int) -> NDArray[np.uint8]:
    """Return the colors of a palette, uint8 RGB by train id, shape (size, 3). Read-only."""
    return voc_colormap(size) if palette == "voc" else distinct_colormap(size)


def mask_to_color(
    mask: NDArray[np.integer], ignore_index: int | None = None, palette: Palette = "distinct"
) -> NDArray[np.uint8]:
    """Color a mask.

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
    colors = colormap(palette, largest + 1).copy()
    void = _void(mask, ignore_index)
    if void <= largest:
        colors[void] = VOID_COLOR
    return np.take(colors, mask, axis=0)


def overlay_mask(
    image: NDArray[np.uint8],
    mask: NDArray[np.integer],
    alpha: float = 0.55,
    ignore_index: int | None = None,
    palette: Palette = "distinct",
) -> NDArray[np.uint8]:
    """Lay a colored mask over its image; background stays clear.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    mask
        Train ids, shape (H, W).
    alpha
        Weight of the color, 0…1.

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
    blended = np.multiply(mask_to_color(mask, ignore_index, palette), alpha, dtype=np.float32)
    blended += np.multiply(image, 1 - alpha, dtype=np.float32)
    overlay = np.rint(blended, out=blended).astype(np.uint8)
    np.copyto(overlay, image, where=(mask == 0)[..., None])
    return overlay


def overlay_errors(
    image: NDArray[np.uint8],
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    ignore_index: int,
) -> NDArray[np.uint8]:
    """Mark the wrong pixels of a prediction red on a gray image; what is ignored is darkened.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    truth, prediction
        Train ids, shape (H, W).

    Returns
    -------
    ndarray
        uint8 RGB, shape (H, W, 3).
    """
    gray = np.array(Image.fromarray(image).convert("L"))
    ignored = truth == ignore_index
    gray = np.where(ignored, gray // 3, gray // 2 + 96).astype(np.uint8)
    marked = np.repeat(gray[..., None], 3, axis=2)
    wrong = (truth != prediction) & ~ignored
    marked[wrong] = (marked[wrong] // 3 + np.array(ERROR_COLOR, np.uint16) * 2 // 3).astype(
        np.uint8
    )
    return marked


def add_legend(
    image: NDArray[np.uint8],
    mask: NDArray[np.integer],
    names: Sequence[str],
    palette: Palette = "distinct",
) -> Image.Image:
    """Append the names and colors of the classes in a mask below an image.

    Parameters
    ----------
    image
        uint8 RGB, shape (H, W, 3).
    mask
        Train ids, shape (H, W).
    names
        Class names by train id.

    Returns
    -------
    Image
        RGB, W pixels wide, at least H high.
    """
    height, width = image.shape[:2]
    entries = [int(i) for i in np.unique(mask) if 0 < i < len(names)]
    size = max(_KEY_SIZE, width // 64)
    places, key_height = _key_places([names[i] for i in entries], width, 4, size)
    sheet = Image.new("RGB", (width, height + key_height + (4 if entries else 0)), "white")
    sheet.paste(Image.fromarray(image))
    _draw_key(sheet, entries, names, [(x, height + 4 + y) for x, y in places], palette, size)
    return sheet


def _draw_key(
    sheet: Image.Image,
    entries: Sequence[int],
    names: Sequence[str],
    places: Sequence[tuple[int, int]],
    palette: Palette,
    size: int,
) -> None:
    draw, colors = ImageDraw.Draw(sheet), colormap(palette, max(256, len(names)))
    font = ImageFont.load_default(size)
    for train_id, (x, top) in zip(entries, places, strict=True):
        red, green, blue = colors[train_id].tolist()
        draw.rectangle((x, top, x + size, top + size), fill=(red, green, blue), outline="black")
        draw.text((x + size + 4, top - 1), names[train_id], fill="black", font=font)


def visualize_prediction(
    image: NDArray[np.uint8],
    truth: NDArray[np.integer],
    prediction: NDArray[np.integer],
    names: Sequence[str] = (),
    ignore_index: int | None = None,
) -> Image.Image:
    """Put image, ground truth, prediction and errors side by side, with captions and a color key.

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
        RGB, four panels of W × H with a caption each.
    """
    panels = [
        ("image", image),
        ("ground truth", overlay_mask(image, truth, ignore_index=ignore_index)),
        ("prediction", overlay_mask(image, prediction, ignore_index=ignore_index)),
        ("errors", overlay_errors(image, truth, prediction, _void(truth, ignore_index))),
    ]
    height, width = truth.shape
    gap, caption = 6, 16
    entries = [int(i) for i in np.union1d(truth, prediction) if 0 < i < len(names)]
    total = len(panels) * width + (len(panels) + 1) * gap
    places, key_height = _key_places([names[i] for i in entries], total, gap, _KEY_SIZE)
    sheet = Image.new("RGB", (total, height + caption + 2 * gap + key_height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (title, pixels) in enumerate(panels):
        left = gap + i * (width + gap)
        draw.text((left, 2), title, fill="black")
        sheet.paste(Image.fromarray(pixels), (left, caption))
    below = [(x, height + caption + gap + y) for x, y in places]
    _draw_key(sheet, entries, names, below, "distinct", _KEY_SIZE)
    return sheet


def _void(mask: NDArray[np.integer], ignore_index: int | None) -> int:
    return int(np.iinfo(mask.dtype).max) if ignore_index is None else ignore_index


def _key_places(
    names: Sequence[str], width: int, gap: int, size: int
) -> tuple[list[tuple[int, int]], int]:
    """Flow the key's entries into rows; return their top left corners and the height [pixels]."""
    font = ImageFont.load_default(size)
    places, x, y = [], gap, 0
    for name in names:
        need = size + 4 + int(font.getlength(name)) + 12
        if x + need > width and x > gap:
            x, y = gap, y + size + 6
        places.append((x, y))
        x += need
    return places, y + size + 6 if names else 0
