"""Cluttered backgrounds in greyish tones, between black and white objects and less saturated than coloured ones."""

from __future__ import annotations

import functools

import cv2
import numpy as np

_BANK = 320  # side of the stored noise, from which random windows are taken
_SIGMAS = (1.5, 3.0, 4.5)


@functools.lru_cache(maxsize=1)
def _noise_bank() -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(20261122)
    normal = rng.standard_normal((_BANK, _BANK, 3))
    return tuple(np.rint(normal * sigma).astype(np.int16) for sigma in _SIGMAS)


def add_noise(frame: np.ndarray, rng: np.random.Generator, level: int) -> np.ndarray:
    """`frame` (H, W, 3) uint8 with sensor noise of one of the levels 0, 1, 2, as a new array."""
    height, width = frame.shape[:2]
    top, left = rng.integers(0, _BANK - height + 1), rng.integers(0, _BANK - width + 1)
    return cv2.add(frame, _noise_bank()[level][top : top + height, left : left + width], dtype=cv2.CV_8U)


def _grey(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """An unsaturated tone: each channel at most 20 levels from their middle."""
    return rng.uniform(low, high) + rng.uniform(-20, 20, 3)


def _texture(rng: np.random.Generator, height: int, width: int, cells: int, channels: int = 1) -> np.ndarray:
    """Smooth noise of -1 to 1, (H, W) or (H, W, channels) float32, with about `cells` bumps to a side."""
    coarse = rng.uniform(-1, 1, (cells, cells, channels)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A random background, (H, W, 3) uint8: a base of one of several kinds with blobs, lines and marks.

    Its levels are about 55 to 195, so that nothing in it is black, white or of a named colour.
    """
    a, b = _grey(rng, 85, 170), _grey(rng, 85, 170)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    kind = rng.integers(5)
    if kind == 0:  # gradient along a direction
        dx, dy = rng.uniform(-1, 1, 2)
        mix = np.float32(dx) * xs + np.float32(dy) * ys
        mix = mix * np.float32(0.5 / max(abs(dx) + abs(dy), 1e-3)) + np.float32(0.5)
    elif kind == 1:  # gradient around a point
        x, y = rng.uniform(-0.8, 0.8, 2)
        mix = np.minimum((xs - np.float32(x)) ** 2 + (ys - np.float32(y)) ** 2, np.float32(2)) / np.float32(2)
    elif kind == 2:  # checker of low contrast
        cell = int(rng.integers(9, 26))
        mix = ((np.arange(height)[:, None] // cell + np.arange(width)[None, :] // cell) % 2).astype(np.float32)
        b = a + np.clip(b - a, -18, 18)
    elif kind == 3:  # clouds
        mix = _texture(rng, height, width, int(rng.integers(4, 12))) * np.float32(0.5) + np.float32(0.5)
    else:  # grain
        mix = _texture(rng, height, width, int(rng.integers(24, 60))) * np.float32(0.5) + np.float32(0.5)
        b = a + np.clip(b - a, -35, 35)
    picture = cv2.merge([mix * np.float32(b[c] - a[c]) + np.float32(a[c]) for c in range(3)])
    if rng.random() < 0.5:  # soft blobs
        soft = _texture(rng, height, width, int(rng.integers(3, 7)))
        picture = picture + (soft * np.float32(rng.uniform(4, 16)))[..., None]
    picture = np.clip(picture, 58, 188).astype(np.uint8)
    _lines(picture, rng)
    _marks(picture, rng)
    return picture


def _near(picture: np.ndarray, rng: np.random.Generator, x: int, y: int, strength: float) -> tuple[float, ...]:
    """A tone a little lighter or darker than the picture is at a place."""
    sign = 1 if rng.random() < 0.5 else -1
    there = picture[y, x].astype(float)
    return tuple(float(v) for v in np.clip(there + sign * strength, 55, 195))


def _lines(picture: np.ndarray, rng: np.random.Generator) -> None:
    height, width = picture.shape[:2]
    for x0, y0, x1, y1 in rng.random((int(rng.integers(0, 5)), 4)):
        start, end = (int(x0 * width), int(y0 * height)), (int(x1 * width), int(y1 * height))
        cv2.line(picture, start, end, _near(picture, rng, *start, rng.uniform(12, 32)), 1, cv2.LINE_AA)


def _marks(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Ticks, corners and specks of 2 to 7 pixels."""
    height, width = picture.shape[:2]
    for fx, fy in rng.random((int(rng.integers(0, 9)), 2)):
        x, y = int(fx * width), int(fy * height)
        tone = _near(picture, rng, x, y, rng.uniform(15, 38))
        dx, dy = (int(v) for v in rng.integers(-6, 7, 2))
        cv2.line(picture, (x, y), (x + dx, y + dy), tone, 1)
        if rng.random() < 0.4:
            cv2.line(picture, (x, y), (x - dy, y + dx), tone, 1)
