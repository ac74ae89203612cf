"""An image or a video with what is marked in it: one item of vLLM's `multi_modal_data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.media import Media, open_media
from pixelrefer_fast.planning.options import EncodeOptions, read_options
from pixelrefer_fast.regions import Region, as_regions


class Marked:
    """An image or a video and its marked objects, one for each `<region>` of the prompt.

    Args:
        media: anything `pixelrefer_fast.open_media` takes.
        regions: anything `model.ask` takes.
        options: fields of `EncodeOptions`, such as fps, max_frames or frames for the frames of a video that PixelRefer
            sees whole.

    Raises:
        ValueError: naming the region or option, what was expected and what came.
    """

    __slots__ = ("encode", "first_region", "media", "regions")

    def __init__(self, media: object, regions: object, **options: object) -> None:
        self.media = media
        self.regions = as_regions(regions)
        self.encode = read_options(options, EncodeOptions)
        self.first_region = 0  # number of the first region in the caller's own list, for messages

    def __repr__(self) -> str:
        return f"Marked({shown(self.media)}, {len(self.regions)} regions)"


@dataclass(frozen=True)
class MarkedMedia:
    """All that one prompt is about: opened media, and its regions in the order of their tags."""

    media: Media
    regions: tuple[Region, ...]
    encode: EncodeOptions
    first_region: int


def read_items(items: Sequence[object]) -> MarkedMedia:
    """The items of one prompt, which are about one image or video.

    Args:
        items: each a `Marked`, or an image whose alpha channel marks an object: a PIL image or an array (H, W, 4).

    Raises:
        ValueError: they are of several images, or something is not what it should be.
    """
    read = [item if isinstance(item, Marked) else _alpha_marked(item) for item in items]
    opened: dict[int, Media] = {}
    for own in read:
        if id(own.media) not in opened:
            opened[id(own.media)] = open_media(own.media)
    first, *others = (opened[id(own.media)] for own in read)
    for other in others:
        if other is not first and not _same_image(first, other):
            raise ValueError("image: expected one image or video in a prompt, given once for each region, got several")
    for own in read[1:]:
        if own.encode != read[0].encode:
            raise ValueError(f"options: expected the same with each region, got {read[0].encode} and {own.encode}")
    return MarkedMedia(
        first, tuple(region for own in read for region in own.regions), read[0].encode, read[0].first_region
    )


def _same_image(one: Media, other: Media) -> bool:
    return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.array_equal(one, other)


def _alpha_marked(item: object) -> Marked:
    from PIL import Image

    if isinstance(item, Image.Image):
        item = np.asarray(item.convert("RGBA")) if item.has_transparency_data else np.asarray(item.convert("RGB"))
    if isinstance(item, torch.Tensor):
        item = item.numpy(force=True)
    if isinstance(item, np.ndarray) and item.ndim == 3 and item.shape[2] == 4:
        alpha = item[..., 3] > 0
        return Marked(np.ascontiguousarray(item[..., :3]), [Region.from_mask(alpha)] if not alpha.all() else [])
    if isinstance(item, np.ndarray) and item.ndim == 3:
        return Marked(item, [])
    raise ValueError(f"image: expected a Marked or an image whose alpha channel marks an object, got {shown(item)}")
