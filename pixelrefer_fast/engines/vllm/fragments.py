"""Bytes of an image or a video and a URL's fragment -> `Marked`."""

from __future__ import annotations

from urllib.parse import parse_qsl

import numpy as np

from pixelrefer_fast.checks.safe_files import parse_json_value
from pixelrefer_fast.checks.values import labelled, shown
from pixelrefer_fast.engines.vllm.marked import Marked
from pixelrefer_fast.media import Video, open_media
from pixelrefer_fast.regions import Region, as_regions

NUMBERS = ("fps", "max_frames")


def marked_image(content: bytes, fragment: str) -> Marked:
    """An image and what its URL marks: its fragment, else its alpha channel where it is transparent in parts.

    Raises:
        ValueError: what is no image, and a fragment that is none of `read_fragment`'s.
    """
    media = open_media(content)
    if isinstance(media, Video):
        raise ValueError("image_url: expected an image, got a video or an animation; send it as a video_url")
    with labelled("image_url"):
        regions, options = read_fragment(fragment, *media.shape[:2])
    if options:
        raise ValueError(f"image_url: expected no options of videos, got {shown(sorted(options))}")
    return Marked(media, regions or _opaque(content))


def marked_video(content: bytes, fragment: str) -> Marked:
    """A video and what its URL's fragment marks.

    Raises:
        ValueError: as `marked_image`.
    """
    media = open_media(content)
    if not isinstance(media, Video):
        raise ValueError("video_url: expected a video, got an image; send it as an image_url")
    with labelled("video_url"):
        regions, options = read_fragment(fragment, media.height, media.width)
        return Marked(media, regions, **options)


def read_fragment(fragment: str, height: int, width: int) -> tuple[list[Region], dict[str, object]]:
    """The regions and options of a fragment: fields as in a query, joined by "&".

    xywh=[pixel:|percent:]x,y,w,h marks a box (https://www.w3.org/TR/media-frags/#naming-space), region=... what its
    JSON describes, one region or a list; either may come several times. fps= and max_frames= choose a video's frames.

    Raises:
        ValueError: naming the field, what was expected and what came.
    """
    regions: list[Region] = []
    options: dict[str, object] = {}
    for key, value in parse_qsl(fragment, keep_blank_values=True, max_num_fields=1024):
        if key == "xywh":
            regions.append(_box(value, height, width))
        elif key == "region":
            with labelled("region"):
                regions += as_regions(parse_json_value(value.encode(), "fragment"))
        elif key in NUMBERS:
            options[key] = parse_json_value(value.encode(), key)
        else:
            raise ValueError(f"fragment: expected xywh=, region=, {'=, '.join(NUMBERS)}=, got {shown(key)}")
    return regions, options


def _box(value: str, height: int, width: int) -> Region:
    unit, _, numbers = value.rpartition(":")
    try:
        x, y, w, h = (float(number) for number in numbers.split(","))
        across, down = {"": (1, 1), "pixel": (1, 1), "percent": (width / 100, height / 100)}[unit]
    except (ValueError, KeyError):
        raise ValueError(f"xywh: expected [pixel:|percent:]x,y,w,h, got {shown(value)}") from None
    return Region.from_box(xywh=(x * across, y * down, w * across, h * down))


def _opaque(content: bytes) -> list[Region]:
    """The opaque part of an image that is transparent in parts."""
    from PIL import ImageOps

    from pixelrefer_fast.media.images import open_pil

    with open_pil(content, "image_url") as image:
        if image.mode not in ("RGBA", "LA", "PA"):
            return []
        alpha = np.asarray(ImageOps.exif_transpose(image).getchannel("A")) > 0
    return [Region.from_mask(alpha)] if alpha.any() and not alpha.all() else []
