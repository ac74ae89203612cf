"""The facts that follow from a scene's masks: visible area, position, and what touches or covers what."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

_TOUCH = np.ones((3, 3), np.uint8)
_CLEAR = np.ones((7, 7), np.uint8)  # a gap of at least 3 pixels, so that `apart` is plain to see


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts about n objects in f frames.

    Attributes:
        areas: (n, f), visible pixels.
        visible: (n, f), the fraction of the object that is visible.
        boxes: (n, f, 4), left, top, right, bottom (half-open) of the visible pixels; zeros if there are none.
        centres: (n, f, 2), mean x and y of the visible pixels; NaN if there are none.
        across: (n, f), the longer side of the box of the whole object.
        touching: (f, n, n) bool, whether visible pixels of two objects are neighbours, corners included.
        apart: (f, n, n) bool, whether at least three pixels are between the visible pixels of two objects.
        covers: (f, n, n), the pixels where the first object is visible and hides the second.
    """

    areas: np.ndarray
    visible: np.ndarray
    boxes: np.ndarray
    centres: np.ndarray
    across: np.ndarray
    touching: np.ndarray
    apart: np.ndarray
    covers: np.ndarray

    @classmethod
    def of(cls, masks: np.ndarray, whole: np.ndarray) -> Facts:
        """From the visible and the whole masks, each (objects, frames, H, W) bool."""
        n, frames = masks.shape[:2]
        areas, boxes = np.zeros((n, frames), np.int64), np.zeros((n, frames, 4), np.int64)
        centres = np.empty((n, frames, 2))
        total, across = np.zeros((n, frames), np.int64), np.zeros((n, frames), np.int64)
        touching, apart = np.zeros((frames, n, n), bool), np.zeros((frames, n, n), bool)
        covers = np.zeros((frames, n, n), np.int64)
        numbers = np.arange(1, n + 1, dtype=np.uint8)[:, None, None]
        for f in range(frames):
            labels = (masks[:, f] * numbers).sum(axis=0, dtype=np.uint8)
            for i in range(n):
                box, columns, rows = _box(masks[i, f])
                boxes[i, f] = box
                areas[i, f] = columns.sum()
                left, top, right, bottom = box
                centres[i, f] = (
                    columns @ np.arange(len(columns)) / max(areas[i, f], 1) if areas[i, f] else np.nan,
                    rows @ np.arange(len(rows)) / max(areas[i, f], 1) if areas[i, f] else np.nan,
                )
                (l0, t0, r0, b0), columns, _ = _box(whole[i, f])
                total[i, f], across[i, f] = columns.sum(), max(r0 - l0, b0 - t0)
                hidden = labels[t0:b0, l0:r0][whole[i, f, t0:b0, l0:r0]]
                counts = np.bincount(hidden, minlength=n + 1)[1:]
                counts[i] = 0
                covers[f, :, i] = counts
                around = (slice(max(top - 3, 0), bottom + 3), slice(max(left - 3, 0), right + 3))
                mine = masks[i, f][around].view(np.uint8)
                near = labels[around]
                touching[f, i] = np.bincount(near[cv2.dilate(mine, _TOUCH) != 0], minlength=n + 1)[1:] > 0
                apart[f, i] = np.bincount(near[cv2.dilate(mine, _CLEAR) != 0], minlength=n + 1)[1:] == 0
        diagonal = np.arange(n)
        touching[:, diagonal, diagonal] = False
        return cls(areas, areas / np.maximum(total, 1), boxes, centres, across, touching, apart, covers)


def _box(mask: np.ndarray) -> tuple[tuple[int, int, int, int], np.ndarray, np.ndarray]:
    """The box of a mask, and its pixels in each column and each row."""
    columns = cv2.reduce(mask.view(np.uint8), 0, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[0]
    rows = cv2.reduce(mask.view(np.uint8), 1, cv2.REDUCE_SUM, dtype=cv2.CV_32S)[:, 0]
    x, y = np.flatnonzero(columns), np.flatnonzero(rows)
    box = (int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1) if len(x) else (0, 0, 0, 0)
    return box, columns, rows
