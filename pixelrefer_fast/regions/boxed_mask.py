"""A mask as the pixels of its bounding box: what planning reads of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class BoxedMask:
    """The marked pixels of an image, of which only the bounding box is held.

    Attributes:
        height, width: of the image, in pixels.
        top, left: where the box lies in it.
        pixels: (h, w) bool, from the first to the last row and column with a marked pixel; (0, 0) where there is none.
    """

    height: int
    width: int
    top: int
    left: int
    pixels: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> BoxedMask:
        """Of a whole mask (H, W) of any dtype and strides: anything but 0 is marked. It may share the mask's memory."""
        height, width = mask.shape
        return cls.trimmed(height, width, 0, 0, mask)

    @classmethod
    def trimmed(cls, height: int, width: int, top: int, left: int, part: np.ndarray) -> BoxedMask:
        """Of a part of a mask that holds all marked pixels and begins at row `top` and column `left`."""
        rows = np.flatnonzero(part.any(axis=1))
        if not len(rows):
            return cls.empty(height, width)
        part = part[rows[0] : rows[-1] + 1]  # columns are looked for in these rows alone: the whole is read once
        columns = np.flatnonzero(part.any(axis=0))
        part = part[:, columns[0] : columns[-1] + 1]
        marked = part if part.dtype == np.bool_ else part != 0
        return cls(height, width, top + int(rows[0]), left + int(columns[0]), marked)

    @classmethod
    def empty(cls, height: int, width: int) -> BoxedMask:
        """Nothing is marked."""
        return cls(height, width, 0, 0, np.zeros((0, 0), bool))

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the image."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Marked pixels."""
        return int(np.count_nonzero(self.pixels))

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """First row and column with a marked pixel, last row and column (included); None where there is none."""
        rows, columns = self.pixels.shape
        return (self.top, self.left, self.top + rows - 1, self.left + columns - 1) if rows else None

    def window(self, top: int, left: int, bottom: int, right: int) -> np.ndarray:
        """Rows top to bottom - 1 and columns left to right - 1 of the mask, a new uint8 array of 0 and 1."""
        window = np.zeros((bottom - top, right - left), np.uint8)
        rows, columns = self.pixels.shape
        first_row, first_column = max(self.top, top), max(self.left, left)
        last_row, last_column = min(self.top + rows, bottom), min(self.left + columns, right)
        if first_row < last_row and first_column < last_column:
            window[first_row - top : last_row - top, first_column - left : last_column - left] = self.pixels[
                first_row - self.top : last_row - self.top, first_column - self.left : last_column - self.left
            ]
        return window

    def full(self) -> np.ndarray:
        """The whole mask, a new (height, width) uint8 array of 0 and 1."""
        return self.window(0, 0, self.height, self.width)
