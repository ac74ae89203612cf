"""Video files: an index of their frames made from packets, and decoders that use it. Imports PyAV."""

from __future__ import annotations

import io
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import av
import numpy as np

from pixelrefer_fast.checks.values import MAX_PIXELS, check_size
from pixelrefer_fast.media.images import regular_file

# Containers that hold their frames themselves. Playlists (HLS, DASH, concat) name other files and addresses, and
# FFmpeg recognises them by content whatever the file is called.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,h264,hevc,flv,ogg,asf,ivf,rm,mxf"
# Packets and frames do not correspond: VP8 has packets of frames that are never shown
HIDDEN_FRAME_CODECS = ("vp8",)
# Seeking restarts the decoder; decoding through fewer frames than this is cheaper
SEEK_GAIN = 8
# Seconds; rounding in float64 is far below, the time between frames far above
CLOCK_TOLERANCE = 1e-5


@dataclass(frozen=True)
class FrameIndex:
    """The frames of one stream in presentation order.

    Attributes:
        pts: of each frame, in units of the stream's time base. None if they do not identify frames (missing or
            repeated); such streams are decoded from their start, counting frames.
        keyframes: numbers of the frames where decoding can start, increasing, always including 0.
        times: seconds from frame 0.
        start: time of frame 0 on the file's own clock, in seconds.
    """

    pts: list[int] | None
    keyframes: list[int]
    times: list[float]
    start: float
    average_fps: float

    def keyframe_before(self, frame: int) -> int:
        return self.keyframes[bisect_right(self.keyframes, frame) - 1]


@contextmanager
def ffmpeg_errors(label: str) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        if isinstance(error, MemoryError) and not has_memory():  # a damaged size looks the same
            raise
        raise ValueError(
            f"{label}: expected a complete video file, FFmpeg cannot read it: {error.strerror or error}"
        ) from None


def has_memory() -> bool:
    """Whether a quarter of a GiB is to be had: then FFmpeg failed for more than a frame takes."""
    try:
        np.empty(1 << 28, np.uint8)
    except MemoryError:
        return False
    return True


@contextmanager
def opened(source: str | os.PathLike[str] | bytes, label: str) -> Iterator[tuple[Any, Any]]:
    """The container and its video stream, not yet decoding."""
    # The prefix keeps FFmpeg from taking a file name for a protocol ("concat:...")
    file: Any = io.BytesIO(source) if isinstance(source, bytes) else f"file:{os.path.abspath(regular_file(source))}"
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    with ffmpeg_errors(label), av.open(file, options=options, metadata_errors="replace") as container:
        yield container, video_stream(container, label)


def video_stream(container: Any, label: str) -> Any:
    streams = [
        stream
        for stream in container.streams.video
        if stream.codec_context is not None and not stream.disposition & av.stream.Disposition.attached_pic
    ]
    if not streams:
        raise ValueError(f"{label}: expected a video stream that can be decoded, the file has none")
    stream = streams[0]
    if stream.width and stream.height:
        check_size(stream.height, stream.width, label)
    stream.thread_type = "AUTO"
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
    return stream


def build_index(source: str | os.PathLike[str] | bytes, label: str, max_frames: int) -> FrameIndex:
    """Read every packet (only frame 0 is decoded), or decode the whole file if the packets do not say enough."""
    with opened(source, label) as (container, stream):
        time_base, header_rate = stream.time_base, stream.average_rate
        packets_tell = stream.codec_context.name not in HIDDEN_FRAME_CODECS
        entries = list(packet_entries(container, stream, label, max_frames)) if packets_tell else []
    if packets_tell:
        with opened(source, label) as (container, stream):
            first = next(container.decode(stream), None)
        # A recording that starts between keyframes has packets that give no frames
        packets_tell = identify_frames(entries) and first is not None and first.pts == min(entries)[0]
    if not packets_tell:
        with opened(source, label) as (container, stream):
            entries = []
            for frame in container.decode(stream):
                entries.append((frame.pts, frame.key_frame))
                check_count(len(entries), label, max_frames)
    if not entries:
        raise ValueError(f"{label}: expected at least one frame, the video stream has none")
    identified = identify_frames(entries)
    if identified:
        entries.sort()
    times, average_fps = frame_times([pts for pts, _ in entries], time_base, header_rate)
    keyframes = [number for number, (_, is_key) in enumerate(entries) if is_key]
    return FrameIndex(
        pts=[pts for pts, _ in entries] if identified else None,
        keyframes=sorted({0, *keyframes}) if identified else [0],
        times=times,
        start=float(entries[0][0] * time_base) if identified else 0.0,
        average_fps=average_fps,
    )


def packet_entries(container: Any, stream: Any, label: str, max_frames: int) -> Iterator[tuple[int, bool]]:
    """(pts, is keyframe) of every packet that gives a frame, in decoding order."""
    is_mov = container.format.name.startswith("mov")
    packets = 0
    for packet in container.demux(stream):
        if packet.size == 0:  # the end
            continue
        packets += 1
        check_count(packets, label, max_frames)
        # Transport streams recover from damaged packets; in an MP4 one means that the file ends too early
        if is_mov and packet.is_corrupt:
            raise ValueError(f"{label}: expected a complete video file, it ends within frame {packets - 1}")
        if not packet.is_discard:  # outside the edit list
            yield packet.pts, packet.is_keyframe
    if is_mov and packets < len(stream.index_entries):
        listed = len(stream.index_entries)
        raise ValueError(f"{label}: expected a complete video file, it ends after {packets} of {listed} frames")


def check_count(count: int, label: str, max_frames: int) -> None:
    if count > max_frames:
        raise ValueError(f"{label}: expected at most {max_frames} frames, got more")


def identify_frames(entries: list[tuple[int, bool]]) -> bool:
    """Whether every entry has a pts of its own."""
    stamps = {pts for pts, _ in entries}
    return len(stamps) == len(entries) > 0 and None not in stamps


def frame_times(stamps: list[int | None], time_base: Any, header_rate: Any) -> tuple[list[float], float]:
    """Seconds from the first frame, correctly rounded, and the average rate, for pts in presentation order."""
    count = len(stamps)
    known = [pts for pts in stamps if pts is not None]
    span = (known[-1] - known[0]) * time_base if len(known) == count and known == sorted(known) else 0
    if span <= 0:
        rate = float(header_rate) if header_rate else 1.0
        return [number / rate for number in range(count)], rate
    first, numerator, denominator = known[0], time_base.numerator, time_base.denominator
    times = [(pts - first) * numerator / denominator for pts in known]
    measured = float((count - 1) / span)
    # The header's rate counts the last frame's duration, so it is the better average; some muxers write nonsense
    sound = header_rate and abs(float(header_rate) / measured - 1) < 0.1
    return times, float(header_rate) if sound else measured


def pyav_frames(
    source: str | os.PathLike[str] | bytes, index: FrameIndex, numbers: list[int], label: str
) -> Iterator[np.ndarray]:
    """The frames with these numbers, in this order, (H, W, 3) uint8 RGB."""
    with ExitStack() as stack:
        reader = FrameReader(source, index, label, stack)
        pixels, shown = np.empty(0, np.uint8), -1
        for number, following in zip_longest(numbers, numbers[1:]):
            if number != shown:
                pixels, shown = upright_rgb(reader.frame(number)), number
            # The caller may write into what it gets, so a frame that is asked for again is kept apart
            yield pixels.copy() if number == following else pixels


class FrameReader:
    """A decoder that moves to the requested frames: forward if they are near, else from the keyframe before."""

    def __init__(self, source: str | os.PathLike[str] | bytes, index: FrameIndex, label: str, stack: ExitStack) -> None:
        self._source, self._index, self._label, self._stack = source, index, label, stack
        self._go_to(0)

    def frame(self, number: int) -> Any:
        with ffmpeg_errors(f"{self._label}, frame {number}"):
            start = self._index.keyframe_before(number)
            if number < self._next or start - self._next > SEEK_GAIN:
                self._go_to(start)
            # Demuxers seek by decoding time, and not all exactly: some land behind the frame. A keyframe earlier
            # settles that; from the very start nothing is missed.
            for earlier in (self._index.keyframe_before(max(start - 1, 0)), 0):
                frame = self._advance(number)
                if frame is not None:
                    return frame
                self._go_to(earlier)
            frame = self._advance(number)
        if frame is None:
            raise ValueError(f"{self._label}: expected {len(self._index.times)} frames, frame {number} is damaged")
        return frame

    def _go_to(self, keyframe: int) -> None:
        if keyframe == 0:
            self._stack.close()
            self._container, self._stream = self._stack.enter_context(opened(self._source, self._label))
        else:
            assert self._index.pts is not None  # else frame 0 is the only keyframe
            self._container.seek(self._index.pts[keyframe], stream=self._stream)
        self._frames = self._container.decode(self._stream)
        self._next = keyframe

    def _advance(self, number: int) -> Any | None:
        """Decode up to the frame; None if it does not come."""
        for frame in self._frames:
            current = self._number_of(frame)
            if current is not None:
                self._next = current + 1
                if current >= number:
                    return frame if current == number else None
        self._next = len(self._index.times)
        return None

    def _number_of(self, frame: Any) -> int | None:
        stamps = self._index.pts
        if stamps is None:
            return self._next
        number = bisect_left(stamps, frame.pts) if frame.pts is not None else len(stamps)
        return number if number < len(stamps) and stamps[number] == frame.pts else None


def upright_rgb(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turns, mirrored = orientation(frame)
    upright = np.rot90(pixels, turns)
    return np.ascontiguousarray(upright[:, ::-1] if mirrored else upright)


def orientation(frame: Any) -> tuple[int, bool]:
    """Quarter turns counterclockwise, and whether left and right change places after them.

    From a frame's display matrix, [a, b, u, c, d, v, x, y, w], by which (p, q) is shown at (ap + cq, bp + dq). One that
    maps the picture to a line or a point says nothing.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None or len(bytes(matrix)) != 36:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).astype(float)
    if a * d == b * c:
        return 0, False
    mirrored = a * d < b * c
    if mirrored:
        a, c = -a, -c
    angle = np.degrees(np.arctan2(b / np.hypot(b, d), a / np.hypot(a, c)))
    return round(-angle / 90) % 4, mirrored


def torchcodec_frames(
    source: str | os.PathLike[str] | bytes, index: FrameIndex, numbers: list[int], label: str
) -> Iterator[np.ndarray]:
    """Like `pyav_frames`. The index is still PyAV's, so frames have the same numbers and times with both decoders.

    In some containers (MPEG-TS among them) torchcodec seeks inexactly and returns another frame than the one asked for;
    its time shows that, and a ValueError is raised.
    """
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, OSError, RuntimeError) as error:  # absent, or without the FFmpeg libraries it needs
        raise ImportError(
            f'backend "torchcodec" cannot be imported (pip install "pixelrefer-fast[video]", FFmpeg): '
            f"{next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    try:
        decoder = VideoDecoder(
            source if isinstance(source, bytes) else os.fspath(source), dimension_order="NHWC", seek_mode="exact"
        )
    except MemoryError:  # says nothing about the file
        raise
    except Exception as error:
        raise ValueError(f"{label}: expected a complete video file, torchcodec cannot read it: {error}") from None
    if len(decoder) != len(index.times):
        raise ValueError(f"{label}: expected {len(index.times)} frames, torchcodec finds {len(decoder)}")
    if index.pts is None:
        raise ValueError(f"{label}: expected frames with times of their own for torchcodec; backend pyav counts them")
    for number in numbers:
        try:
            frame = decoder.get_frame_at(number)
        except MemoryError:  # says nothing about the file
            raise
        except Exception as error:
            raise ValueError(f"{label}, frame {number}: torchcodec cannot decode it: {error}") from None
        found = frame.pts_seconds - index.start
        if abs(found - index.times[number]) > CLOCK_TOLERANCE:
            raise ValueError(
                f"{label}, frame {number}: expected the frame at {index.times[number]:.6f} s, torchcodec returned "
                f"the one at {found:.6f} s; backend pyav seeks exactly"
            )
        yield frame.data.numpy()
