"""The forms in which a region is marked, and the pixels that each form covers.

Every shape is immutable and small compared to the image. It has `boxed(height, width, name)`, its mask in an image of
that size (possibly empty), drawn in its bounding box only, and `to_json()`, which returns plain JSON types.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from pixelrefer_fast.checks.values import check_size, is_integer, is_number, numpy_of, shown
from pixelrefer_fast.regions.boxed_mask import BoxedMask
from pixelrefer_fast.regions.rle import compress_counts, compress_mask, parse_counts

MAX_COORDINATE = 2**24
"""Largest magnitude of a coordinate or width in pixels: whole numbers up to it are exact in float32."""
MAX_POINTS = 2**15
"""Most points of one region's polygons."""
MAX_STROKE_POINTS = 2**12
"""Most points of one scribble: a minute of drawing at the rate of a screen. Each costs a pass over its rows."""
MAX_CLICKS = 64
"""Most points of one region that is given by clicks."""
MAX_OUTLINE = 2**20
"""Most pixels along a region's polygons; pycocotools takes about 100 bytes for each."""


@dataclass(frozen=True)
class Box:
    """Pixels that a rectangle touches: columns floor(x0) to ceil(x1) - 1 and rows likewise, within the image.

    Attributes:
        x0, y0, x1, y1: in pixels.
        normalized: they are shares of the image's width and height instead.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    normalized: bool = False
    kind: ClassVar[str] = "box"

    def __post_init__(self) -> None:
        if not (self.x0 < self.x1 and self.y0 < self.y1):
            raise ValueError(f"box: expected x0 < x1 and y0 < y1, got {self.x0, self.y0, self.x1, self.y1}")

    def boxed(self, height: int, width: int, name: str) -> BoxedMask:
        across, down = (width, height) if self.normalized else (1, 1)
        left, top = max(math.floor(self.x0 * across), 0), max(math.floor(self.y0 * down), 0)
        rows = min(math.ceil(self.y1 * down), height) - top
        columns = min(math.ceil(self.x1 * across), width) - left
        if rows <= 0 or columns <= 0:
            return BoxedMask.empty(height, width)
        return BoxedMask(height, width, top, left, np.ones((rows, columns), bool))

    def to_json(self) -> dict[str, Any]:
        value = {"type": "box", "xyxy": [self.x0, self.y0, self.x1, self.y1]}
        return value | {"normalized": True} if self.normalized else value


@dataclass(frozen=True)
class Polygons:
    """The union of closed polygons, on pycocotools' grid.

    Attributes:
        polygons: x0, y0, x1, y1, ... of at least three corners for each polygon.
        size: (height, width) of the image that they were made for, if known.
    """

    polygons: tuple[tuple[float, ...], ...]
    size: tuple[int, int] | None = None
    kind: ClassVar[str] = "polygon"

    def __post_init__(self) -> None:
        if not self.polygons:
            raise ValueError("polygon: expected at least one polygon, got none")
        if sum(map(len, self.polygons)) > 2 * MAX_POINTS:
            raise ValueError(f"polygon: expected at most {MAX_POINTS} points, got more")
        outline = 0.0
        for polygon in self.polygons:
            if len(polygon) < 6:
                raise ValueError(f"polygon: expected at least 3 points, got {len(polygon) // 2}")
            corners = np.array(polygon).reshape(-1, 2)
            outline += np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum()
        if outline > MAX_OUTLINE:
            raise ValueError(f"polygon: expected an outline of at most {MAX_OUTLINE} pixels, got {outline:.0f}")

    def boxed(self, height: int, width: int, name: str) -> BoxedMask:
        from pycocotools import mask as coco

        if self.size is not None and self.size != (height, width):
            made = f"{self.size[0]}x{self.size[1]}"
            raise ValueError(
                f"{name}: expected polygons for {height}x{width} (the image's height x width), got ones for {made}"
            )
        rles = coco.frPyObjects([list(polygon) for polygon in self.polygons], height, width)
        return Rle(height, width, coco.merge(rles)["counts"]).boxed(height, width, name)

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"type": "polygon", "polygons": [list(polygon) for polygon in self.polygons]}
        return value if self.size is None else {**value, "size": list(self.size)}


@dataclass(frozen=True)
class Scribble:
    """Pixels whose centres are within width / 2 of a polyline; the centre of pixel (row r, column c) is x = c, y = r.

    A stroke narrower than the diagonal of a pixel is widened to it: no point of the plane is farther than that from a
    centre, so strokes have no gaps.
    """

    points: tuple[tuple[float, float], ...]
    width: float
    kind: ClassVar[str] = "scribble"

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= MAX_STROKE_POINTS:
            raise ValueError(f"scribble: expected 1 to {MAX_STROKE_POINTS} points, got {len(self.points)}")
        if self.width <= 0:
            raise ValueError(f"scribble: expected a positive width, got {self.width}")

    def boxed(self, height: int, width: int, name: str) -> BoxedMask:
        points = np.array(self.points)
        radius = max(self.width / 2, math.sqrt(0.5))
        top = max(math.ceil(points[:, 1].min() - radius), 0)
        bottom = min(math.floor(points[:, 1].max() + radius), height - 1)
        if bottom < top:
            return BoxedMask.empty(height, width)
        # Each segment covers one span of columns per row: +1 where it starts, -1 behind its end, summed along the rows
        steps = np.zeros((bottom - top + 1, width + 1), np.int32)
        for start, end in zip(points, points[1:] if len(points) > 1 else points, strict=False):
            first_row = max(math.ceil(min(start[1], end[1]) - radius), top)
            last_row = min(math.floor(max(start[1], end[1]) + radius), bottom)
            rows = np.arange(first_row, last_row + 1)
            left, right = stroke_spans(start, end, radius, rows.astype(np.float64))
            # Rounding must not lose centres that are exactly at the stroke's edge
            first = np.ceil(np.maximum(left - 1e-9, 0))
            last = np.floor(np.minimum(right + 1e-9, width - 1))
            inside = first <= last
            rows = rows[inside] - top
            steps[rows, first[inside].astype(np.int64)] += 1
            steps[rows, last[inside].astype(np.int64) + 1] -= 1
        return BoxedMask.trimmed(height, width, top, 0, np.cumsum(steps, axis=1, out=steps)[:, :-1] > 0)

    def to_json(self) -> dict[str, Any]:
        return {"type": "scribble", "points": [list(point) for point in self.points], "width": self.width}


@dataclass(frozen=True)
class Rle:
    """A mask as compressed COCO run lengths (columns first), validated."""

    height: int
    width: int
    counts: bytes
    kind: ClassVar[str] = "rle"

    @classmethod
    def of(cls, size: Any, counts: Any) -> Rle:
        """From the `size` [height, width] and `counts` of COCO's compressed or uncompressed form."""
        height, width = image_size(size, "RLE size")
        is_array = isinstance(counts, (np.ndarray, torch.Tensor)) and counts.ndim == 1
        if is_array or isinstance(counts, (list, tuple)):
            runs = numpy_of(counts) if is_array else counts
            return cls(height, width, compress_counts(runs, height, width))
        if isinstance(counts, str) and counts.isascii():
            counts = counts.encode("ascii")
        if not isinstance(counts, bytes):
            raise ValueError(f"RLE counts: expected ASCII text, bytes or a list of integers, got {shown(counts)}")
        parse_counts(counts, height, width)
        return cls(height, width, counts)

    def boxed(self, height: int, width: int, name: str) -> BoxedMask:
        check_made_for(self.height, self.width, height, width, name)
        counts = parse_counts(self.counts, height, width)
        ends = np.cumsum(counts)
        marked = np.flatnonzero(counts[1::2]) * 2 + 1
        if not len(marked):
            return BoxedMask.empty(height, width)
        # drawn are the columns from the first to the last marked pixel; the runs before and after are cut to them
        left, right = int(ends[marked[0] - 1]) // height, int(ends[marked[-1]] - 1) // height + 1
        ends = np.clip(ends, left * height, right * height)
        values = np.zeros(len(counts), bool)
        values[1::2] = True
        columns = np.repeat(values, np.diff(ends, prepend=left * height)).reshape(right - left, height)
        return BoxedMask.trimmed(height, width, 0, left, columns.T)

    def to_json(self) -> dict[str, Any]:
        return {"type": "rle", "size": [self.height, self.width], "counts": self.counts.decode("ascii")}


@dataclass(frozen=True)
class Bitmap:
    """A mask as the bits of its bounding box: a copy, so later changes to the user's array do not reach it."""

    height: int
    width: int
    top: int
    left: int
    box_height: int
    box_width: int
    bits: bytes
    kind: ClassVar[str] = "mask"

    @classmethod
    def of(cls, mask: np.ndarray) -> Bitmap:
        """From a (H, W) array: bool; integers of one value, or uint8 up to 255, where all but 0 is marked; finite
        floats, marked above 0.5."""
        height, width = mask.shape
        check_size(height, width, "mask")
        if mask.dtype.kind == "f":
            if not np.isfinite(mask).all():
                raise ValueError("mask: expected finite values, got NaN or infinity")
            mask = mask > 0.5
        elif mask.dtype.kind not in "biu":
            raise ValueError(f"mask: expected bool, integer or float values, got {mask.dtype}")
        boxed = BoxedMask.of(mask)
        rows, columns = boxed.pixels.shape
        if rows and is_label_map(mask[boxed.top :, boxed.left :][:rows, :columns], boxed.pixels):
            raise label_map_error(width)
        return cls(height, width, boxed.top, boxed.left, rows, columns, np.packbits(boxed.pixels).tobytes())

    @property
    def is_empty(self) -> bool:
        return self.box_height == 0

    def boxed(self, height: int, width: int, name: str) -> BoxedMask:
        check_made_for(self.height, self.width, height, width, name, mask_hint(self.width))
        bits = np.unpackbits(np.frombuffer(self.bits, np.uint8), count=self.box_height * self.box_width)
        pixels = bits.view(bool).reshape(self.box_height, self.box_width)
        return BoxedMask(height, width, self.top, self.left, pixels)

    def to_json(self) -> dict[str, Any]:
        counts = compress_mask(self.boxed(self.height, self.width, "mask").full())
        return Rle(self.height, self.width, counts).to_json()


@dataclass(frozen=True)
class Clicks:
    """Points on an object, and beside it, from which a segmenter makes its mask; no pixels before that.

    Attributes:
        points: x, y of each, in pixels.
        labels: of each whether it lies on the object; at least one does.
    """

    points: tuple[tuple[float, float], ...]
    labels: tuple[bool, ...]
    kind: ClassVar[str] = "points"

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) <= MAX_CLICKS:
            raise ValueError(f"points: expected 1 to {MAX_CLICKS}, got {len(self.points)}")
        if len(self.labels) != len(self.points):
            raise ValueError(f"labels: expected one for each of {len(self.points)} points, got {len(self.labels)}")
        if not any(self.labels):
            raise ValueError("labels: expected at least one point on the object (label 1), got none")

    def boxed(self, height: int, width: int, name: str) -> BoxedMask:
        raise ValueError(f"{name}: expected a mask, got points, of which a segmenter makes one (pf.segment)")

    def to_json(self) -> dict[str, Any]:
        return {
            "type": "points",
            "points": [list(point) for point in self.points],
            "labels": [int(label) for label in self.labels],
        }


def check_made_for(made_height: int, made_width: int, height: int, width: int, name: str, hint: str = "") -> None:
    if (made_height, made_width) != (height, width):
        raise ValueError(
            f"{name}: expected a mask of {height}x{width} (the image's height x width), "
            f"got {made_height}x{made_width}{hint}"
        )


def mask_hint(width: int) -> str:
    """What may have been meant by a mask of another size than the image's."""
    return "; for boxes pass [x0, y0, x1, y1] for each" if width == 4 else ""


def label_map_error(width: int) -> ValueError:
    return ValueError(
        "mask: expected one object, got integers of several values, as a label map has; pass "
        "Region.from_labels(array) for a region of each label, or array == label for one" + mask_hint(width)
    )


def is_label_map(mask: np.ndarray, marked: np.ndarray) -> bool:
    """Whether integers number objects rather than mark one: several values, and not those of a grey mask, whose edges
    are soft and whose white is 255."""
    if mask.dtype.kind not in "iu":
        return False
    most = mask.max() or mask.min()
    return not (mask.dtype == np.uint8 and most == 255) and bool((marked & (mask != most)).any())


def image_size(size: Any, what: str) -> tuple[int, int]:
    if isinstance(size, np.ndarray):
        size = size.tolist()
    if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(map(is_integer, size)):
        raise ValueError(f"{what}: expected [height, width], got {shown(size)}")
    height, width = int(size[0]), int(size[1])
    check_size(height, width, what)
    return height, width


def coordinates(values: Sequence[Any], what: str) -> tuple[float, ...]:
    """Finite floats of a bounded magnitude."""
    for value in values:
        if not is_number(value) or not -MAX_COORDINATE <= value <= MAX_COORDINATE:  # false for NaN
            raise ValueError(
                f"{what}: expected numbers of magnitude up to {MAX_COORDINATE} (pixels), got {shown(value)}"
            )
    return tuple(map(float, values))


def stroke_spans(start: np.ndarray, end: np.ndarray, radius: float, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Per row the columns [left, right] within `radius` of a segment: one span, as what is near it is convex.

    left > right where there is none. It is the union of a disc at each end and the rectangle between.
    """
    left, right = np.full(len(rows), np.inf), np.full(len(rows), -np.inf)
    for x, y in (start, end):
        half = np.sqrt(np.maximum(radius**2 - (rows - y) ** 2, 0))
        near = np.abs(rows - y) <= radius
        left = np.where(near, np.minimum(left, x - half), left)
        right = np.where(near, np.maximum(right, x + half), right)
    length = math.dist(start, end)
    if length > 0:
        along_x, along_y = (end - start) / length
        low, high = np.full(len(rows), -np.inf), np.full(len(rows), np.inf)
        # The rectangle: 0 <= u·along_x + v·along_y <= length and |v·along_x - u·along_y| <= radius,
        # for the pixel (u, v) relative to the start
        v = rows - start[1]
        limits = ((along_x, v * along_y, 0.0, length), (-along_y, v * along_x, -radius, radius))
        for slope, offset, least, most in limits:
            if abs(slope) > 1e-12:
                a, b = (least - offset) / slope, (most - offset) / slope
                low, high = np.maximum(low, np.minimum(a, b)), np.minimum(high, np.maximum(a, b))
            else:
                high = np.where((offset >= least) & (offset <= most), high, -np.inf)
        crossed = low <= high
        left = np.where(crossed, np.minimum(left, start[0] + low), left)
        right = np.where(crossed, np.maximum(right, start[0] + high), right)
    return left, right
