"""The places of a scene's objects, while they are placed one after the other."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from pixelrefer_fast.world.things import Drawn, Thing

GAP = 4
"""Pixels between objects that are placed apart, at least."""


@dataclass(frozen=True)
class Sprite:
    """One object drawn about its own centre: for each frame a picture, a shift (x, y) and an angle in degrees."""

    thing: Thing
    drawn: tuple[Drawn, ...]
    shifts: tuple[tuple[int, int], ...]
    angles: tuple[float, ...]
    edged: bool

    def room(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Centres (x from, x to, y from, y to), inclusive, that keep every frame's mask inside; None for none."""
        boxes = [
            (d.left + x, d.left + x + d.mask.shape[1], d.top + y, d.top + y + d.mask.shape[0])
            for d, (x, y) in zip(self.drawn, self.shifts, strict=True)
        ]
        x0, x1 = -min(b[0] for b in boxes), width - max(b[1] for b in boxes)
        y0, y1 = -min(b[2] for b in boxes), height - max(b[3] for b in boxes)
        return (x0, x1, y0, y1) if x0 <= x1 and y0 <= y1 else None


class Canvas:
    """The objects placed so far: which object is visible at each pixel of each frame, and how much of each is left."""

    def __init__(self, frames: int, height: int, width: int) -> None:
        self.owner = np.zeros((frames, height, width), np.uint8)  # 0: background, i + 1: object i
        self.sprites: list[Sprite] = []
        self.centres: list[tuple[int, int]] = []
        self.left: list[np.ndarray] = []  # visible pixels of each object, (frames,)
        self.areas: list[np.ndarray] = []
        self.contacts: list[int] = []  # objects that were placed touching another

    def window(self, sprite: Sprite, frame: int, x: int, y: int) -> np.ndarray:
        """The owners under a sprite's picture in one frame."""
        d, (dx, dy) = sprite.drawn[frame], sprite.shifts[frame]
        top, left = y + dy + d.top, x + dx + d.left
        return self.owner[frame, top : top + d.mask.shape[0], left : left + d.mask.shape[1]]

    def covered(self, sprite: Sprite, frame: int, x: int, y: int) -> np.ndarray:
        """Pixels of each object, from the first, that the sprite would cover in one frame."""
        under = self.window(sprite, frame, x, y)[sprite.drawn[frame].mask]
        return np.bincount(under, minlength=len(self.sprites) + 1)[1:]

    def leaves(self, sprite: Sprite, x: int, y: int, part: float) -> bool:
        """Whether the sprite would leave at least `part` of every object visible in every frame."""
        for frame in range(len(self.owner)):
            covered = self.covered(sprite, frame, x, y)
            for i in np.flatnonzero(covered):
                if self.left[i][frame] - covered[i] < part * self.areas[i][frame]:
                    return False
        return True

    def near(self, sprite: Sprite, x: int, y: int, but: int = -1) -> bool:
        """Whether an object other than `but` is within the gap in any frame."""
        height, width = self.owner.shape[1:]
        for frame, (d, (dx, dy)) in enumerate(zip(sprite.drawn, sprite.shifts, strict=True)):
            top, left = y + dy + d.top, x + dx + d.left
            bottom, right = top + d.mask.shape[0], left + d.mask.shape[1]
            t, m = max(top - GAP, 0), max(left - GAP, 0)
            around = self.owner[frame, t : min(bottom + GAP, height), m : min(right + GAP, width)]
            if not around.any():
                continue
            grown = cv2.copyMakeBorder(d.mask.view(np.uint8), GAP, GAP, GAP, GAP, cv2.BORDER_CONSTANT, value=0)
            grown = cv2.dilate(grown, _WITHINGAP)
            grown = grown[t - top + GAP :, m - left + GAP :][: around.shape[0], : around.shape[1]]
            hit = around[grown != 0]
            if ((hit != 0) & (hit != but + 1)).any():
                return True
        return False

    def place(self, sprite: Sprite, x: int, y: int) -> None:
        number = len(self.sprites) + 1
        for frame in range(len(self.owner)):
            covered = self.covered(sprite, frame, x, y)
            for i in np.flatnonzero(covered):
                self.left[i][frame] -= covered[i]
            self.window(sprite, frame, x, y)[sprite.drawn[frame].mask] = number
        areas = np.array([np.count_nonzero(d.mask) for d in sprite.drawn])
        self.sprites.append(sprite)
        self.centres.append((x, y))
        self.areas.append(areas)
        self.left.append(areas.copy())

    def paint(self, frame: int, picture: np.ndarray) -> np.ndarray:
        """`picture` (H, W, 3) with the objects on it, in their order; changed in place."""
        for sprite, (x, y) in zip(self.sprites, self.centres, strict=True):
            d, (dx, dy) = sprite.drawn[frame], sprite.shifts[frame]
            top, left = y + dy + d.top, x + dx + d.left
            part = picture[top : top + d.mask.shape[0], left : left + d.mask.shape[1]]
            cv2.copyTo(d.pixels, d.mask.view(np.uint8), part)
        return picture

    def whole(self) -> np.ndarray:
        """(objects, frames, H, W) bool, the masks including covered pixels."""
        masks = np.zeros((len(self.sprites), *self.owner.shape), bool)
        for i, (sprite, (x, y)) in enumerate(zip(self.sprites, self.centres, strict=True)):
            for frame, (d, (dx, dy)) in enumerate(zip(sprite.drawn, sprite.shifts, strict=True)):
                top, left = y + dy + d.top, x + dx + d.left
                masks[i, frame, top : top + d.mask.shape[0], left : left + d.mask.shape[1]] = d.mask
        return masks


_WITHINGAP = np.ones((2 * GAP + 1, 2 * GAP + 1), np.uint8)
