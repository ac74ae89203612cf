"""Regions that are given as points -> regions with masks."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from pixelrefer_fast.checks.values import labelled
from pixelrefer_fast.device.processes import PerProcess
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.regions import Region
from pixelrefer_fast.regions.shapes import Clicks
from pixelrefer_fast.regions.tensor_mask import Shape
from pixelrefer_fast.segmenting.segmenter import OpenedMedia, Segmenter

# Requests are prepared in several threads, and a segmenter has a state and often a device.
_turn = PerProcess(threading.Lock)


def marked_by(
    segmenter: Segmenter, media: Media, regions: Sequence[Region], names: Sequence[str] | None = None
) -> list[Region]:
    """The regions, those given as points with the segmenter's masks; in a video in the frame of the points.

    Args:
        segmenter: asked only where there are points.
        media: what `media.open_media` returned.
        regions: of it.
        names: of the regions in messages; default: "region 0" and so on.

    Raises:
        ValueError: naming the region.
    """
    if not any(region.has_points for region in regions):
        return list(regions)
    marked = []
    with _turn.get():
        opened = segmenter.open(media)
        for number, region in enumerate(regions):
            with labelled(f"region {number}" if names is None else names[number]):
                masks = ((frame, _mask(opened, media, frame, shape)) for frame, shape in region.marks)
                marked.append(Region(tuple(masks)))
    return marked


def _mask(opened: OpenedMedia, media: Media, frame: int | None, shape: Shape) -> Shape:
    if not isinstance(shape, Clicks):
        return shape
    if isinstance(media, Video) and frame is None:
        raise ValueError("expected a mapping from frame to region for a video, got points without a frame")
    (found,) = opened.masks(shape.points, shape.labels, frame=frame)
    return found.region.marks[0][1]
