"""How an object moves through the frames of a video."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pixelrefer_fast.world.things import ACROSS, TURNABLE

MOTIONS = ("still", "left", "right", "up", "down", "growing", "shrinking", "turning")

_WAY = (0.34, 0.55)  # of the side, from the first frame to the last
_DRIFT = 0.03  # of the side, across the way
_FACTOR = (1.9, 2.5)  # by which the size changes
_LARGEST = 0.62  # of the shorter side, of anything


@dataclass(frozen=True)
class Path:
    """For each frame, relative to the first: shift in pixels (x, y), factor of the size, rotation in degrees."""

    shifts: tuple[tuple[int, int], ...]
    factors: tuple[float, ...]
    angles: tuple[float, ...]


def size_range(size: str, motion: str, height: int, width: int) -> tuple[float, float]:
    """Pixels across in the first frame, so that the size's word is right and the motion stays inside the frame."""
    low, high = (float(v) for v in ACROSS[size])
    high = min(high, _LARGEST * min(height, width))
    if motion == "growing":
        high = min(high, _LARGEST * min(height, width) / _FACTOR[0])
    elif motion == "shrinking":
        low = min(max(low, 36.0), high)
    elif motion in ("left", "right"):
        high = min(high, width * (0.97 - _WAY[0]))
    elif motion in ("up", "down"):
        high = min(high, height * (0.97 - _WAY[0]))
    return min(low, high), high


def possible_motions(shape: str, size: str) -> tuple[str, ...]:
    """The motions that are visible on such an object."""
    return tuple(
        m
        for m in MOTIONS
        if (m != "turning" or (shape in TURNABLE and size != "tiny"))
        and (m != "growing" or size in ("small", "medium"))
        and (m != "shrinking" or size in ("medium", "large"))
    )


def draw_path(motion: str, frames: int, across: float, height: int, width: int, rng: np.random.Generator) -> Path:
    """A path of one of MOTIONS over `frames` frames for an object that is `across` pixels wide in the first."""
    steps = np.linspace(0, 1, frames)
    shifts = np.zeros((frames, 2))
    factors: np.ndarray = np.ones(frames)
    angles: np.ndarray = np.zeros(frames)
    if motion in ("left", "right", "up", "down"):
        axis = 0 if motion in ("left", "right") else 1
        side = (width, height)[axis]
        longest = min(_WAY[1] * side, side - 4 - across * 1.05)
        way = rng.uniform(_WAY[0] * side, max(longest, _WAY[0] * side + 1))
        shifts[:, axis] = steps * (way if motion in ("right", "down") else -way)
        shifts[:, 1 - axis] = steps * rng.uniform(-_DRIFT, _DRIFT) * (height, width)[axis]
    elif motion == "growing":
        most = min(_FACTOR[1], _LARGEST * min(height, width) / across)
        factors = rng.uniform(_FACTOR[0], max(most, _FACTOR[0])) ** steps
    elif motion == "shrinking":
        factors = rng.uniform(*_FACTOR) ** -steps
    elif motion == "turning":
        step = rng.uniform(max(25.0, 96.0 / (frames - 1)), 40.0) * (1 if rng.random() < 0.5 else -1)
        angles = step * np.arange(frames)
    whole = np.rint(shifts).astype(int)
    return Path(
        tuple((int(x), int(y)) for x, y in whole),
        tuple(float(f) for f in factors),
        tuple(float(a) for a in angles),
    )
