"""The objects of the world: their words, and how they are drawn as a mask and pixels."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "diamond", "ring", "crescent", "arrow")
PATTERNS = ("solid", "striped", "dotted")
SIZES = ("small", "medium", "large")
TINY = "tiny"
"""A fourth, rare size of a few pixels: always solid, asked about its colour and place only."""

ACROSS: dict[str, tuple[int, int]] = {TINY: (6, 10), "small": (16, 22), "medium": (31, 43), "large": (58, 90)}
"""Pixels across (the longer side of the box), inclusive, of each size."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 36),
    "orange": (246, 138, 18),
    "yellow": (240, 222, 44),
    "green": (36, 150, 58),
    "cyan": (44, 206, 216),
    "blue": (40, 72, 216),
    "purple": (136, 46, 172),
    "pink": (246, 142, 192),
    "black": (24, 24, 26),
    "white": (242, 242, 242),
}
"""RGB of each colour before its jitter."""

SYMMETRY: dict[str, int] = {"triangle": 3, "star": 5, "cross": 4, "heart": 1, "crescent": 1, "arrow": 1}
"""Of the shapes that may be turned: in how many positions of a full turn each looks the same."""

TURNABLE = frozenset(SYMMETRY)
"""Shapes whose name survives any rotation and on which rotation shows."""

_TILT = 30.0  # degrees either way, of shapes that any rotation would leave their name
_UPRIGHT = {"square": 7.0, "diamond": 7.0}  # degrees either way: a square turned by 45 degrees would be a diamond
_DARK = frozenset({"red", "green", "blue", "purple"})  # colours on which a nearly white pattern shows as well
_SHIFT = 4  # fractional bits of the polygons' corners


@dataclass(frozen=True)
class Thing:
    """What an object is, in words: one of SHAPES, COLORS, PATTERNS, and SIZES or TINY."""

    shape: str
    color: str
    pattern: str
    size: str

    @property
    def combination(self) -> tuple[str, str, str]:
        return self.shape, self.color, self.pattern

    @property
    def short(self) -> str:
        """As in `a blue circle`."""
        return f"{'an' if self.color[0] in 'aeiou' else 'a'} {self.color} {self.shape}"

    @property
    def description(self) -> str:
        """As in `a large red striped star`; the pattern `solid` is not mentioned."""
        return " ".join(w for w in ("a", self.size, self.color, self.pattern, self.shape) if w != "solid")


@dataclass(frozen=True)
class Look:
    """The part of an object's looks that has no words: colours (RGB), and the pattern relative to the object's size."""

    main: tuple[int, int, int]
    second: tuple[int, int, int]
    edge: tuple[int, int, int] | None  # a thin outline
    period: float  # of the pattern, as a part of the size
    angle: float  # of the pattern, degrees
    phase: tuple[float, float]  # of the pattern, in periods


@dataclass(frozen=True)
class Pose:
    """Where an object is in one frame: centre (x, y) in pixels, pixels across, degrees clockwise."""

    x: float
    y: float
    across: float
    angle: float


@dataclass(frozen=True)
class Drawn:
    """A drawn object: its mask (h, w) bool, its pixels (h, w, 3) uint8, and the position of its top left corner."""

    top: int
    left: int
    mask: np.ndarray
    pixels: np.ndarray


def _circle(
    radius: float = 1.0, start: float = 0.0, end: float = 360.0, x: float = 0.0, points: int = 40
) -> np.ndarray:
    """Corners of an arc about (x, 0); a whole circle does not repeat its first."""
    a = np.radians(np.linspace(start, end, points, endpoint=abs(end - start) < 360))
    return np.stack([x + radius * np.cos(a), radius * np.sin(a)], axis=1)


def _star() -> np.ndarray:
    a = np.radians(np.arange(10) * 36 - 90)
    r = np.where(np.arange(10) % 2, 0.42, 1.0)
    return np.stack([r * np.cos(a), r * np.sin(a)], axis=1)


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y - 2.5], axis=1) / 16


def _crescent() -> np.ndarray:
    shift, radius = 0.5, 0.8
    x = (1 - radius**2 + shift**2) / (2 * shift)
    y = math.sqrt(1 - x * x)
    outer, inner = math.degrees(math.atan2(y, x)), math.degrees(math.atan2(y, x - shift))
    horns = _circle(1.0, outer, 360 - outer), _circle(radius, 360 - inner, inner, shift)
    return np.concatenate(horns) + np.array([0.2, 0])  # its own middle, not the circle's


def _points(*corners: float) -> np.ndarray:
    return np.array(corners, dtype=np.float64).reshape(-1, 2)


_OUTLINES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_circle(),),
    "square": (_points(-1, -1, 1, -1, 1, 1, -1, 1),),
    "triangle": (_circle(1, -90, 270, points=3),),
    "star": (_star(),),
    "cross": (_points(-.34, -1, .34, -1, .34, -.34, 1, -.34, 1, .34, .34, .34,
                      .34, 1, -.34, 1, -.34, .34, -1, .34, -1, -.34, -.34, -.34),),
    "heart": (_heart(),),
    "diamond": (_points(0, -1, 0.66, 0, 0, 1, -0.66, 0),),
    "ring": (_circle(), _circle(0.5)),
    "crescent": (_crescent(),),
    "arrow": (_points(-1, -.3, .1, -.3, .1, -.85, 1, 0, .1, .85, .1, .3, -1, .3),),
}  # fmt: skip


@functools.lru_cache(maxsize=64)
def unit_across(shape: str, angle: float) -> float:
    """Longer side of the box of a shape's unit outline at an angle."""
    points = _turned(_OUTLINES[shape][0], angle)
    return float(np.ptp(points, axis=0).max())


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return points @ np.array([[c, s], [-s, c]])


def draw_angle(shape: str, rng: np.random.Generator) -> float:
    """A random rotation that keeps the shape recognisable: most things stand more or less upright."""
    tilt = _TILT if shape in TURNABLE else _UPRIGHT.get(shape, 0.0)
    return float(rng.uniform(-tilt, tilt))


def draw_look(thing: Thing, rng: np.random.Generator, edge: bool) -> Look:
    """Random tones of the thing's colour, of its pattern's second colour, and the pattern's layout."""
    tone, tint = rng.uniform(0.93, 1.04), rng.uniform(-7, 7, 3)
    if thing.color == "white":
        tone = max(tone, 0.98)  # backgrounds are light as well
    main = np.clip(np.array(COLORS[thing.color]) * tone + tint, 0, 255)
    pick = rng.random()
    if thing.color in ("black", "white"):
        second = np.full(3, 128.0) + rng.uniform(-12, 12)
    elif thing.color in _DARK and pick < 0.5:
        second = np.full(3, 238.0)
    else:
        second = main * 0.36 if pick < 0.75 else np.full(3, 20.0)
    outline = np.full(3, 92.0) if thing.color in ("black", "white") else main * 0.4
    x, y = rng.random(2)
    return Look(
        _rgb(main),
        _rgb(second),
        _rgb(outline) if edge else None,
        float(rng.uniform(0.21, 0.27)),
        float(rng.uniform(0, 180)),
        (float(x), float(y)),
    )


def _rgb(values: np.ndarray) -> tuple[int, int, int]:
    r, g, b = (int(v) for v in values)
    return r, g, b


def draw_mask(shape: str, pose: Pose, unit: float | None = None) -> tuple[int, int, np.ndarray]:
    """The mask of a shape: top, left and (h, w) uint8 of 0 and 1.

    Args:
        shape: one of SHAPES.
        pose: position, size and rotation.
        unit: length of the unit outline that `pose.across` stands for; None: the longer side of its box at this angle.
    """
    scale = pose.across / (unit or unit_across(shape, pose.angle))
    contours = [_turned(points, pose.angle) * scale + (pose.x, pose.y) for points in _OUTLINES[shape]]
    low = np.floor(contours[0].min(axis=0)).astype(int) - 1
    high = np.ceil(contours[0].max(axis=0)).astype(int) + 2
    mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
    fixed = [np.rint((points - low) * (1 << _SHIFT)).astype(np.int32) for points in contours]
    cv2.fillPoly(mask, fixed, 1, lineType=cv2.LINE_8, shift=_SHIFT)
    return int(low[1]), int(low[0]), mask


def draw(thing: Thing, look: Look, pose: Pose, unit: float | None = None, turned: float = 0.0) -> Drawn:
    """Draw one thing.

    Args:
        thing: what to draw.
        look: its tones and the layout of its pattern.
        pose: position, size and rotation.
        unit: as in `draw_mask`.
        turned: rotation of the pattern with the thing, in degrees.
    """
    top, left, mask = draw_mask(thing.shape, pose, unit)
    pixels = np.empty((*mask.shape, 3), np.uint8)
    pixels[:] = look.main
    if thing.pattern != "solid":
        pixels[_PATTERNS[thing.pattern](look, pose, mask.shape, top, left, turned)] = look.second
    if look.edge is not None:
        inner = cv2.erode(mask, _CROSS, iterations=1 if pose.across < 44 else 2, borderValue=0)
        pixels[(mask != 0) & (inner == 0)] = look.edge
    return Drawn(top, left, mask != 0, pixels)


_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def _grid(
    look: Look, pose: Pose, shape: tuple[int, ...], top: int, left: int, turned: float
) -> tuple[np.ndarray, np.ndarray, float]:
    """Pixel centres in the pattern's own directions, in periods, and the period in pixels."""
    period = max(5.0, look.period * pose.across)
    a = math.radians(look.angle + turned)
    x = (np.arange(shape[1], dtype=np.float32) + np.float32(left - pose.x))[None, :] / period
    y = (np.arange(shape[0], dtype=np.float32) + np.float32(top - pose.y))[:, None] / period
    c, s = np.float32(math.cos(a)), np.float32(math.sin(a))
    return c * x + s * y + np.float32(look.phase[0]), c * y - s * x + np.float32(look.phase[1]), period


def _striped(look: Look, pose: Pose, shape: tuple[int, ...], top: int, left: int, turned: float) -> np.ndarray:
    along, _, _ = _grid(look, pose, shape, top, left, turned)
    return along - np.floor(along) < 0.4


def _dotted(look: Look, pose: Pose, shape: tuple[int, ...], top: int, left: int, turned: float) -> np.ndarray:
    u, v, _ = _grid(look, pose, shape, top, left, turned)
    u = u - np.floor(u) - np.float32(0.5)
    v = v - np.floor(v) - np.float32(0.5)
    return u * u + v * v < 0.32**2


_PATTERNS: dict[str, Callable[[Look, Pose, tuple[int, ...], int, int, float], np.ndarray]] = {
    "striped": _striped,
    "dotted": _dotted,
}
