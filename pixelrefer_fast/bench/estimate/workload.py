"""What is asked, in sizes alone: pictures, marks, questions and answers of which the cost model says what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Workload:
    """What is asked.

    Attributes:
        objects: marked in each image or video.
        frames: of each video; None for images.
        marked: frames of a video in which each object is marked, spread evenly (Lite; Full takes one).
        seen: frames of a video that Full sees whole, spread evenly; None: all.
        height, width: of images and frames, in pixels.
        box: height and width of what is marked, a filled box; None: a ninth of the height and a twelfth of the width.
        ellipses: whether the ellipses of `bench.run.loads` are marked instead, each a little elsewhere in each frame.
        kept: share of the vision tokens that a video keeps after its first frame, whose unchanged cells are dropped.
        batch: images or videos, asked about together.
        each: whether each object has a question of its own (`describe`) or all of an image share one (`ask`).
        question: tokens of the question's own words.
        text: tokens of all text of a prompt, if they are known; None: counted from the question by rule.
        answer: tokens of each answer, its end included.
        shared: whether questions about one image find its vision tokens computed by the first of them (Full, `each`).
        seed: of the places of the first image's objects; the next one has the next.
    """

    objects: int = 1
    frames: int | None = None
    marked: int = 1
    seen: int | None = None
    height: int = 1080
    width: int = 1920
    box: tuple[int, int] | None = None
    ellipses: bool = False
    kept: float = 1.0
    batch: int = 1
    each: bool = False
    question: int = 16
    text: int | None = None
    answer: int = 64
    shared: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("objects", "marked", "height", "width", "batch", "answer"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("frames", "seen"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if self.frames is None and (self.marked > 1 or self.seen is not None):
            raise ValueError("frames: expected a number of frames with what is marked or seen in several, got none")
        for name in ("marked", "seen"):
            value = getattr(self, name)
            if self.frames is not None and value is not None and value > self.frames:
                raise ValueError(f"{name}: expected at most {self.frames}, the video's frames, got {value}")
        tall, wide = self.marked_box
        if not (1 <= tall <= self.height and 1 <= wide <= self.width):
            raise ValueError(f"box: expected one within {self.height}x{self.width} pixels, got {tall}x{wide}")
        if not 0 <= self.kept <= 1:
            raise ValueError(f"kept: expected a share from 0 to 1, got {self.kept}")

    @property
    def marked_box(self) -> tuple[int, int]:
        """Height and width of what is marked."""
        return self.box or (max(1, self.height // 9), max(1, self.width // 12))

    def boxes(self, image: int = 0) -> list[list[int]]:
        """(x0, y0, x1, y1) of each object of an image: the places of `workloads.boxes`."""
        random, (tall, wide) = np.random.default_rng(self.seed + image), self.marked_box
        tops = random.integers(0, max(1, self.height - tall), self.objects).tolist()
        lefts = random.integers(0, max(1, self.width - wide), self.objects).tolist()
        return [[x, y, x + wide, y + tall] for x, y in zip(lefts, tops, strict=True)]

    def masks(self, image: int = 0) -> Iterator[np.ndarray]:
        """(H, W) uint8 of each object of an image, in the middle of a video."""
        if self.ellipses:
            from pixelrefer_fast.bench.run.loads import ellipses

            yield from ellipses(self.objects, self.height, self.width, image)
            return
        for x0, y0, x1, y1 in self.boxes(image):
            mask = np.zeros((self.height, self.width), np.uint8)
            mask[y0:y1, x0:x1] = 1
            yield mask

    def frames_marked(self) -> list[int]:
        """In which each object is marked; the image itself is 0."""
        return [(self.frames or 1) // 2] if self.marked == 1 else _spread(self.frames or 1, self.marked)

    def frames_seen(self) -> list[int]:
        """Those that Full sees whole."""
        return _spread(self.frames or 1, self.seen or self.frames or 1)


def _spread(count: int, some: int) -> list[int]:
    """`some` of `count` numbers, spread evenly."""
    return np.linspace(0, count - 1, some).round().astype(int).tolist()
