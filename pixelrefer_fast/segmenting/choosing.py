"""A segmenter by its name, and a mask in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pixelrefer_fast.media import Media, Video, open_media
from pixelrefer_fast.segmenting.segmenter import GRABCUT, Segment, Segmenter


def load_segmenter(path_or_hub_id: str | Path = GRABCUT, device: str = "auto") -> Segmenter:
    """The segmenter of this name.

    Args:
        path_or_hub_id: "grabcut", which needs no weights; or a folder or a hub id of SAM, SAM 2, SAM 3 or EdgeTAM in
            transformers' format, such as facebook/sam2.1-hiera-tiny.
        device: of a model: "auto" (a CUDA device if there is one, else the CPU) or a device.

    Raises:
        ValueError: there is no such segmenter; one line that says why.
    """
    if path_or_hub_id == GRABCUT:
        from pixelrefer_fast.segmenting.grabcut import GrabCut

        return GrabCut()
    from pixelrefer_fast.segmenting.sam_loading import load_sam

    return load_sam(path_or_hub_id, device)


def segment(
    image_or_video: Any,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    text: str | None = None,
    frame: int | None = None,
    model: str | Path | Segmenter = GRABCUT,
) -> list[Segment]:
    """Masks of what was clicked, boxed or named in an image or in one frame of a video.

    Args:
        image_or_video: anything `open_media` takes.
        points: [x, y] pairs in pixels, all of one object.
        labels: 1 for each point on the object, 0 for each beside it; None: all are on it.
        boxes: x0, y0, x1, y1 in pixels, or a list of such, of an object each; one box together with `points`.
        text: a short name of what to find; by itself.
        frame: of a video, its number.
        model: a segmenter, or what `load_segmenter` takes. Load it once to ask often.

    Returns:
        A segment per object; `segment.region` goes wherever regions go.

    Raises:
        ValueError: naming the input, what was expected and what came.
    """
    media: Media = open_media(image_or_video)
    if isinstance(media, Video) and frame is None:
        raise ValueError("frame: expected the number of a frame with a video, got none")
    segmenter = load_segmenter(model) if isinstance(model, (str, Path)) else model
    return segmenter.open(media).masks(points, labels, boxes, text, frame)
