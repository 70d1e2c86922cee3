"""How each of the demo's eight categories looks: one painter each, and the table that lists them.

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
Place: TypeAlias = Literal["meadow", "sea", "street", "table", "room"]

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


SCENERY: tuple[Place, ...] = ("street", "meadow")
INDOORS: tuple[Place, ...] = ("table", "room")
KINDS = (
    Kind("bus", paint_bus, "stand", 3, 0.1, 1.25, SCENERY),
    Kind("boat", paint_boat, "stand", 7, 0.12, 1.25, ("sea",)),
    Kind("stop sign", paint_stop_sign, "fly", 8, 0.12, 0.8, SCENERY, mirrors=False),
    Kind("zebra", paint_zebra, "stand", 4, 0.3, 1.15, ("meadow",)),
    Kind("teddy bear", paint_teddy_bear, "stand", 12, 0.4, 1.05, INDOORS),
    Kind("banana", paint_banana, "lie", 180, 0.15, 1.0, INDOORS),
    Kind("donut", paint_donut, "lie", 180, 0.2, 0.8, ("table",)),
    Kind("kite", paint_kite, "fly", 35, 0.12, 1.0, (*SCENERY, "sea")),
)
