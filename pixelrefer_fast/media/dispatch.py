"""Opens images and videos: paths, bytes, PIL images, arrays, folders of frames -> pixels and presentation times."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pixelrefer_fast.checks.values import shown
from pixelrefer_fast.media.images import (
    ANIMATED_FORMATS,
    NotAnImage,
    describe_source,
    load_image,
    open_pil,
    rgb_of_pil,
    shown_path,
)
from pixelrefer_fast.media.video import (
    BACKENDS,
    Animation,
    FrameSequence,
    Video,
    VideoFile,
    frame_files,
)

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts"),
    *(".mpg", ".mpeg", ".flv", ".ogv", ".wmv", ".asf", ".3gp"),
)


def open_media(
    source: Any, *, times: Sequence[float] | None = None, fps: float | None = None, backend: str = "pyav"
) -> np.ndarray | Video:
    """Open an image or a video.

    A video is a video file (path or bytes), an animated GIF, WebP, PNG or AVIF, a folder of frames (image files in
    natural order of their names), a list or tuple of images, an array of shape (T, H, W, C) or (T, C, H, W), or a
    `Video`, which is returned unchanged. Everything else is opened by `load_image`. A list or tuple is always a video,
    even with one frame.

    Args:
        source: the image or video.
        times: presentation times in seconds, strictly increasing, one per frame. Only for videos without times of their
            own (folders, lists, arrays); ValueError for any other source.
        fps: frames per second, instead of `times` and for the same videos. Without either they play at
            `FRAME_SEQUENCE_FPS`, as the reference's folders of frames do (mm_utils.load_video_from_ids).
        backend: "pyav" or "torchcodec", the decoder of video files.

    Returns:
        An image as (H, W, 3) uint8 RGB, or a `Video`.

    Raises:
        ValueError: the source is neither an image nor a video, is damaged, has no frames, or exceeds `MAX_PIXELS` or
            `MAX_FRAMES`. The message names the source.
        ImportError: torchcodec is requested but not installed.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {shown(backend)}")
    if isinstance(source, Video) and times is None and fps is None:
        return source
    frames = frame_sources(source)
    if frames is not None:
        return FrameSequence(*frames, times=times, fps=fps)
    if times is not None or fps is not None:
        raise ValueError("times, fps: expected only with a folder, list or array of frames, got them with other media")
    if not isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)):
        return load_image(source)
    source = bytes(source) if isinstance(source, (bytearray, memoryview)) else source
    if not isinstance(source, bytes) and os.fspath(source).lower().endswith(VIDEO_SUFFIXES):
        return VideoFile(source, backend=backend)
    label = describe_source(source)
    try:
        image = open_pil(source, label)
    except NotAnImage as error:
        try:
            return VideoFile(source, backend=backend)
        except ValueError as video_error:
            raise ValueError(f"{error}; nor is it a video: {video_error}") from None
    with image:
        if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
            return Animation(source)
        return rgb_of_pil(image, label)


def frame_sources(source: Any) -> tuple[Any, str] | None:
    """The undecoded frames and a name for them if `source` is a folder, list or array of frames, else None."""
    if isinstance(source, (str, os.PathLike)):
        try:
            is_folder = stat.S_ISDIR(os.stat(source).st_mode)
        except (OSError, ValueError):  # the reader that opens it says what is wrong
            return None
        return (frame_files(source), f"folder {shown_path(source)}") if is_folder else None
    if isinstance(source, (list, tuple)):
        return source, f"list of {len(source)} frames"
    if isinstance(source, (np.ndarray, torch.Tensor)) and source.ndim == 4:
        return source, f"array of shape {tuple(source.shape)}"
    return None
