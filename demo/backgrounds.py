"""The places in which the demo's objects are met: gradients, noise and a few things of no category.

The clutter is there on purpose: plates as round as a donut, crossings striped like a zebra,
leaves as yellow as a banana. Color alone must not be enough.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .objects import Place
from .sketch import (
    Color,
    Floats,
    Pose,
    Sketch,
    Sprite,
    blob,
    box,
    ellipse,
    shade,
    tint,
    tube,
)


@dataclass(slots=True)
class Backdrop:
    """A background to put objects on.

    Attributes
    ----------
    rgb
        float32, shape (H, W, 3), 0-255; objects are painted into it.
    horizon
        Row [pixels] from which things can stand: 0 is a view from above.
    """

    rgb: Floats
    horizon: float


def noise(
    rng: np.random.Generator, size: tuple[int, int], cell: float, *, stretch: float = 1.0
) -> Floats:
    """Smooth noise of unit variance, shape `size` (H, W), two octaves, its first of `cell` pixels.

    `stretch` > 1 draws it out sideways (water, wood), < 1 upwards (grass).
    """
    total = np.zeros(size, np.float32)
    for cells, weight in ((cell, 1.0), (cell / 3, 0.5)):
        grid = rng.standard_normal(
            (math.ceil(size[0] / cells) + 2, math.ceil(size[1] / cells / stretch) + 2), np.float32
        )
        smooth = Image.fromarray(grid).resize(size[::-1], Image.Resampling.BICUBIC)
        total += weight * np.asarray(smooth, np.float32)
    return total


def gradient(size: tuple[int, int], top: Color, bottom: Color) -> Floats:
    """Blend two colors from the first row to the last, shape (H, W, 3)."""
    down = np.linspace(0, 1, size[0], dtype=np.float32)[:, None, None]
    rows = np.asarray(top, np.float32) * (1 - down) + np.asarray(bottom, np.float32) * down
    return np.broadcast_to(rows, (*size, 3)).copy()


def blend(rgb: Floats, over: Floats | Color, alpha: Floats) -> None:
    """Paint a picture or a color over `rgb` in place; `alpha` has shape (H, W)."""
    rgb += alpha[..., None] * (np.asarray(over, np.float32) - rgb)


def paste(rgb: Floats, sprite: Sprite, left: int, top: int) -> None:
    """Paint a sprite into `rgb` in place; what falls outside the image is cut off."""
    height, width = sprite.alpha.shape
    y0, x0 = max(0, -top), max(0, -left)
    y1, x1 = min(height, rgb.shape[0] - top), min(width, rgb.shape[1] - left)
    if y0 < y1 and x0 < x1:
        window = rgb[top + y0 : top + y1, left + x0 : left + x1]
        blend(window, sprite.rgb[y0:y1, x0:x1], sprite.alpha[y0:y1, x0:x1])


def clutter(
    rgb: Floats,
    rng: np.random.Generator,
    paint: Callable[[Sketch, np.random.Generator], None],
    count: int,
    radius: tuple[float, float],
    rows: tuple[float, float],
    grain: float = 0.35,
) -> None:
    """Scatter things of no category; radii and the centers' rows lie in the ranges [pixels]."""
    for _ in range(count):
        pad = Sketch(Pose(rng.uniform(*radius), rng.uniform(-25, 25)))
        paint(pad, rng)
        sprite = pad.finish(rng, light=235, grain=grain)
        height, width = sprite.alpha.shape
        x, y = rng.uniform(0, rgb.shape[1]), rng.uniform(*rows)
        paste(rgb, sprite, int(x - width / 2), int(y - height / 2))


def _rock(pad: Sketch, rng: np.random.Generator) -> None:
    color = tint(rng, (124, 120, 118), 24)
    pad.fill(color)
    pad.solid(blob(rng, 0, 0, 0.8, 0.25) * (1, 0.65), color)


def _bush(pad: Sketch, rng: np.random.Generator) -> None:
    color = tint(rng, (78, 110, 52), 20)
    pad.fill(color)
    for _ in range(9):
        x, y = rng.normal(0, 0.35, 2)
        pad.solid(blob(rng, x, 0.5 * y, 0.4, 0.3), tint(rng, color, 22))


def _plate(pad: Sketch, rng: np.random.Generator) -> None:
    color = tint(rng, (226, 224, 218), 16)
    pad.fill(color)
    pad.solid(ellipse(0, 0, 1, 1), color)
    pad.detail(ellipse(0, 0, 0.72, 0.72), shade(color, 0.9))
    pad.detail(ellipse(0, 0, 0.68, 0.68), color)


def _leaf(pad: Sketch, rng: np.random.Generator) -> None:
    color = tint(rng, [(196, 150, 50), (160, 96, 44), (96, 130, 60)][rng.integers(3)], 20)
    pad.fill(color)
    pad.solid(tube([(-0.9, 0.0), (0.0, 0.1), (0.9, 0.0)], (0.02, 0.45, 0.02)), color)
    pad.detail(tube([(-0.9, 0.0), (0.0, 0.1), (0.9, 0.0)], 0.03), shade(color, 0.7))


def _picture(pad: Sketch, rng: np.random.Generator) -> None:
    pad.fill((110, 84, 60))
    pad.solid(box(-0.8, -0.6, 0.8, 0.6), (110, 84, 60))
    pad.detail(box(-0.7, -0.5, 0.7, 0.5), tint(rng, (190, 190, 180), 50))
    pad.detail(box(-0.7, rng.uniform(-0.1, 0.3), 0.7, 0.5), tint(rng, (140, 120, 100), 60))


def _sky(rng: np.random.Generator, size: tuple[int, int]) -> Floats:
    tops: list[Color] = [(74, 134, 206), (96, 150, 214), (120, 146, 178), (108, 120, 176)]
    lows: list[Color] = [(196, 220, 238), (214, 226, 232), (206, 212, 216), (244, 202, 164)]
    k = rng.integers(4)
    rgb = gradient(size, tint(rng, tops[k]), tint(rng, lows[k]))
    clouds = np.clip(0.55 * noise(rng, size, rng.uniform(30, 60), stretch=2.2) - 0.1, 0, 0.85)
    blend(rgb, (246, 246, 246), clouds)
    return rgb


def paint_meadow(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Paint grass under a wide sky, green or dry, with rocks, bushes and fallen leaves."""
    height, width = size
    near, far = [((84, 128, 54), (136, 164, 92)), ((188, 156, 88), (206, 184, 122))][
        rng.integers(2)
    ]
    horizon = int(rng.uniform(0.28, 0.5) * height)
    rgb = _sky(rng, size)
    ridge = horizon - 0.05 * height * (1.2 + noise(rng, (1, width), 50)[0])
    hills = np.clip(np.arange(height, dtype=np.float32)[:, None] - ridge, 0, 1).astype(np.float32)
    blend(rgb, tint(rng, shade(far, 0.8)), hills)
    ground = gradient((height - horizon, width), tint(rng, far), tint(rng, near))
    grass = noise(rng, ground.shape[:2], 9, stretch=0.4) + noise(rng, ground.shape[:2], 40)
    rgb[horizon:] = ground * (1 + 0.075 * grass[..., None])
    rows = (float(horizon), float(height))
    clutter(rgb, rng, _bush, int(rng.integers(0, 4)), (7, 22), (horizon - 4, horizon + 8))
    clutter(rgb, rng, _rock, int(rng.integers(0, 4)), (5, 24), rows)
    clutter(rgb, rng, _leaf, int(rng.integers(0, 5)), (4, 9), rows)
    return Backdrop(rgb, horizon)


def paint_sea(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Paint waves up to the horizon."""
    height, width = size
    horizon = int(rng.uniform(0.3, 0.5) * height)
    rgb = _sky(rng, size)
    deeps: list[Color] = [(26, 84, 124), (34, 104, 120), (52, 86, 108)]
    near = tint(rng, deeps[rng.integers(3)])
    water = gradient((height - horizon, width), shade(near, 1.7), near)
    waves = noise(rng, water.shape[:2], 7, stretch=4) + noise(rng, water.shape[:2], 18, stretch=6)
    water *= 1 + 0.08 * waves[..., None]
    blend(water, (232, 240, 242), np.clip(0.5 * waves - 1.0, 0, 0.8))
    rgb[horizon:] = water
    return Backdrop(rgb, horizon)


def paint_street(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Paint house fronts, a pavement, asphalt with a zebra crossing or lane marks."""
    height, width = size
    horizon = int(rng.uniform(0.42, 0.6) * height)
    rgb = _sky(rng, size)
    left = 0
    walls: list[Color] = [(176, 120, 96), (190, 176, 150), (142, 140, 144), (206, 186, 160)]
    while left < width:
        right = left + int(rng.uniform(0.25, 0.5) * width)
        roof = int(rng.uniform(0.0, 0.2) * height)
        wall = tint(rng, walls[rng.integers(4)], 20)
        rgb[roof:horizon, left:right] = wall
        pane = shade(wall, rng.choice([0.5, 0.6, 1.25]))
        for y in range(roof + 7, horizon - 14, 22):
            for x in range(left + 6, min(right, width) - 8, 17):
                rgb[y : y + 12, x : x + 8] = pane
        left = right
    kerb = horizon + int(0.08 * height)
    rgb[horizon:kerb] = tint(rng, (168, 164, 158))
    asphalt = tint(rng, (96, 96, 100), 18)
    rgb[kerb:] = gradient((height - kerb, width), shade(asphalt, 1.15), asphalt)
    if rng.random() < 0.4:
        start = int(rng.uniform(0, 0.6) * width)
        for x in range(start, start + int(0.4 * width), 22):
            rgb[kerb + 6 : height - 8, x : x + 11] = (212, 210, 204)
    else:
        middle = int((kerb + height) / 2)
        for x in range(int(rng.integers(40)), width, 60):
            rgb[middle : middle + 5, x : x + 32] = (220, 214, 196)
    rgb *= 1 + 0.035 * (noise(rng, size, 4) + noise(rng, size, 40))[..., None]
    return Backdrop(rgb, horizon)


def paint_table(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Paint wooden planks seen from above, with plates and leaves."""
    woods: list[Color] = [(150, 104, 66), (186, 148, 104), (104, 74, 54), (170, 160, 148)]
    wood = tint(rng, woods[rng.integers(4)])
    rgb = np.full((*size, 3), wood, np.float32)
    plank = int(rng.integers(34, 60))
    for top in range(int(-rng.integers(plank)), size[0], plank):
        rgb[max(0, top) : max(0, top + plank)] *= rng.uniform(0.9, 1.1)
        rgb[max(0, top) : max(0, top + 2)] *= 0.6
    veins = noise(rng, size, 5, stretch=14) + 0.6 * noise(rng, size, 14, stretch=8)
    rgb *= 1 + 0.07 * veins[..., None]
    clutter(rgb, rng, _plate, int(rng.integers(0, 3)), (24, 52), (0, size[0]), grain=0.05)
    clutter(rgb, rng, _leaf, int(rng.integers(0, 4)), (6, 16), (0, size[0]))
    return Backdrop(rgb, 0)


def paint_room(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Paint a papered wall with pictures, a skirting board and a floor."""
    height, width = size
    horizon = int(rng.uniform(0.5, 0.68) * height)
    walls: list[Color] = [(196, 184, 160), (160, 180, 186), (204, 170, 156), (176, 188, 156)]
    rgb = gradient(size, tint(rng, walls[rng.integers(4)]), tint(rng, walls[rng.integers(4)]))
    if rng.random() < 0.6:
        pitch = int(rng.integers(14, 30))
        rgb[:, np.arange(width) % pitch < pitch // 2] *= 0.94
    clutter(rgb, rng, _picture, int(rng.integers(0, 3)), (16, 34), (0.1 * height, 0.6 * horizon))
    rgb[horizon - 8 : horizon] = (226, 222, 214)
    floor = np.full((height - horizon, width, 3), tint(rng, (146, 108, 76), 24), np.float32)
    floor *= 1 + 0.07 * noise(rng, floor.shape[:2], 4, stretch=12)[..., None]
    rgb[horizon:] = floor
    return Backdrop(rgb, horizon)


BACKDROPS: dict[Place, Callable[[np.random.Generator, tuple[int, int]], Backdrop]] = {
    "meadow": paint_meadow,
    "sea": paint_sea,
    "street": paint_street,
    "table": paint_table,
    "room": paint_room,
}
