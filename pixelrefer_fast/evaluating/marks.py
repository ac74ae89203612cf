"""Masks and boxes of published files -> regions as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pixelrefer_fast.checks.safe_files import brief
from pixelrefer_fast.evaluating.items import Json


def run_lengths(segmentation: Any, height: int | None = None, width: int | None = None) -> Json:
    """COCO's polygons, counts or compressed counts as compressed run lengths, by pycocotools.

    Args:
        segmentation: of an annotation.
        height, width: of the image, for polygons, which lack them.

    Raises:
        ValueError: it is none of these.
    """
    from pycocotools import mask as coco

    try:
        if isinstance(segmentation, list):
            rle = coco.merge(coco.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = coco.frPyObjects(segmentation, *segmentation["size"])
        else:
            rle = segmentation
        counts = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
        if not isinstance(counts, str):
            raise TypeError(type(counts).__name__)
        size = [int(side) for side in rle["size"]]
    except Exception as error:  # pycocotools raises bare ones
        raise ValueError(f"segmentation: expected polygons or run lengths, got {brief(segmentation)}") from error
    return {"size": size, "counts": counts}


def marks_something(rle: Json) -> bool:
    """Whether run lengths have a marked pixel."""
    from pycocotools import mask as coco

    return int(coco.area({"size": rle["size"], "counts": rle["counts"].encode()})) > 0


def filled_box(box: Sequence[float], height: int, width: int) -> Json:
    """A box as a mask of its pixels: x, y, width and height cut to integers, its part inside the image.

    The authors' scripts fill boxes so, each number cut by itself.
    """
    x, y, w, h = (int(number) for number in box)
    return {"type": "box", "xyxy": [max(0, x), max(0, y), min(width, x + w), min(height, y + h)]}


def on_frames(frames: dict[int, Json]) -> Json:
    """An object marked in frames of a video, by their numbers."""
    return {"type": "frames", "frames": {str(frame): frames[frame] for frame in sorted(frames)}}
