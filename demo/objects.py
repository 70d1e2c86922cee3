"""How each of the demo's twelve categories looks: one painter each, and the table that lists them.

Every painter draws in the unit frame of `Sketch` and takes its variation (colors, pose, variants)
from the generator it is given. Side views face left; `Pose.mirrored` turns them round.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from .sketch import (
    Color,
    Points,
    Sketch,
    arc,
    blob,
    box,
    curve,
    ellipse,
    shade,
    tint,
    tube,
)

Painter: TypeAlias = Callable[[Sketch, np.random.Generator], None]
Place: TypeAlias = Literal[
    "savanna", "meadow", "sea", "beach", "street", "sky", "table", "cloth", "room"
]

BLACK: Color = (28, 26, 28)
WHITE: Color = (240, 238, 232)


@dataclass(frozen=True, slots=True)
class Kind:
    """One category of the demo.

    Attributes
    ----------
    name
        The COCO category's name.
    stance
        Things *stand* on the ground with a shadow at their feet, *lie* on a surface with a shadow
        all around, or *fly*.
    tilt
        How far it may be turned [degrees].
    grain
        Strength of its texture, 0-1.
    size
        Usual extent relative to the other categories.
    homes
        The backgrounds where it is usually met.
    mirrors
        Whether it may be drawn left to right; writing may not.
    """

    name: str
    paint: Painter
    stance: Literal["stand", "lie", "fly"]
    tilt: float
    grain: float
    size: float
    homes: tuple[Place, ...]
    mirrors: bool = True


def paint_bus(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a bus from the side: a row of dark windows, a colored band, two wheels."""
    liveries: list[Color] = [(206, 38, 34), (240, 178, 22), (36, 92, 178), (60, 146, 84)]
    body = tint(rng, liveries[rng.integers(len(liveries))])
    band = WHITE if rng.random() < 0.7 else shade(body, 0.6)
    glass = tint(rng, (58, 78, 98))
    double = rng.random() < 0.35
    top = -0.62 if double else -0.42
    pad.fill(body)
    for x in (-0.58, 0.56):
        pad.solid(ellipse(x, 0.44, 0.17, 0.17), BLACK)
    pad.solid(box(-1, top, 1, 0.42, 0.1), body)
    pad.detail(box(-1, top, 1, top + 0.06), shade(body, 1.25))
    pad.detail(box(-1, 0.14, 1, 0.22), band)
    pad.detail(box(-1, 0.36, 1, 0.44), shade(body, 0.55))
    for y in (top + 0.12, -0.1) if double else (-0.28,):
        height = 0.26 if double else 0.34
        for x in np.linspace(-0.93, 0.72, 6):
            pad.detail(box(x, y, x + 0.225, y + height, 0.03), glass)
            sheen = [(x + 0.02, y + height), (x + 0.12, y), (x + 0.18, y), (x + 0.08, y + height)]
            pad.detail(sheen, shade(glass, 1.5))
    pad.detail(box(-0.36, -0.1 if double else -0.28, -0.1, 0.38), shade(glass, 0.8))
    pad.detail(box(-0.24, -0.1 if double else -0.28, -0.22, 0.38), body)
    for x in (-0.58, 0.56):
        pad.detail(ellipse(x, 0.44, 0.2, 0.2), shade(body, 0.4))
        pad.detail(ellipse(x, 0.44, 0.16, 0.16), BLACK)
        pad.detail(ellipse(x, 0.44, 0.08, 0.08), (168, 168, 172))
    pad.detail(ellipse(-0.96, 0.29, 0.06, 0.05), (255, 240, 180))
    pad.detail(box(0.95, 0.24, 1, 0.34), (250, 60, 40))


def paint_boat(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a sailing boat: hull, mast, two sails."""
    hulls: list[Color] = [(150, 62, 40), (36, 58, 110), (190, 40, 44), (40, 110, 104)]
    sails: list[Color] = [(246, 242, 230), (246, 242, 230), (214, 78, 58)]
    hull, sail = tint(rng, hulls[rng.integers(4)]), tint(rng, sails[rng.integers(3)])
    pad.fill(sail)
    keel = curve([(-0.95, 0.42), (-0.55, 0.8), (0, 0.86), (0.6, 0.8), (0.82, 0.46)], closed=False)
    pad.solid(np.concatenate([keel, [(0.0, 0.52)]]), hull)
    pad.detail([(-1, 0.4), (0, 0.5), (1, 0.44), (1, 0.54), (0, 0.6), (-1, 0.5)], shade(hull, 1.45))
    pad.detail(box(-1, 0.76, 1, 1), shade(hull, 0.6))
    pad.solid(box(-0.035, -1, 0.035, 0.6), (112, 80, 52))
    main = curve([(0.06, -0.92), (0.42, -0.3), (0.74, 0.36)], closed=False)
    pad.solid(np.concatenate([main, [(0.06, 0.36)]]), sail)
    jib = curve([(-0.06, -0.78), (-0.36, -0.3), (-0.78, 0.32)], closed=False)
    pad.solid(np.concatenate([jib, [(-0.06, 0.34)]]), shade(sail, 0.86))
    if rng.random() < 0.5:  # a striped mainsail
        for y in (-0.5, -0.1):
            pad.detail(box(0.06, y, 0.8, y + 0.16), hull if max(hull) < 220 else (60, 90, 150))
    pad.detail(box(-0.035, -1, 0.035, 0.5), (112, 80, 52))
    pad.solid([(0, -1), (0.2, -0.94), (0, -0.88)], (220, 50, 50))


def paint_stop_sign(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw the red octagon with its four letters; the pole is background."""
    red = tint(rng, (196, 30, 38))
    octagon = np.radians(np.arange(8) * 45 + 22.5)
    corners = np.stack([np.cos(octagon), np.sin(octagon)], 1)
    pad.prop(box(-0.06, 0.5, 0.06, 1.28), (130, 132, 134))
    pad.fill(WHITE)
    pad.solid(0.98 * corners, WHITE)
    pad.detail(0.88 * corners, red)
    letters: list[list[tuple[float, float]]] = [
        [(0.32, -0.22), (0.05, -0.28), (0.0, -0.08), (0.3, 0.06), (0.28, 0.24), (0.0, 0.22)],
        [(0.16, -0.26), (0.16, 0.26)],
        [
            (0.16, -0.25),
            (0.0, -0.1),
            (0.0, 0.12),
            (0.16, 0.25),
            (0.32, 0.12),
            (0.32, -0.1),
            (0.16, -0.25),
        ],
        [(0.02, 0.26), (0.02, -0.25), (0.24, -0.24), (0.3, -0.1), (0.22, 0.02), (0.04, 0.02)],
    ]
    for x, strokes in zip((-0.74, -0.36, 0.02, 0.42), letters, strict=True):
        pad.detail(tube(np.add(strokes, (x, 0)), 0.05), WHITE)
    pad.detail(tube([(-0.4, -0.26), (0.0, -0.26)], 0.045), WHITE)


def paint_zebra(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a zebra: black bars across body, neck and legs."""
    coat, bars = tint(rng, (236, 232, 222), 8), tint(rng, (34, 30, 32), 8)
    step = rng.uniform(-0.06, 0.06, 4)
    pad.fill(coat)
    for x, shift in zip((-0.3, 0.52), step[:2], strict=True):  # the far legs
        pad.solid(tube([(x, 0.2), (x + shift, 0.55), (x + shift, 0.92)], (0.11, 0.07, 0.06)), coat)
    for x, shift in zip((-0.44, 0.64), step[2:], strict=True):
        pad.solid(tube([(x, 0.1), (x - shift, 0.55), (x - shift, 0.96)], (0.15, 0.075, 0.06)), coat)
    pad.solid(tube([(-0.42, 0.06), (0.1, 0.1), (0.58, 0.02)], (0.28, 0.26, 0.3)), coat)
    pad.solid(tube([(-0.46, 0.02), (-0.62, -0.34), (-0.72, -0.62)], (0.24, 0.15, 0.11)), coat)
    pad.solid(tube([(-0.7, -0.66), (-0.86, -0.52), (-0.98, -0.36)], (0.13, 0.1, 0.075)), coat)
    pad.solid(tube([(-0.66, -0.7), (-0.62, -0.9)], (0.06, 0.03)), coat)
    tail = curve([(0.84, -0.08), (0.96, 0.2), (0.94, 0.48)], closed=False)
    pad.solid(tube(tail, (0.035, 0.03, 0.06)), bars)
    for y in np.arange(0.44, 0.94, 0.115):  # rings on the legs
        pad.detail(box(-0.8, y, 1, y + 0.05), bars)
    for x in np.arange(-0.58, 0.9, 0.155):  # bars over the body, leaning outwards
        lean = 0.25 * (x - 0.1)
        stripe = [(x + lean, -0.34), (x + rng.uniform(-0.04, 0.04), 0.06), (x + lean * 0.6, 0.36)]
        pad.detail(tube(stripe, (0.05, 0.042, 0.012)), bars)
    for k in np.arange(0.0, 1.0, 0.19):  # and across the neck
        x, y = -0.5 - 0.26 * k, -0.1 - 0.58 * k
        pad.detail(tube([(x - 0.24, y - 0.06), (x + 0.26, y - 0.14)], (0.03, 0.034)), bars)
    pad.solid(tube([(-0.34, -0.3), (-0.52, -0.6), (-0.64, -0.8)], (0.04, 0.07, 0.05)), bars)
    for x in (-0.8, -0.88):
        pad.detail(tube([(x - 0.04, -0.66 + (x + 0.8)), (x + 0.1, -0.36)], 0.018), bars)
    pad.detail(ellipse(-0.99, -0.34, 0.09, 0.09), bars)
    pad.detail(ellipse(-0.8, -0.62, 0.026, 0.026), BLACK)
    for x in (-0.44 - step[2], -0.3 + step[0], 0.64 - step[3], 0.52 + step[1]):
        pad.detail(box(x - 0.1, 0.94, x + 0.1, 1.1), bars)


def paint_giraffe(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a giraffe: a long neck, and brown patches on a cream coat."""
    coat, patch = tint(rng, (234, 200, 128), 10), tint(rng, (152, 88, 34), 12)
    step = rng.uniform(-0.05, 0.05, 4)
    pad.fill(coat)
    for x, shift in zip((-0.06, 0.44), step[:2], strict=True):
        pad.solid(tube([(x, 0.2), (x + shift, 0.6), (x + shift, 0.98)], (0.08, 0.055, 0.045)), coat)
    for x, shift in zip((-0.18, 0.52), step[2:], strict=True):
        pad.solid(tube([(x, 0.2), (x - shift, 0.6), (x - shift, 1.02)], (0.1, 0.06, 0.05)), coat)
    pad.solid(tube([(-0.14, 0.1), (0.18, 0.14), (0.48, 0.22)], (0.23, 0.22, 0.18)), coat)
    pad.solid(tube([(-0.12, 0.06), (-0.34, -0.42), (-0.48, -0.88)], (0.2, 0.12, 0.09)), coat)
    pad.solid(tube([(-0.46, -0.96), (-0.6, -0.88), (-0.76, -0.8)], (0.1, 0.085, 0.06)), coat)
    pad.solid(tube([(-0.36, -0.98), (-0.24, -1.04)], (0.045, 0.02)), coat)
    for x in (-0.46, -0.4):
        pad.solid(tube([(x, -1.0), (x - 0.01, -1.14)], (0.02, 0.03)), shade(patch, 0.6))
    pad.solid(
        tube([(0.66, 0.16), (0.74, 0.4), (0.73, 0.56)], (0.025, 0.02, 0.045)), shade(patch, 0.6)
    )
    for row, y in enumerate(np.arange(-0.86, 0.68, 0.15)):
        for x in np.arange(-0.7, 0.8, 0.165):
            center = (x + 0.08 * (row % 2) + rng.uniform(-0.02, 0.02), y + rng.uniform(-0.02, 0.02))
            pad.detail(blob(rng, *center, 0.072, 0.22), patch)
    mane = tube([(0.04, -0.16), (-0.2, -0.5), (-0.36, -0.9)], (0.025, 0.035, 0.03))
    pad.solid(mane, shade(patch, 0.75))
    pad.detail(ellipse(-0.64, -0.86, 0.15, 0.1), shade(coat, 0.95))
    pad.detail(ellipse(-0.79, -0.79, 0.05, 0.06), shade(patch, 0.8))
    pad.detail(ellipse(-0.55, -0.97, 0.026, 0.026), BLACK)
    for x in (-0.18 - step[2], -0.06 + step[0], 0.52 - step[3], 0.44 + step[1]):
        pad.detail(box(x - 0.08, 0.96, x + 0.08, 1.15), shade(patch, 0.5))


def paint_elephant(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw an elephant: trunk, tusk and a large ear on a gray bulk."""
    skin = tint(rng, (128, 126, 134), 14)
    dark, sway = shade(skin, 0.72), rng.uniform(-0.12, 0.12)
    pad.fill(skin)
    for x in (-0.22, 0.46):
        pad.solid(tube([(x, 0.2), (x, 0.8)], (0.17, 0.14)), dark)
    pad.solid(ellipse(0.18, 0.0, 0.72, 0.52), skin)
    pad.solid(tube([(0.86, -0.1), (0.96, 0.2), (0.92, 0.42)], (0.035, 0.025, 0.05)), dark)
    for x in (-0.32, 0.66):
        pad.solid(tube([(x, 0.1), (x, 0.82)], (0.22, 0.155)), skin)
        for toe in (-0.1, 0.0, 0.1):
            pad.detail(ellipse(x + toe, 0.94, 0.045, 0.05), (206, 200, 190))
    pad.solid(ellipse(-0.56, -0.22, 0.33, 0.36), skin)
    trunk = [(-0.72, -0.1), (-0.9, 0.24), (-0.9, 0.6), (-1.02 + sway, 0.8)]
    pad.solid(tube(trunk, (0.19, 0.12, 0.085, 0.065)), skin)
    for y in np.arange(0.1, 0.72, 0.1):  # the trunk's folds
        pad.detail(tube([(-1.02, y), (-0.78, y + 0.02)], 0.012), shade(skin, 0.82))
    pad.solid(
        tube([(-0.66, 0.06), (-0.76, 0.3), (-0.98, 0.4)], (0.06, 0.05, 0.015)), (244, 236, 212)
    )
    ear = curve(
        [(-0.52, -0.5), (-0.2, -0.56), (0.0, -0.3), (-0.08, 0.1), (-0.3, 0.22), (-0.46, -0.05)],
        closed=True,
    )
    pad.solid(ear, dark)
    pad.detail(0.84 * (ear - ear.mean(0)) + ear.mean(0), shade(skin, 0.9))
    pad.detail(ellipse(-0.7, -0.26, 0.045, 0.04), BLACK)
    pad.detail(ellipse(-0.71, -0.27, 0.015, 0.015), WHITE)
    for _ in range(9):  # wrinkles
        x, y = rng.uniform(0.0, 0.8), rng.uniform(-0.35, 0.4)
        pad.detail(tube([(x, y), (x + 0.05, y + 0.1), (x, y + 0.2)], 0.01), shade(skin, 0.86))


def paint_teddy_bear(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a sitting teddy bear with light muzzle, belly and soles."""
    furs: list[Color] = [(152, 98, 56), (122, 72, 40), (176, 122, 74)]
    fur = tint(rng, furs[rng.integers(3)])
    light, dark = shade(fur, 1.45), shade(fur, 0.78)
    lift = rng.uniform(-0.2, 0.15, 2)
    pad.fill(fur)
    for side in (-1, 1):
        pad.solid(ellipse(0.4 * side, -0.84, 0.2, 0.2), dark)
        pad.detail(ellipse(0.4 * side, -0.82, 0.11, 0.11), light)
        hand = lift[(side + 1) // 2]
        pad.solid(
            tube([(0.36 * side, 0.0), (0.68 * side, 0.12 + hand), (0.8 * side, 0.3 + hand)], 0.16),
            dark,
        )
    pad.solid(ellipse(0, 0.28, 0.5, 0.54), fur)
    pad.detail(ellipse(0, 0.34, 0.3, 0.34), light)
    for side in (-1, 1):
        pad.solid(ellipse(0.5 * side, 0.76, 0.3, 0.26, 20 * side), dark)
        pad.detail(ellipse(0.54 * side, 0.76, 0.17, 0.15), light)
    pad.solid(ellipse(0, -0.48, 0.5, 0.45), fur)
    pad.detail(ellipse(0, -0.36, 0.24, 0.19), light)
    pad.detail(ellipse(0, -0.46, 0.085, 0.06), BLACK)
    pad.detail(tube([(0, -0.44), (0, -0.32), (-0.1, -0.27)], 0.014), BLACK)
    pad.detail(tube([(0, -0.32), (0.1, -0.27)], 0.014), BLACK)
    for x in (-0.19, 0.19):
        pad.detail(ellipse(x, -0.58, 0.06, 0.065), BLACK)
        pad.detail(ellipse(x - 0.02, -0.6, 0.02, 0.02), WHITE)
    if rng.random() < 0.6:
        bow = tint(rng, [(196, 40, 52), (52, 96, 180), (66, 140, 90)][rng.integers(3)])
        for side in (-1, 1):
            pad.detail([(0, -0.06), (0.24 * side, -0.2), (0.24 * side, 0.1)], bow)
        pad.detail(ellipse(0, -0.05, 0.07, 0.07), shade(bow, 0.7))


def paint_banana(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw one to three bananas hanging from one stem."""
    skin = tint(rng, (244, 208, 52), 10)
    if rng.random() < 0.2:
        skin = tint(rng, (198, 204, 70))  # not yet ripe
    pad.fill(skin)
    stem = np.array((-0.9, -0.4))
    for fruit in reversed(range(int(rng.integers(1, 4)))):
        turn = math.radians(-24 * fruit)
        turned = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        spine = (arc(0, -0.62, 0.92, 0.98, 168, 22)[::2] - stem) @ turned + stem
        color = shade(skin, 1 - 0.07 * fruit)
        pad.solid(tube(spine, (0.05, 0.19, 0.24, 0.24, 0.19, 0.05)), color)
        ridge, sheen = np.add(spine, (0.0, 0.09)), np.add(spine, (0.0, -0.1))
        pad.detail(tube(ridge, (0.0, 0.05, 0.06, 0.05, 0.0)), shade(color, 0.84))
        pad.detail(tube(sheen, (0.0, 0.03, 0.04, 0.03, 0.0)), shade(color, 1.14))
        pad.detail(ellipse(spine[-1, 0], spine[-1, 1], 0.08, 0.08), (82, 62, 30))
        for _ in range(int(rng.integers(2, 9))):
            x, y = spine[rng.integers(1, len(spine) - 1)] + rng.uniform(-0.12, 0.12, 2)
            pad.detail(ellipse(x, y, 0.035, 0.018, rng.uniform(0, 180)), (142, 98, 34))
    pad.solid(tube([(-0.9, -0.36), (-0.94, -0.6)], (0.075, 0.06)), (122, 108, 40))


def paint_orange(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw an orange: whole with its leaf, or cut in half."""
    peel = tint(rng, (242, 134, 20), 10)
    pad.fill(peel)
    pad.solid(ellipse(0, 0, 0.94, 0.9), peel)
    if rng.random() < 0.35:
        pad.detail(ellipse(0, 0, 0.84, 0.8), (252, 226, 176))
        turn = rng.uniform(0, 36)
        for k in range(10):
            wedge = arc(0, 0, 0.76, 0.72, turn + 36 * k + 3, turn + 36 * k + 33)
            pad.detail(np.concatenate([wedge, [0.1 * wedge.mean(0)]]), shade(peel, 1.04))
        return
    for _ in range(70):  # pores
        x, y = rng.normal(0, 0.45, 2)
        pad.detail(ellipse(x, y, 0.025, 0.025), shade(peel, 0.9))
    pad.detail(ellipse(-0.3, -0.36, 0.2, 0.14, -35), shade(peel, 1.25))
    pad.detail(ellipse(0.08, -0.66, 0.09, 0.06), (92, 112, 44))
    if rng.random() < 0.7:
        leaf = curve([(0.06, -0.7), (0.2, -0.98), (0.62, -1.06), (0.44, -0.78)], closed=True)
        pad.solid(leaf, (66, 132, 50))
        pad.detail(tube([(0.08, -0.72), (0.56, -1.02)], 0.014), (120, 170, 84))


def paint_pizza(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a pizza: whole, with a slice taken, or the slice alone."""
    crust, cheese = tint(rng, (196, 138, 72)), tint(rng, (244, 204, 108), 10)
    start = rng.uniform(0, 360)
    variant = rng.random()
    pad.fill(crust)

    def sector(radius: float, rim: float) -> Points:
        if variant < 0.5:
            return ellipse(0, 0, radius, radius)
        if variant < 0.8:
            return np.concatenate([arc(0, 0, radius, radius, start, start + 305), [(0.0, 0.0)]])
        tip = (0.0, 0.98 - 1.4 * rim)
        return np.concatenate([arc(0, 0.96, 1.9 * radius, 1.9 * radius, -116, -64), [tip]])

    pad.solid(sector(0.98, 0.0), crust)
    pad.detail(sector(0.86, 0.02), tint(rng, (190, 60, 30)))
    pad.detail(sector(0.82, 0.03), cheese)
    for _ in range(14):  # cheese that browned
        x, y = rng.uniform(-0.6, 0.6, 2)
        pad.detail(blob(rng, x, y, 0.11, 0.4), shade(cheese, rng.choice([0.88, 1.08])))
    angles = np.arange(12) * 137.5 + start  # the golden angle spreads them evenly
    for k, angle in enumerate(np.radians(angles)):
        reach = 0.66 * math.sqrt((k + 0.5) / 12)
        x, y = reach * math.cos(angle), reach * math.sin(angle)
        if variant >= 0.8 and (abs(x) > 0.3 or not -0.55 < y < 0.4):
            continue
        if k % 4 == 3:
            pad.detail(ellipse(x, y, 0.07, 0.07), (40, 44, 36))
            pad.detail(ellipse(x, y, 0.03, 0.03), cheese)
        elif k % 4 == 1 and variant < 0.8:
            pad.detail(ellipse(x, y, 0.13, 0.06, float(angles[k])), (70, 128, 52))
        else:
            pad.detail(ellipse(x, y, 0.14, 0.14), (150, 36, 28))
            pad.detail(ellipse(x, y, 0.12, 0.12), (196, 58, 40))


def paint_donut(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a ring of dough with icing and sprinkles; its hole shows the background."""
    icings: list[Color] = [(240, 132, 172), (84, 46, 30), (246, 240, 232), (150, 206, 224)]
    icing, dough = (
        tint(rng, icings[rng.choice(4, p=(0.4, 0.35, 0.15, 0.1))]),
        tint(rng, (206, 146, 82)),
    )
    sprinkles: list[Color] = [(250, 220, 60), (70, 160, 230), (240, 70, 80), (120, 200, 90), WHITE]
    hole = rng.uniform(0.24, 0.36)
    pad.fill(dough)
    pad.solid(ellipse(0, 0, 0.95, 0.95), dough)
    pad.detail(blob(rng, 0, 0, 0.8, 0.07), icing)
    pad.detail(arc(0, 0, 0.66, 0.66, 190, 280), shade(icing, 1.18))
    pad.detail(arc(0, 0, 0.6, 0.6, 180, 290), icing)
    for _ in range(34):
        angle, reach = rng.uniform(0, 360), rng.uniform(hole + 0.1, 0.72)
        x, y = reach * math.cos(angle), reach * math.sin(angle)
        color = sprinkles[rng.integers(len(sprinkles))]
        pad.detail(ellipse(x, y, 0.065, 0.024, rng.uniform(0, 180)), color)
    pad.detail(ellipse(0, 0, hole + 0.07, hole + 0.07), shade(dough, 0.85))
    pad.hole(ellipse(0, 0, hole, hole))


def paint_kite(pad: Sketch, rng: np.random.Generator) -> None:
    """Draw a kite of four colored panels; the bows of its tail are parts apart from it."""
    palette: list[Color] = [
        (226, 44, 60),
        (252, 206, 36),
        (40, 128, 220),
        (148, 60, 176),
        (40, 176, 110),
    ]
    first, second = (tint(rng, palette[k]) for k in rng.choice(5, 2, replace=False))
    top, left, right, low = (0.0, -1.0), (-0.58, -0.36), (0.58, -0.36), (0.0, 0.46)
    tail = curve(
        [(0, 0.44), (0.1, 0.64), (-0.08, 0.84), (0.1, 1.02), (0.0, 1.2)], closed=False, steps=8
    )
    pad.prop(tube(tail[::4], 0.014), (70, 66, 70))
    pad.fill(first)
    pad.solid([top, right, low, left], first)
    for panel in ([top, right, (0, -0.36)], [left, (0, -0.36), low]):
        pad.detail(panel, second)
    for spar in ([top, low], [left, right]):
        pad.detail(tube(spar, 0.018), (80, 58, 44))
    for k, bow in enumerate(tail[12::9]):
        for side in (-1, 1):
            wing = np.add(bow, [(0, 0), (0.17 * side, -0.08), (0.17 * side, 0.08)])
            pad.solid(wing, (second, first)[k % 2])


KINDS: tuple[Kind, ...] = (
    Kind("bus", paint_bus, "stand", 3, 0.1, 1.25, ("street", "meadow", "beach")),
    Kind("boat", paint_boat, "stand", 7, 0.12, 1.25, ("sea", "beach")),
    Kind(
        "stop sign",
        paint_stop_sign,
        "fly",
        8,
        0.12,
        0.8,
        ("street", "meadow", "beach"),
        mirrors=False,
    ),
    Kind("zebra", paint_zebra, "stand", 4, 0.3, 1.15, ("savanna", "meadow")),
    Kind("giraffe", paint_giraffe, "stand", 4, 0.3, 1.3, ("savanna", "meadow")),
    Kind("elephant", paint_elephant, "stand", 4, 0.28, 1.25, ("savanna", "meadow")),
    Kind("teddy bear", paint_teddy_bear, "stand", 12, 0.4, 1.05, ("room", "cloth", "table")),
    Kind("banana", paint_banana, "lie", 180, 0.15, 1.0, ("table", "cloth", "room")),
    Kind("orange", paint_orange, "lie", 60, 0.2, 0.85, ("table", "cloth", "room")),
    Kind("pizza", paint_pizza, "lie", 30, 0.3, 1.0, ("table", "cloth")),
    Kind("donut", paint_donut, "lie", 180, 0.2, 0.8, ("cloth", "table")),
    Kind("kite", paint_kite, "fly", 35, 0.12, 1.0, ("sky", "beach", "meadow", "street")),
)
