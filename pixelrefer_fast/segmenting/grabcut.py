"""The segmenter that needs no weights: GrabCut (Rother, Kolmogorov and Blake 2004) as OpenCV computes it.

Boxes are cut along colours. From a click alone there is no telling how large the object is, so its mask is a guess.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from pixelrefer_fast.media import Media
from pixelrefer_fast.regions.shapes import Box, Clicks
from pixelrefer_fast.segmenting.segmenter import (
    GRABCUT,
    Segment,
    SegmentPrompt,
    check_inside,
    picture_of,
    read_prompts,
    region_of,
)

SIDE = 512
"""Longest side of the picture that is cut; larger ones are shrunk to it."""
ROUNDS = 5
LEAST_OF_BOX = 0.1
"""A mask under this part of its box has lost the object: the box itself is taken."""
NEAR, FAR = 0.33, 0.5
"""Around a click, in parts of the longest side: where its colour may be the object, and beyond which nothing is."""
SAME_COLOUR = 25.0
"""Distance in OpenCV's 8-bit Lab up to which a pixel may be what was clicked."""
DISC = 0.015
"""Radius around a click that belongs to it for sure, in parts of the longest side."""


class GrabCut:
    """The default segmenter; the same masks each time."""

    name = GRABCUT

    def open(self, media: Media) -> OpenedForGrabCut:
        return OpenedForGrabCut(media)


class OpenedForGrabCut:
    def __init__(self, media: Media) -> None:
        self._media = media

    def masks(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        text: str | None = None,
        frame: int | None = None,
    ) -> list[Segment]:
        if text is not None:
            raise ValueError("text: expected points or boxes for grabcut, which knows no words; load a SAM 3 for text")
        prompts = read_prompts(points, labels, boxes)
        picture = picture_of(self._media, frame)
        for prompt in prompts:
            check_inside(prompt, *picture.shape[:2])
        return [_segment(picture, prompt, frame) for prompt in prompts]

    def track(self, points: Any = None, labels: Any = None, boxes: Any = None, frame: int = 0) -> list[Segment]:
        raise ValueError("track: expected a segmenter that follows objects (SAM 2, SAM 3, EdgeTAM), got grabcut")


def _segment(picture: np.ndarray, prompt: SegmentPrompt, frame: int | None) -> Segment:
    height, width = picture.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    small = picture
    if scale < 1:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    scales = small.shape[1] / width, small.shape[0] / height
    certain = _certain(small, prompt, scales)
    cut = _cut(small, certain)
    if prompt.clicks is not None:
        cut = _clicked_parts(cut, prompt.clicks, scales)
    mask = cut if scale == 1 else cv2.resize(cut, (width, height), interpolation=cv2.INTER_NEAREST)
    if prompt.box is None:
        return Segment(region_of(mask, frame), rough=True)
    inside = prompt.box.boxed(height, width, "box").full()
    mask = mask & inside
    if mask.sum() < LEAST_OF_BOX * inside.sum():
        return Segment(region_of(inside, frame), rough=True)
    return Segment(region_of(mask, frame))


def _certain(picture: np.ndarray, prompt: SegmentPrompt, scales: tuple[float, float]) -> np.ndarray:
    """What is known of each pixel before the cut, in OpenCV's four values, (H, W) uint8."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    rows, columns = np.mgrid[:height, :width]
    if prompt.box is None:
        certain = np.full((height, width), cv2.GC_PR_BGD, np.uint8)
    else:
        box = prompt.box
        small = Box(box.x0 * scales[0], box.y0 * scales[1], box.x1 * scales[0], box.y1 * scales[1])
        certain = np.where(small.boxed(height, width, "box").full() > 0, cv2.GC_PR_FGD, cv2.GC_BGD).astype(np.uint8)
    if prompt.clicks is None:
        return certain
    places = _places(prompt.clicks, scales, height, width)
    distances = [np.hypot(columns - x, rows - y) / longest for x, y in places]
    disc = max(DISC, 1 / longest)
    if prompt.box is None:
        lab = cv2.cvtColor(picture, cv2.COLOR_RGB2LAB)
        even, lab = cv2.medianBlur(lab, 5).astype(np.float32), lab.astype(np.float32)
        on_it = [d for d, label in zip(distances, prompt.clicks.labels, strict=True) if label]
        for (x, y), distance, label in zip(places, distances, prompt.clicks.labels, strict=True):
            if label:
                colour = even[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4].reshape(-1, 3).mean(axis=0)
                alike = np.linalg.norm(lab - colour, axis=2) < SAME_COLOUR
                certain[alike & (distance < NEAR)] = cv2.GC_PR_FGD
        certain[np.minimum.reduce(on_it) > FAR] = cv2.GC_BGD
    for (x, y), distance, label in zip(places, distances, prompt.clicks.labels, strict=True):
        certain[distance < disc] = cv2.GC_FGD if label else cv2.GC_BGD
        certain[y, x] = cv2.GC_FGD if label else cv2.GC_BGD
    return certain


def _places(clicks: Clicks, scales: tuple[float, float], height: int, width: int) -> list[tuple[int, int]]:
    """Column and row of each click in a picture of this size."""
    return [(min(int(x * scales[0]), width - 1), min(int(y * scales[1]), height - 1)) for x, y in clicks.points]


def _cut(picture: np.ndarray, certain: np.ndarray) -> np.ndarray:
    """The mask (H, W) uint8 of 0 and 1."""
    object_likely = (certain == cv2.GC_FGD) | (certain == cv2.GC_PR_FGD)
    if object_likely.any() and not object_likely.all():  # OpenCV wants samples of both
        certain = certain.copy()
        cv2.setRNGSeed(0)  # of this thread
        behind, before = np.zeros((1, 65)), np.zeros((1, 65))  # its models of colours
        bgr = np.ascontiguousarray(picture[..., ::-1])
        cv2.grabCut(bgr, certain, (0, 0, 1, 1), behind, before, ROUNDS, cv2.GC_INIT_WITH_MASK)  # no use of the box
        object_likely = (certain == cv2.GC_FGD) | (certain == cv2.GC_PR_FGD)
    return object_likely.astype(np.uint8)


def _clicked_parts(cut: np.ndarray, clicks: Clicks, scales: tuple[float, float]) -> np.ndarray:
    """The connected parts that hold a click on the object."""
    _, parts = cv2.connectedComponents(cut)
    places = _places(clicks, scales, *cut.shape)
    clicked = {int(parts[y, x]) for (x, y), label in zip(places, clicks.labels, strict=True) if label} - {0}
    return np.isin(parts, list(clicked)).astype(np.uint8)
