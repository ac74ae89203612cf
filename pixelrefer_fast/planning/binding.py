"""Media and what a user marked in it -> a request, and its plan: the rules of the two models, without their weights."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.checks.values import plain_list
from pixelrefer_fast.media import Media, Video
from pixelrefer_fast.planning.merge import plan_request
from pixelrefer_fast.planning.options import EncodeOptions
from pixelrefer_fast.planning.request import FrameSource, Request, bind_regions
from pixelrefer_fast.planning.views import ViewPlan
from pixelrefer_fast.regions import as_regions
from pixelrefer_fast.segmenting import Segmenter, marked_by


def bind_request(
    kind: str,
    segmenter: Segmenter,
    media: Media,
    source: FrameSource,
    regions: object,
    options: EncodeOptions,
    first_region: int = 0,
) -> Request:
    """Regions bound to opened media.

    Args:
        kind: the model's, "lite" or "full".
        segmenter: makes the masks of regions that are given as points.
        media: what `media.open_media` returned.
        source: its frames.
        regions: anything `regions.as_regions` takes.
        options: which frames of a video PixelRefer sees whole.
        first_region: number of the first region in the caller's list.

    Raises:
        ValueError: naming the region, what was expected and what came.
    """
    marked = as_regions(regions)
    names = [f"region {number}" for number, _ in enumerate(marked, first_region)]
    marked = marked_by(segmenter, media, marked, names)
    frames = bind_regions(source, marked, first_region)
    if kind == "full":
        _check_frames(frames)
    whole = _whole_frames(media, options) if kind == "full" else []
    return Request(source, marked, frames, whole, first_region)


def plan_within(config: ModelConfig, request: Request, context: int) -> ViewPlan:
    """A request's views; one whose tokens overflow a context of so many ends before any mask is drawn.

    Raises:
        ValueError: naming the mark that cannot be planned, or too many marks.
    """
    least = request.num_marks * (config.mask_num if config.kind == "lite" else 1)
    if least >= context:
        raise ValueError(
            f"regions: expected fewer than {context} tokens in one request, got "
            f"{request.num_marks} marks that take at least {least}; ask about fewer, or describe them one by one"
        )
    plan = plan_request(config, request)
    for mark in plan.marks:
        if not mark.tokens:
            warnings.warn(f"{mark.name}: too small for this model, which sees no token of it", stacklevel=4)
    return plan


def _check_frames(frames: Sequence[tuple[int, ...]]) -> None:
    for i, own in enumerate(frames):
        if len(own) != 1:
            raise ValueError(f"region {i}: expected one marked frame (PixelRefer takes one mask), got {own}")


def _whole_frames(media: Media, options: EncodeOptions) -> list[int]:
    """The frames that the LLM of PixelRefer sees whole."""
    if not isinstance(media, Video):
        return [0]
    if options.frames is None:
        return media.sample(options.fps, options.max_frames)
    frames = plain_list(options.frames, "frames")
    if frames[-1] >= len(media):
        raise ValueError(f"frames: expected numbers from 0 to {len(media) - 1}, got {frames[-1]}")
    return frames
