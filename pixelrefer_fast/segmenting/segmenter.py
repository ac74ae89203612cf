"""What every segmenter does: it opens an image or a video, and makes masks from what points at an object."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from pixelrefer_fast.checks.values import is_integer, shown
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.regions import Region
from pixelrefer_fast.regions.formats import box_of, clicks_of, is_scalar, plain
from pixelrefer_fast.regions.shapes import Bitmap, Box, Clicks
from pixelrefer_fast.regions.tensor_mask import MaskShape

GRABCUT = "grabcut"
"""The segmenter that needs no weights."""
MAX_BOXES = 256
"""Most boxes of one call."""
MAX_WORDS = 256
"""Most characters of the text of one call."""


@dataclass(frozen=True)
class SegmentPrompt:
    """What points at one object.

    Attributes:
        clicks: points on and beside it, if any.
        box: around it, if any.
    """

    clicks: Clicks | None = None
    box: Box | None = None

    @property
    def is_click(self) -> bool:
        """Whether it is one click and nothing else."""
        return self.box is None and self.clicks is not None and len(self.clicks.points) == 1


@dataclass(frozen=True)
class Segment:
    """One object that a segmenter found.

    Attributes:
        region: its mask; for a video bound to frames.
        score: how well the mask fits in the model's own estimate, 0 to 1; None where the segmenter makes none.
        rough: whether the mask is a guess that a person should look at first: GrabCut's of a click, or a plain box
            where nothing better was found.
    """

    region: Region
    score: float | None = None
    rough: bool = False


class OpenedMedia(Protocol):
    """An image or a video that a segmenter has opened; what does not depend on the prompt is computed once."""

    def masks(
        self,
        points: Any = None,
        labels: Any = None,
        boxes: Any = None,
        text: str | None = None,
        frame: int | None = None,
    ) -> list[Segment]:
        """Masks in an image, or in one frame of a video.

        Args:
            points: [x, y] pairs in pixels, all of one object.
            labels: 1 for each point on the object, 0 for each beside it; None: all are on it.
            boxes: x0, y0, x1, y1 in pixels, or a list of such, of an object each; one box together with `points`.
            text: a short name of what to find; by itself.
            frame: of a video, its number.

        Returns:
            A segment per object: one for `points`, one per box, any number for `text`.

        Raises:
            ValueError: naming the prompt, what was expected and what came.
        """
        ...

    def track(self, points: Any = None, labels: Any = None, boxes: Any = None, frame: int = 0) -> list[Segment]:
        """The objects marked in one frame, through all frames of a video in which they are seen.

        Raises:
            ValueError: as `masks`; or the media is an image, or the segmenter tracks nothing.
        """
        ...


class Segmenter(Protocol):
    """A model, or an algorithm, that makes masks.

    Attributes:
        name: for messages: "grabcut", or what it was loaded from.
    """

    name: str

    def open(self, media: Media) -> OpenedMedia:
        """Open what `media.open_media` returned."""
        ...


def read_prompts(points: Any, labels: Any, boxes: Any) -> list[SegmentPrompt]:
    """An entry per object.

    Raises:
        ValueError: naming points, labels or boxes, what was expected and what came.
    """
    if points is None and labels is not None:
        raise ValueError("labels: expected points that they belong to, got none")
    if points is None and boxes is None:
        raise ValueError("segment: expected points, boxes or text, got none of them")
    found = [] if boxes is None else _boxes(boxes)
    if points is None:
        return [SegmentPrompt(box=box) for box in found]
    clicks = clicks_of(points, labels)
    if len(found) > 1:
        raise ValueError(f"boxes: expected one box together with points, got {len(found)}")
    return [SegmentPrompt(clicks, found[0] if found else None)]


def _boxes(boxes: Any) -> list[Box]:
    listed = plain(boxes)
    if not isinstance(listed, (list, tuple)) or not 1 <= len(listed) <= MAX_BOXES:
        raise ValueError(f"boxes: expected 1 to {MAX_BOXES} boxes, got {shown(boxes)}")
    if all(map(is_scalar, listed)):
        listed = [listed]
    return [box_of(xyxy=box) for box in listed]


def read_text(text: Any) -> str:
    """Without spaces around it."""
    if not isinstance(text, str) or not 1 <= len(text.strip()) <= MAX_WORDS:
        raise ValueError(f"text: expected 1 to {MAX_WORDS} characters, got {shown(text)}")
    return text.strip()


def check_inside(prompt: SegmentPrompt, height: int, width: int) -> None:
    """Raise a ValueError unless each point, and a part of the box, lies inside the image."""
    if prompt.clicks is not None:
        for x, y in prompt.clicks.points:
            if not (0 <= x < width and 0 <= y < height):
                raise ValueError(f"points: expected x below {width} and y below {height}, got [{x:g}, {y:g}]")
    box = prompt.box
    if box is not None and not (box.x0 < width and box.y0 < height and box.x1 > 0 and box.y1 > 0):
        raise ValueError(
            f"box: expected a part inside the image of {height}x{width} (height x width), got "
            f"{box.x0:g}, {box.y0:g}, {box.x1:g}, {box.y1:g}"
        )


def picture_of(media: Media, frame: int | None) -> np.ndarray:
    """The image, or the frame of a video, (H, W, 3) uint8."""
    if not isinstance(media, Video):
        if frame is not None:
            raise ValueError(f"frame: expected none with an image, got {shown(frame)}")
        return media
    return next(media.read([frame_of(media, frame)]))


def frame_of(video: Video, frame: int | None) -> int:
    """A frame's number, checked."""
    if frame is None or not is_integer(frame) or not 0 <= frame < len(video):
        raise ValueError(f"frame: expected a number from 0 to {len(video) - 1}, got {shown(frame)}")
    return int(frame)


def region_of(mask: np.ndarray, frame: int | None) -> Region:
    """Of a mask (H, W) in an image, or in a frame."""
    return Region(((frame, Bitmap.of(mask)),))


def objects_of_frames(masks: Iterator[tuple[int, int, MaskShape]]) -> list[Region]:
    """Regions of (object, frame, mask) triples; frames in which a mask is empty are left out.

    Raises:
        ValueError: an object is seen in no frame.
    """
    marks = list(masks)
    regions = []
    for number, own in groupby(sorted(marks, key=lambda mark: mark[:2]), key=lambda mark: mark[0]):
        seen = tuple((frame, bitmap) for _, frame, bitmap in own if not bitmap.is_empty)
        if not seen:
            raise ValueError(f"object {number}: expected a mask in at least one frame, the segmenter found none")
        regions.append(Region(seen))
    return regions


def unit(score: float) -> float:
    """A score within 0..1; 0 for NaN."""
    return min(max(score, 0.0), 1.0) if math.isfinite(score) else 0.0
