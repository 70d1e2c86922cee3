"""A pad on which one object is drawn, and the curves it is drawn with.

Painters work in the *unit frame*: x to the right, y down, the object within about [-1, 1]². The pad
turns, mirrors and scales the points, so that nothing is ever resampled, and draws them on a raster
`SUPERSAMPLING` times finer than the image: averaging it gives antialiased colors and the share of
every pixel that the object covers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFilter

Color: TypeAlias = tuple[int, int, int]
Points: TypeAlias = NDArray[np.float64]
Floats: TypeAlias = NDArray[np.float32]

SUPERSAMPLING = 3  # 9 samples a pixel: the outline is right to about a tenth of a pixel
_CAP = np.radians([60.0, 30.0, 0.0, -30.0, -60.0])[:, None]
_CAP_ASIDE, _CAP_ALONG = np.sin(_CAP), np.cos(_CAP)  # the round end of a limb
_TURN = np.arange(24) * (math.pi / 12)
_COS, _SIN = np.cos(_TURN), np.sin(_TURN)
REACH = (
    1.3  # the pad's half side in units of the object's radius; painters stay inside at any angle
)


@dataclass(frozen=True, slots=True)
class Pose:
    """An object in the image: radius [pixels], angle [degrees], mirrored and stretched in x."""

    radius: float
    angle: float = 0.0
    mirrored: bool = False
    stretch: float = 1.0


@dataclass(frozen=True, slots=True)
class Sprite:
    """A drawn object, cropped to itself.

    Attributes
    ----------
    rgb
        float32, shape (h, w, 3), 0-255.
    alpha
        float32, shape (h, w): the share of each pixel that the object covers, 0-1.
    prop
        What holds the object up (a sign's pole, a kite's line), same shapes. It is background.
    """

    rgb: Floats
    alpha: Floats
    prop: "Sprite | None" = None


class Sketch:
    """The pad: `solid` adds to the object, `hole` cuts, `detail` colors, `prop` is background."""

    def __init__(self, pose: Pose) -> None:
        self.pose = pose
        side = SUPERSAMPLING * 2 * math.ceil(REACH * pose.radius)
        self._center = side / 2
        turn = math.radians(pose.angle)
        across = pose.stretch * (-1.0 if pose.mirrored else 1.0)
        scale = SUPERSAMPLING * pose.radius
        self._matrix = scale * np.array(
            [
                [math.cos(turn) * across, math.sin(turn) * across],
                [-math.sin(turn), math.cos(turn)],
            ]
        )
        self._shape = Image.new("L", (side, side))
        self._prop: Image.Image | None = None  # made when needed: few objects have one
        self._color = Image.new("RGB", (side, side))
        self._shape_pen = ImageDraw.Draw(self._shape)
        self._color_pen = ImageDraw.Draw(self._color)

    def fill(self, color: Color) -> None:
        """Color the whole pad: what the half-covered pixels along the outline are mixed from."""
        self._color_pen.rectangle((0, 0, *self._color.size), fill=color)

    def solid(self, outline: ArrayLike, color: Color) -> None:
        """Add a closed shape, (n, 2) in the unit frame, to the object."""
        points = self._to_pad(outline)
        self._shape_pen.polygon(points, fill=255)
        self._color_pen.polygon(points, fill=color)

    def detail(self, outline: ArrayLike, color: Color) -> None:
        """Color a closed shape; what lies outside the object stays unseen."""
        self._color_pen.polygon(self._to_pad(outline), fill=color)

    def hole(self, outline: ArrayLike) -> None:
        """Cut a closed shape out of the object."""
        self._shape_pen.polygon(self._to_pad(outline), fill=0)

    def prop(self, outline: ArrayLike, color: Color) -> None:
        """Draw something that belongs to the background, behind the object."""
        if self._prop is None:
            self._prop = Image.new("RGBA", self._shape.size)
        ImageDraw.Draw(self._prop).polygon(self._to_pad(outline), fill=(*color, 255))

    def finish(self, rng: np.random.Generator, *, light: float, grain: float) -> Sprite:
        """Average the pad down to pixels, and give the flat drawing volume and texture.

        Parameters
        ----------
        rng
            Draws the texture.
        light
            Where the light comes from [degrees, counted from the right, clockwise on the screen].
        grain
            Strength of the texture (fur, crumbs, rust), 0-1.
        """
        small = self._shape.reduce(SUPERSAMPLING)
        prop = self._prop.reduce(SUPERSAMPLING) if self._prop else None
        boxes = [image.getbbox() or (0, 0, 1, 1) for image in (small, prop) if image]
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        crop = (min(lefts), min(tops), max(rights), max(bottoms))
        # The blurred silhouette serves as a height map: it bulges, so its slope can be lit.
        height = np.asarray(
            small.filter(ImageFilter.GaussianBlur(0.16 * self.pose.radius)).crop(crop), np.float32
        )
        alpha = np.asarray(small.crop(crop), np.float32) / np.float32(255)
        rgb = np.asarray(self._color.reduce(SUPERSAMPLING).crop(crop), np.float32)
        down, right = np.gradient(height / 255)
        towards = math.cos(math.radians(light)) * right + math.sin(math.radians(light)) * down
        shade = 1.0 - np.clip(0.55 * self.pose.radius * towards, -0.28, 0.38)
        shade *= 0.78 + 0.24 * height / 255
        shade += grain * 0.22 * rng.standard_normal(alpha.shape, np.float32)
        lit = np.clip(rgb * shade[..., None], 0, 255).astype(np.float32)
        if prop is None:
            return Sprite(lit, alpha)
        pole = np.asarray(prop.crop(crop), np.float32)
        return Sprite(lit, alpha, Sprite(pole[..., :3], pole[..., 3] / np.float32(255)))

    def _to_pad(self, outline: ArrayLike) -> list[tuple[float, float]]:
        points = np.asarray(outline, float) @ self._matrix + self._center
        return [(x, y) for x, y in points.tolist()]


def ellipse(x: float, y: float, across: float, down: float, tilt: float = 0.0) -> Points:
    """Outline of an ellipse around (x, y) with two radii, turned by `tilt` [degrees]."""
    return arc(x, y, across, down, 0.0, 360.0, tilt)


def arc(
    x: float, y: float, across: float, down: float, start: float, end: float, tilt: float = 0.0
) -> Points:
    """Points on an ellipse from angle `start` to `end` [degrees, clockwise on the screen]."""
    count = max(8, int(abs(end - start) / 9))
    angle = np.radians(start + np.arange(count) * ((end - start) / (count - 1)))
    right, up = across * np.cos(angle), down * np.sin(angle)
    cos, sin = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    return np.stack([x + cos * right - sin * up, y + sin * right + cos * up], axis=1)


def box(left: float, top: float, right: float, bottom: float, corner: float = 0.0) -> Points:
    """Outline of a rectangle with corners rounded by `corner`."""
    if corner == 0:
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float)
    centers = [(right, bottom), (left, bottom), (left, top), (right, top)]
    inwards = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    return np.concatenate(
        [
            arc(x + corner * i, y + corner * j, corner, corner, 90 * k, 90 * (k + 1))
            for k, ((x, y), (i, j)) in enumerate(zip(centers, inwards, strict=True))
        ]
    )


def curve(points: ArrayLike, *, closed: bool, steps: int = 6) -> Points:
    """Draw a smooth line through the points (Catmull-Rom), `steps` points for each of theirs."""
    knots = np.asarray(points, float)
    count = len(knots)
    around = np.arange(-1, count + 2)
    around = around % count if closed else around.clip(0, count - 1)
    window = knots[around]
    p0, p1, p2, p3 = (window[k : k + count - (not closed), None] for k in range(4))
    t = (np.arange(steps) / steps)[:, None]
    line = p1 + 0.5 * t * (
        p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0))
    )
    smooth = line.reshape(-1, 2)
    return smooth if closed else np.concatenate([smooth, knots[-1:]])


def tube(points: ArrayLike, widths: Sequence[float] | float) -> Points:
    """Outline of a limb: a smooth line, its half width given at every point, with round ends."""
    line = np.asarray(points, float)
    if len(line) > 2:
        line = curve(line, closed=False)
    sizes = np.atleast_1d(np.asarray(widths, float))
    at = np.arange(len(line)) * (len(sizes) - 1) / (len(line) - 1)
    half = np.interp(at, np.arange(len(sizes)), sizes)[:, None]
    along = np.empty_like(line)
    along[1:-1] = line[2:] - line[:-2]
    along[0], along[-1] = line[1] - line[0], line[-1] - line[-2]
    along /= np.maximum(np.hypot(along[:, :1], along[:, 1:]), 1e-9)
    aside = along[:, ::-1] * (-1, 1)
    caps = []
    for end, sign in ((-1, 1.0), (0, -1.0)):
        reach = sign * half[end]
        caps.append(line[end] + _CAP_ASIDE * aside[end] * reach + _CAP_ALONG * along[end] * reach)
    return np.concatenate([line + half * aside, caps[0], (line - half * aside)[::-1], caps[1]])


def blob(rng: np.random.Generator, x: float, y: float, radius: float, rough: float) -> Points:
    """Outline of an irregular round thing; its radius varies by about the share `rough`."""
    first, second, third = rng.uniform(0, 2 * math.pi, 3)
    waves = np.sin(2 * _TURN + first) + np.sin(3 * _TURN + second) + np.sin(5 * _TURN + third)
    reach = radius * (1 + 0.45 * rough * waves)
    return np.stack([x + reach * _COS, y + reach * _SIN], axis=1)


def tint(rng: np.random.Generator, color: Color, amount: int = 14) -> Color:
    """Vary a color: its brightness by up to ±`amount`, each channel by a third of that."""
    shift = rng.integers(-amount, amount + 1) + rng.integers(-amount // 3, amount // 3 + 1, 3)
    red, green, blue = (int(c) for c in np.clip(np.add(color, shift), 0, 255))
    return red, green, blue


def shade(color: Color, factor: float) -> Color:
    """Make a color lighter (`factor` > 1) or darker (< 1)."""
    red, green, blue = (min(255, int(c * factor)) for c in color)
    return red, green, blue
