"""Regions of a request -> `Region`s."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pixelrefer_fast.checks.values import is_number, labelled, shown
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.regions import Region
from pixelrefer_fast.serving.media import decoded

SCALE = 1000
"""Of `bbox_2d`: Qwen's coordinates run from 0 to this, whatever the image's size."""


def read_regions(given: Sequence[Mapping[str, Any]], media: Media, first: int = 0) -> list[Region]:
    """Regions of an image or video.

    Args:
        given: one of the forms of `schemas.Regions` each, or any JSON that `Region.of` takes.
        media: which they mark.
        first: number of the first in messages.

    Raises:
        ValueError: naming the region, what was expected and what came.
    """
    size = (media.height, media.width) if isinstance(media, Video) else media.shape[:2]
    regions = []
    for number, one in enumerate(given, first):
        with labelled(f"region {number}"):
            regions.append(_region(one, *size))
    return regions


def _region(given: Mapping[str, Any], height: int, width: int) -> Region:
    frames = given.get("frames")
    if isinstance(frames, Mapping):
        for one in frames.values():
            if not isinstance(one, Mapping):
                raise ValueError(f"frames: expected a region for each frame, got {shown(one)}")
        return Region.from_frames({number: _region(one, height, width) for number, one in frames.items()})
    forms = [name for name in _FORMS if name in given]
    if len(forms) == 1 and "type" not in given:
        unread = set(given) - {forms[0]}
        if unread:
            raise ValueError(f"expected {forms[0]} by itself, got {shown(sorted(unread))} too")
        return _FORMS[forms[0]](given[forms[0]], height, width)
    return Region.of(given)


def _box(value: Any, height: int, width: int) -> Region:
    return Region.from_box(xyxy=value)


def _relative_box(value: Any, height: int, width: int) -> Region:
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(v) and 0 <= v <= SCALE for v in value):
        raise ValueError(f"bbox_2d: expected four numbers from 0 to {SCALE}, got {shown(value)}")
    x0, y0, x1, y1 = value
    return Region.from_box(xyxy=(x0 * width / SCALE, y0 * height / SCALE, x1 * width / SCALE, y1 * height / SCALE))


def _rle(value: Any, height: int, width: int) -> Region:
    return Region.from_rle(value)


def _polygon(value: Any, height: int, width: int) -> Region:
    return Region.from_polygon(value)


def _mask(value: Any, height: int, width: int) -> Region:
    """A picture of the image's size: marked where it is not black or, where it is transparent in parts, not so."""
    from PIL import Image

    if not isinstance(value, str):
        raise ValueError(f"mask: expected a PNG in base64, got {shown(value)}")
    content = decoded(value.partition(",")[2] if value.startswith("data:") else value, "mask")
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if (image.height, image.width) != (height, width):
                raise ValueError(
                    f"mask: expected a mask of {height}x{width} (the image's height x width), "
                    f"got {image.height}x{image.width}"
                )
            pixels = np.asarray(image.convert("RGBA" if image.mode in ("P", "LA", "RGBA") else "RGB"))
    except ValueError:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"mask: expected a complete PNG, it cannot be decoded: {type(error).__name__}") from None
    if pixels.shape[2] == 4 and not pixels[..., 3].all():
        return Region.from_mask(pixels[..., 3] > 0)
    return Region.from_mask(pixels[..., :3].any(axis=2))


_FORMS = {"box": _box, "bbox_2d": _relative_box, "rle": _rle, "polygon": _polygon, "mask": _mask}
