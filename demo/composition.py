"""Composes one scene: a place, two to six objects, now and then a crowd of small ones.

The largest is painted first and smaller ones in front of it, so that what one sees is what the mask
contract makes of the annotations.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from .backgrounds import BACKDROPS, Backdrop, blend, paste
from .objects import KINDS, Kind, Place
from .sketch import Floats, Pose, Sketch, Sprite

EMPTY_EVERY = 64  # one image in so many shows a place alone ...
EMPTY_AT = 7  # ... the eighth first, so that small data sets have one too
CROWD_EVERY = 7  # and one in so many holds a crowd; COCO: one image in twelve
CROWD_AT = 3
CROWDED = ("kite", "banana", "boat", "zebra", "donut")
LEAST_VISIBLE = 40  # pixels; an object that shows less is left out of the scene


@dataclass(frozen=True, slots=True)
class Instance:
    """One object, or one crowd, as drawn.

    Attributes
    ----------
    category
        The COCO category's name.
    coverage
        float32, shape (H, W), 0-1: the share of each pixel that it covers, hidden or not.
    is_crowd
        Whether it stands for many small objects.
    """

    category: str
    coverage: Floats
    is_crowd: bool

    @property
    def area(self) -> int:
        """Number of pixels that it covers by half or more [pixels]."""
        return int(np.count_nonzero(self.coverage >= 0.5))


@dataclass(frozen=True, slots=True)
class Scene:
    """A drawn image and its truth.

    Attributes
    ----------
    rgb
        uint8, shape (H, W, 3).
    instances
        The largest first, as painted.
    owner
        int16, shape (H, W): index into `instances` of the frontmost one that covers half of the
        pixel, -1 for the background.
    """

    rgb: NDArray[np.uint8]
    instances: tuple[Instance, ...]
    owner: NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class _Placed:
    """A sprite and where it goes: its box's left and top [pixels]."""

    kind: Kind
    sprite: Sprite
    left: int
    top: int
    is_crowd: bool = False


def draw_scene(rng: np.random.Generator, anchor: Kind, index: int) -> Scene:
    """Compose one image.

    Parameters
    ----------
    rng
        The image's own generator.
    anchor
        The first object's category; it has a say in the place.
    index
        The image's number in its split: some numbers are without objects, some have a crowd.
    """
    short = int(rng.integers(160, 241))
    long = int(short * rng.choice([1.0, 1.2, 1.25, 1.333, 1.5], p=[0.1, 0.2, 0.2, 0.35, 0.15]))
    size = (short, long) if rng.random() < 0.65 else (long, short)
    places = anchor.homes if rng.random() < 0.7 else tuple(BACKDROPS)
    place = places[rng.integers(len(places))]
    backdrop = BACKDROPS[place](rng, size)
    light = float(rng.uniform(200, 340))
    placed: list[_Placed] = []
    if index % EMPTY_EVERY != EMPTY_AT:
        for number, kind in enumerate(_cast(rng, anchor, place)):
            placed.append(_place_object(rng, kind, backdrop, placed, light, number))
        if index % CROWD_EVERY == CROWD_AT:
            placed.append(_place_crowd(rng, anchor, backdrop, light))
    instances, owner, front = _stack(placed, size)
    for item in front:  # poles and lines are background: everything may hide them
        if item.sprite.prop:
            paste(backdrop.rgb, item.sprite.prop, item.left, item.top)
    for item in front:
        if item.kind.stance != "fly" and not item.is_crowd:
            _cast_shadow(backdrop.rgb, item)
        paste(backdrop.rgb, item.sprite, item.left, item.top)
    return Scene(_photograph(rng, backdrop.rgb), instances, owner)


def _cast(rng: np.random.Generator, anchor: Kind, place: Place) -> list[Kind]:
    """Choose who appears: the anchor and one to five others, many of them at home there."""
    local = [kind for kind in KINDS if place in kind.homes]
    cast = [anchor]
    for _ in range(int(rng.choice([1, 2, 3, 4, 5], p=[0.2, 0.3, 0.25, 0.15, 0.1]))):
        choice = local if local and rng.random() < 0.4 else KINDS
        cast.append(choice[rng.integers(len(choice))])
    return cast


def _extent(rng: np.random.Generator, number: int) -> float:
    """Draw an object's extent as a share of the image's short side; the first two are large."""
    low, high = (0.36, 0.62) if number < 2 else (0.2, 0.42)
    if number > 0 and rng.random() < 0.15:
        low, high = 0.11, 0.17
    return float(rng.uniform(low, high))


def _sketch(rng: np.random.Generator, kind: Kind, extent: float, light: float) -> Sprite:
    pose = Pose(
        radius=0.5 * extent * kind.size,
        angle=float(rng.uniform(-kind.tilt, kind.tilt)),
        mirrored=kind.mirrors and bool(rng.random() < 0.5),
        stretch=float(rng.uniform(0.88, 1.1)),
    )
    pad = Sketch(pose)
    kind.paint(pad, rng)
    return pad.finish(rng, light=light, grain=kind.grain)


def _place_object(
    rng: np.random.Generator,
    kind: Kind,
    backdrop: Backdrop,
    placed: Sequence[_Placed],
    light: float,
    number: int,
) -> _Placed:
    """Put an object where its kind may be, of six tries the one that overlaps the others least.

    Two tries are enough for the third object on: some overlap is wanted.
    """
    height, width = backdrop.rgb.shape[:2]
    sprite = _sketch(rng, kind, _extent(rng, number) * min(height, width), light)
    tall, wide = sprite.alpha.shape
    best, least = (0, 0), math.inf
    for _ in range(6 if number < 2 else 2):
        x = rng.uniform(0.1, 0.9) * width
        y = _row(rng, kind, backdrop, tall)
        box = (x - wide / 2, y - tall / 2, x + wide / 2, y + tall / 2)
        shared = sum(_shared(box, other) for other in placed)
        if shared < least:
            best, least = (round(box[0]), round(box[1])), shared
    return _Placed(kind, sprite, *best)


def _row(rng: np.random.Generator, kind: Kind, backdrop: Backdrop, tall: int) -> float:
    """Draw the row [pixels] of an object's center: feet on the ground, kites in the air."""
    height = backdrop.rgb.shape[0]
    if kind.stance == "fly" and backdrop.horizon > 0:
        return float(rng.uniform(0.1, 0.6) * height)
    if kind.stance == "stand" and backdrop.horizon > 0:
        return float(rng.uniform(backdrop.horizon + 0.06 * height, 1.04 * height)) - tall / 2
    return float(rng.uniform(max(backdrop.horizon, 0.1 * height), 0.92 * height))


def _shared(box: tuple[float, float, float, float], other: _Placed) -> float:
    """Area [pixels] that a box (left, top, right, bottom) shares with another object's box."""
    tall, wide = other.sprite.alpha.shape
    across = min(box[2], other.left + wide) - max(box[0], other.left)
    down = min(box[3], other.top + tall) - max(box[1], other.top)
    return float(max(0.0, across) * max(0.0, down))


def _place_crowd(
    rng: np.random.Generator, anchor: Kind, backdrop: Backdrop, light: float
) -> _Placed:
    """Draw many small objects of one kind as one sprite: a flock, a herd, a heap."""
    height, width = backdrop.rgb.shape[:2]
    crowded = [kind for kind in KINDS if kind.name in CROWDED and kind.name != anchor.name]
    kind = crowded[rng.integers(len(crowded))]
    tall, wide = int(rng.uniform(0.3, 0.42) * height), int(rng.uniform(0.5, 0.8) * width)
    rgb, alpha = np.zeros((tall, wide, 3), np.float32), np.zeros((tall, wide), np.float32)
    count = int(rng.integers(12, 24))
    for row in np.sort(rng.random(count)):  # the nearer ones in front
        extent = rng.uniform(0.1, 0.15) * min(height, width)
        one = _sketch(rng, kind, extent / kind.size, light)
        down, right = one.alpha.shape
        x, y = int(rng.uniform(0, wide - right)), int(row * (tall - down))
        window = (slice(y, y + down), slice(x, x + right))
        under = alpha[window]
        # Where nothing is drawn yet there is no color to mix with.
        blend(rgb[window], one.rgb, np.where(under == 0, np.ceil(one.alpha), one.alpha))
        alpha[window] = under + one.alpha - under * one.alpha
    left = int(rng.uniform(0.0, width - wide))
    top = int(np.clip(_row(rng, kind, backdrop, tall) - tall / 2, 0, height - tall))
    return _Placed(kind, Sprite(rgb, alpha), left, top, is_crowd=True)


def _stack(
    placed: Sequence[_Placed], size: tuple[int, int]
) -> tuple[tuple[Instance, ...], NDArray[np.int16], list[_Placed]]:
    """Order by area, the largest first; leave out what would hardly be seen."""
    both = [(_instance(item, size), item) for item in placed]
    both.sort(key=lambda pair: -pair[0].area)
    while True:
        owner = np.full(size, -1, np.int16)
        for number, (instance, _) in enumerate(both):
            owner[instance.coverage >= 0.5] = number
        visible = np.bincount(owner.ravel() + 1, minlength=len(both) + 1)[1:]
        if not both or visible.min() >= LEAST_VISIBLE:
            return tuple(instance for instance, _ in both), owner, [item for _, item in both]
        del both[int(np.argmin(visible))]


def _instance(item: _Placed, size: tuple[int, int]) -> Instance:
    """Spread a sprite's coverage over the whole image."""
    canvas = np.zeros((*size, 3), np.float32)
    white = np.ones((*item.sprite.alpha.shape, 3), np.float32)
    paste(canvas, Sprite(white, item.sprite.alpha), item.left, item.top)
    return Instance(item.kind.name, canvas[..., 0], item.is_crowd)


def _cast_shadow(rgb: Floats, item: _Placed) -> None:
    """Darken what lies under an object: at its feet if it stands, all around if it lies."""
    tall, wide = item.sprite.alpha.shape
    blur = 1 + 0.04 * max(tall, wide)
    margin = math.ceil(2 * blur)
    shape = Image.fromarray((255 * item.sprite.alpha).astype(np.uint8))
    left, top, strength = item.left + round(0.05 * wide), item.top + round(0.06 * tall), 0.5
    if item.kind.stance == "stand":  # the silhouette laid flat
        flat = max(2, round(0.14 * tall))
        shape = shape.resize((wide, flat))
        left, top, strength = item.left, item.top + tall - round(0.75 * flat), 0.65
    padded = Image.new("L", (shape.width + 2 * margin, shape.height + 2 * margin))
    padded.paste(shape, (margin, margin))
    soft = np.asarray(padded.filter(ImageFilter.GaussianBlur(blur)), np.float32) * (strength / 255)
    dark = np.broadcast_to(np.asarray((18, 20, 28), np.float32), (*soft.shape, 3))
    paste(rgb, Sprite(dark, soft), left - margin, top - margin)


def _photograph(rng: np.random.Generator, rgb: Floats) -> NDArray[np.uint8]:
    """Photograph the scene: exposure, white balance, vignette, soft lens, sensor noise."""
    height, width = rgb.shape[:2]
    down = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    right = np.linspace(-1, 1, width, dtype=np.float32)[None]
    center = rng.uniform(-0.3, 0.3, 2).astype(np.float32)
    distance = (down - center[0]) ** 2 + (right - center[1]) ** 2
    vignette = rng.uniform(0.92, 1.14) * (1 - rng.uniform(0.06, 0.16) * distance)
    balance = rng.uniform(0.95, 1.05, 3).astype(np.float32)
    lit = np.clip(rgb * vignette[..., None] * balance, 0, 255).astype(np.uint8)
    seen = Image.fromarray(lit).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.2, 0.6))))
    grain = rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(1.5, 4.5))
    return np.clip(np.asarray(seen, np.float32) + grain, 0, 255).astype(np.uint8)
