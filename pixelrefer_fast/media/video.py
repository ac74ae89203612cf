"""Random access to the frames of a video by their number, with exact presentation times."""

from __future__ import annotations

import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pixelrefer_fast.checks.values import is_integer, is_number, plain_list, reason_of, shown
from pixelrefer_fast.media.completeness import Incomplete, count_gif_frames, declares_length, size_of
from pixelrefer_fast.media.images import describe_source, load_image, open_pil, rgb_of_pil, shown_path

MAX_FRAMES = 1_000_000
"""Most frames of one video: nine hours at 30 frames per second."""
MAX_ANIMATION_PIXELS = 1 << 28
"""Most pixels of all frames of an animation together: ten seconds of decoding. Larger files may have more."""
PIXELS_PER_BYTE = 256  # that a large animation may have; videos of a single colour have more, real ones a tenth
FRAME_SEQUENCE_FPS = 3.0
"""Rate of frames without times, as the reference assumes for folders of frames (mm_utils.load_video_from_ids)."""
BACKENDS = ("pyav", "torchcodec")

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".pgm")
FPS_RANGE = "a number of frames per second in 1e-6..1e6"
MAX_SECONDS = 1e12
# What browsers take for a frame of a GIF that claims to last no time
DEFAULT_FRAME_MILLISECONDS = 100.0


class Video(ABC):
    """The frames of one video. Frame n is the n-th in presentation order.

    Attributes:
        label: name of the video in messages.
        height, width: size of every frame in pixels, after rotation.
        times: presentation time of every frame in seconds from the first frame. Strictly increasing for undamaged
            files; as given for frames with times.
        average_fps: frames per second over the whole video.
    """

    label: str
    height: int
    width: int
    times: list[float]
    average_fps: float

    def __len__(self) -> int:
        return len(self.times)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label}: {len(self)} frames of {self.height}x{self.width}>"

    def read(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decode frames in the order of `indices`, repetitions included; each frame is decoded when the iterator
        reaches it.

        Iterators of one video are independent of each other.

        Args:
            indices: frame numbers.

        Returns:
            An iterator of (H, W, 3) uint8 RGB arrays.

        Raises:
            ValueError: at once for an index that is not an integer in 0..len-1; while iterating for a frame that cannot
                be decoded.
        """
        return self._decode(
            [self._frame_number(index) for index in plain_list(indices, f"{self.label}, frame numbers")]
        )

    def sample(self, fps: float | None = 1.0, max_frames: int = 768) -> list[int]:
        """Choose frame numbers that represent the whole video, in increasing order.

        Follows the reference (mm_utils.load_video_from_ids, frame_sample): if the video lasts less than `max_frames`
        seconds, the middle frame of every floor(average_fps / fps) frames; otherwise `max_frames` frames evenly spaced
        from first to last. Unlike the reference, it never returns more than `max_frames`: if the first rule would, the
        second is used.

        Args:
            fps: frames per second to choose. None, or a rate above the video's own: the second rule.
            max_frames: most frames to choose; all frames if the video has no more.

        Raises:
            ValueError: `fps` or `max_frames` is out of range.
        """
        if not is_integer(max_frames) or max_frames < 1:
            raise ValueError(f"max_frames: expected a positive integer, got {shown(max_frames)}")
        if fps is not None and not is_rate(fps):
            raise ValueError(f"fps: expected {FPS_RANGE} or None, got {shown(fps)}")
        count = len(self)
        if fps is not None and count / self.average_fps < max_frames:
            step = int(min(self.average_fps // fps, count))
            if step > 0 and len(chosen := range(step // 2, count, step)) <= max_frames:
                return list(chosen)
        if count <= max_frames:
            return list(range(count))
        return np.linspace(0, count - 1, max_frames, dtype=int).tolist()

    def _frame_number(self, index: int) -> int:
        if not is_integer(index):
            raise ValueError(f"{self.label}: expected frame numbers that are integers, got {shown(index)}")
        if not 0 <= index < len(self):
            raise ValueError(f"{self.label}: expected frames 0 to {len(self) - 1}, got frame {shown(index)}")
        return int(index)

    def _check_frame(self, frame: np.ndarray, index: int) -> np.ndarray:
        if frame.shape[:2] != (self.height, self.width):
            raise ValueError(
                f"{self.label}, frame {index}: expected a size of {self.height}x{self.width} (that of frame 0), "
                f"got {frame.shape[0]}x{frame.shape[1]}"
            )
        return frame

    @abstractmethod
    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]: ...


class FrameSequence(Video):
    """A video of separate images: paths, bytes, PIL images or arrays. Opening decodes frame 0 only."""

    def __init__(
        self, frames: Sequence[Any], label: str, times: Sequence[float] | None = None, fps: float | None = None
    ) -> None:
        self.label = label
        self._frames = frames
        count = len(frames)
        if not 1 <= count <= MAX_FRAMES:
            raise ValueError(f"{label}: expected 1 to {MAX_FRAMES} frames, got {count}")
        if times is not None and fps is not None:
            raise ValueError(f"{label}: expected times or fps, got both")
        if times is not None:
            self.times = checked_times(times, count, label)
            span = self.times[-1] - self.times[0]
            self.average_fps = (count - 1) / span if count > 1 else FRAME_SEQUENCE_FPS
        else:
            if fps is not None and not is_rate(fps):
                raise ValueError(f"{label}: expected an fps that is {FPS_RANGE}, got {shown(fps)}")
            self.average_fps = FRAME_SEQUENCE_FPS if fps is None else float(fps)
            self.times = [index / self.average_fps for index in range(count)]
        self.height, self.width = self._load(0).shape[:2]

    def _load(self, index: int) -> np.ndarray:
        try:
            return load_image(self._frames[index])
        except ValueError as error:
            raise ValueError(f"{self.label}, frame {index}: {error}") from None

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        return (self._check_frame(self._load(index), index) for index in indices)


class Animation(Video):
    """An animated GIF, WebP, PNG or AVIF (path or bytes) with its own frame durations."""

    def __init__(self, source: str | os.PathLike[str] | bytes) -> None:
        self.label = f"animation {describe_source(source)}"
        self._source = source
        milliseconds = [0.0]
        with open_pil(source, self.label) as image:
            try:
                # Pillow counts the frames of a GIF by reading it anew for each
                count = count_gif_frames(source) if image.format == "GIF" else getattr(image, "n_frames", 1)
                if count > MAX_FRAMES:
                    raise ValueError(f"expected at most {MAX_FRAMES} frames, got {count}")
                # each frame is decoded on the way to those behind it
                room = max(MAX_ANIMATION_PIXELS, PIXELS_PER_BYTE * size_of(source))
                if count * image.height * image.width > room:
                    raise ValueError(
                        f"expected at most {room} pixels in all frames of a file of {size_of(source)} bytes, "
                        f"got {count} frames of {image.height}x{image.width}"
                    )
                for index in range(count):
                    image.seek(index)
                    # Some formats know a frame's duration only once its pixels are decoded
                    if image.format != "GIF":
                        image.load()
                    duration = float(image.info.get("duration") or 0)
                    milliseconds.append(milliseconds[-1] + (duration if duration > 0 else DEFAULT_FRAME_MILLISECONDS))
            except MemoryError:  # says nothing about the file
                raise
            except Exception as error:  # Pillow's readers raise many kinds on damaged data
                raise ValueError(f"{self.label}: its frames cannot be read: {reason_of(error)}") from None
        self.times = [moment / 1000 for moment in milliseconds[:-1]]
        self.average_fps = 1000 * count / milliseconds[-1]
        self.height, self.width = next(self._frames([0])).shape[:2]

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        return (self._check_frame(frame, index) for index, frame in zip(indices, self._frames(indices), strict=True))

    def _frames(self, indices: list[int]) -> Iterator[np.ndarray]:
        with open_pil(self._source, self.label) as image:
            for index in indices:
                try:
                    image.seek(index)
                except MemoryError:  # says nothing about the file
                    raise
                except Exception as error:
                    raise ValueError(f"{self.label}, frame {index}: cannot be decoded: {reason_of(error)}") from None
                yield rgb_of_pil(image, f"{self.label}, frame {index}")


class VideoFile(Video):
    """A video file (path or bytes). Its packets are indexed on opening; frames are decoded when they are read.

    Rotation metadata is applied; non-square pixels are left as stored. `times` are exact: (pts - pts of frame 0) times
    the stream's time base. Only video containers are read, and no file or address that they refer to is opened.
    """

    def __init__(self, source: str | os.PathLike[str] | bytes, backend: str = "pyav") -> None:
        # PyAV takes a tenth of a second to import
        from pixelrefer_fast.media import video_file

        self.label = f"video {describe_source(source)}"
        self._source = source
        self._index = video_file.build_index(source, self.label, MAX_FRAMES)
        try:
            if not declares_length(source):
                warnings.warn(
                    f"{self.label}: its container does not say how long it is; it has {len(self._index.times)} frames, "
                    "fewer than were recorded if it was cut",
                    stacklevel=3,
                )
        except Incomplete as error:
            raise ValueError(f"{self.label}: expected a complete video file, {error}") from None
        self.times = self._index.times
        self.average_fps = self._index.average_fps
        self._decode_frames = video_file.torchcodec_frames if backend == "torchcodec" else video_file.pyav_frames
        self.height, self.width = next(self._decode_frames(source, self._index, [0], self.label)).shape[:2]

    def _decode(self, indices: list[int]) -> Iterator[np.ndarray]:
        frames = self._decode_frames(self._source, self._index, indices, self.label)
        return (self._check_frame(frame, index) for index, frame in zip(indices, frames, strict=True))


def frame_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The image files of a folder, hidden ones left out, in natural order of their names (frame2 before frame10)."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise ValueError(f"folder {shown_path(folder)}: cannot be read: {reason_of(error)}") from None
    names = [name for name in names if name.lower().endswith(FRAME_SUFFIXES)]
    return [Path(folder, name) for name in sorted(names, key=natural_key)]


def natural_key(name: str) -> tuple[list[str | int], str]:
    # The split alternates text and digits, so equal places always compare like with like. [0-9]: \d matches digits of
    # other scripts as well.
    parts: list[str | int] = list(re.split(r"([0-9]+)", name))
    parts[1::2] = [int(digits) for digits in parts[1::2]]
    return parts, name


def checked_times(times: Sequence[float], count: int, label: str) -> list[float]:
    values = plain_list(times, f"{label}, times")
    if len(values) != count:
        raise ValueError(f"{label}: expected {count} times, one per frame, got {len(values)}")
    previous = -1.0
    for index, value in enumerate(values):
        if not is_number(value) or not 0 <= value <= MAX_SECONDS or value <= previous:
            raise ValueError(
                f"{label}: expected times in seconds, strictly increasing in 0..{MAX_SECONDS:g}, "
                f"got {shown(value)} for frame {index}"
            )
        previous = values[index] = float(value)
    return values


def is_rate(value: Any) -> bool:
    return is_number(value) and 1e-6 <= value <= 1e6


Media = np.ndarray | Video
"""What `open_media` gives: an image (H, W, 3) uint8, or a video."""
