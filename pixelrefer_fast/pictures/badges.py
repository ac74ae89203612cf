"""Where the numbers of marked regions are drawn: each inside its region if possible, and none on another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pixelrefer_fast.pictures import captions
from pixelrefer_fast.pictures.captions import Colour

_AROUND = ((0, -1), (1, 0), (0, 1), (-1, 0), (1, -1), (1, 1), (-1, 1), (-1, -1))


@dataclass(frozen=True)
class Shape:
    """A region on a picture: its number, colour, bounding box (rows, columns) and outlines."""

    number: int
    colour: Colour
    box: tuple[slice, slice]
    contours: Sequence[np.ndarray]


@dataclass(frozen=True)
class Badge:
    """A number to draw with its top left corner at (`left`, `top`)."""

    shape: Shape
    left: int
    top: int
    pointer: tuple[int, int] | None  # the point of the region to draw a line to


def place(shapes: Sequence[Shape], covered: np.ndarray, size: int, gap: int) -> list[Badge]:
    """One badge per region, drawn at `size` pixels; if the picture has room, no two overlap, with a gap of `gap`
    pixels.

    `covered`: (H, W) uint8, the number of regions that mark each pixel, up to 2.
    """
    if not shapes:
        return []
    room = _Room(covered, shapes, size, gap)
    return [room.place(shape) for shape in shapes]


class _Room:
    """The pixels where the centre of a badge may still be: inside the picture and off the badges already placed.

    Every badge is treated as if it were as large as the largest.
    """

    def __init__(self, covered: np.ndarray, shapes: Sequence[Shape], size: int, gap: int):
        self.covered = covered
        self.size = size
        self.gap = gap
        sizes = [captions.badge_size(shape.number, size) for shape in shapes]
        self.wide, self.tall = (max(sides) for sides in zip(*sizes, strict=True))
        height, width = covered.shape
        self.free = np.zeros((height, width), np.uint8)
        rows = slice(self.tall // 2, height - (self.tall + 1) // 2 + 1)
        self.free[rows, self.wide // 2 : width - (self.wide + 1) // 2 + 1] = 1

    def place(self, shape: Shape) -> Badge:
        """Inside the region: near its middle, away from its edge and from parts shared with other regions.

        If other badges leave no such place, across the region's edge. A badge would hide a region smaller than itself:
        then, and if the region is full of badges, the badge goes beside the region, with a line to it.
        """
        top, left = shape.box[0].start, shape.box[1].start
        inside = np.zeros((shape.box[0].stop - top, shape.box[1].stop - left), np.uint8)
        cv2.drawContours(inside, shape.contours, -1, 1, cv2.FILLED, offset=(-left, -top))
        shrink = max(1, max(inside.shape) // 512)

        def shrunken(marked: np.ndarray) -> np.ndarray:
            return np.ascontiguousarray(np.pad(marked, shrink)[::shrink, ::shrink])

        def pixel(spot: tuple[int, int]) -> tuple[int, int]:
            return left + (spot[1] - 1) * shrink, top + (spot[0] - 1) * shrink

        free = shrunken(self.free[shape.box])
        for marked in (inside & (self.covered[shape.box] < 2), inside):
            depth = cv2.distanceTransform(shrunken(marked), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) * shrink
            spot = _roomiest(depth, free)
            if spot is not None and depth[spot] >= 0.6 * self.tall:
                return self._badge(shape, pixel(spot))
        middle = _roomiest(depth, np.ones_like(free))
        point = (left + inside.shape[1] // 2, top + inside.shape[0] // 2) if middle is None else pixel(middle)
        small = min(inside.shape) < 2.5 * self.tall
        if spot is not None and not small:
            return self._badge(shape, pixel(spot))
        beside = self._beside(shape.box)
        if beside is not None:
            return self._badge(shape, beside, point)
        return self._badge(shape, point if spot is None else pixel(spot))

    def _beside(self, box: tuple[slice, slice]) -> tuple[int, int] | None:
        """The x and y of a free place outside the region: in one of eight directions, else the nearest free place."""
        rows, columns = box[0].stop - box[0].start, box[1].stop - box[1].start
        x, y = box[1].start + columns // 2, box[0].start + rows // 2
        height, width = self.free.shape
        reach_x, reach_y = (columns + self.wide) // 2, (rows + self.tall) // 2
        for dx, dy in _AROUND:
            there_x, there_y = x + dx * (reach_x + self.size), y + dy * (reach_y + self.size)
            if 0 <= there_x < width and 0 <= there_y < height and self.free[there_y, there_x]:
                return there_x, there_y
        step = max(1, self.tall // 4)
        free_y, free_x = (places * step for places in np.nonzero(self.free[::step, ::step]))
        far_x = np.maximum(np.abs(free_x - x) - reach_x, 0)
        far_y = np.maximum(np.abs(free_y - y) - reach_y, 0)
        distances = far_x**2 + far_y**2
        off = np.flatnonzero(distances)
        if not off.size:
            return None
        nearest = off[distances[off].argmin()]
        return int(free_x[nearest]), int(free_y[nearest])

    def _badge(self, shape: Shape, centre: tuple[int, int], pointer: tuple[int, int] | None = None) -> Badge:
        wide, tall = captions.badge_size(shape.number, self.size)
        height, width = self.free.shape
        left = int(np.clip(centre[0] - wide // 2, 0, max(0, width - wide)))
        top = int(np.clip(centre[1] - tall // 2, 0, max(0, height - tall)))
        above, before = top - self.gap - (self.tall + 1) // 2, left - self.gap - (self.wide + 1) // 2
        below, behind = top + tall + self.gap + self.tall // 2, left + wide + self.gap + self.wide // 2
        self.free[max(0, above) : below + 1, max(0, before) : behind + 1] = 0
        return Badge(shape, left, top, pointer)


def _roomiest(depth: np.ndarray, free: np.ndarray) -> tuple[int, int] | None:
    """Of all free places nearly as deep in the region as the deepest, the one nearest to the region's middle."""
    usable = depth * free
    if not usable.any():
        return None
    y, x = np.nonzero(usable >= 0.8 * usable.max())
    middle_y, middle_x = (coordinates.mean() for coordinates in np.nonzero(depth))
    nearest = int(((y - middle_y) ** 2 + (x - middle_x) ** 2).argmin())
    return int(y[nearest]), int(x[nearest])
