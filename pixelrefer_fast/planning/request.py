"""What a caller asks about: regions bound to the pixels they mark."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from weakref import WeakValueDictionary

import numpy as np

from pixelrefer_fast.media import Video
from pixelrefer_fast.planning.views import Mark
from pixelrefer_fast.regions import Region

REGION_TAG = "<region>"  # in a question, one for each region
REGION_TOKEN = "<REGION>"  # in a prompt, one for each object token


@dataclass(frozen=True)
class ObjectTokens:
    """How one object is written: its number of tokens per mark and, in a Lite video, each mark's time in seconds."""

    counts: tuple[int, ...]
    times: tuple[float, ...] | None = None

    def text(self) -> str:
        if self.times is None:
            return f"[{REGION_TOKEN * sum(self.counts)}]"
        parts = (f"Time {round(t, 1)}:{REGION_TOKEN * count}" for t, count in zip(self.times, self.counts, strict=True))
        return f"[{','.join(parts)}]"


@dataclass(frozen=True)
class FrameSource:
    """Images or frames by number, read only when asked for.

    Attributes:
        name: the path it was read from, if any.
        sizes: (height, width) of each.
        times: seconds of each frame of a video, None for images.
        read: frames by number, in the order asked, (H, W, 3) uint8 each.
        held: a frame by its number where it lies in memory as it is, else None.
        digests: of frames' content, by number, as far as anybody has asked; None: it is not known.
        ahead: frames of a video that were decoded before they are asked for, while somebody keeps them.
    """

    name: str | None
    sizes: Sequence[tuple[int, int]]
    times: Sequence[float] | None
    read: Callable[[Sequence[int]], Iterator[np.ndarray]]
    held: Callable[[int], np.ndarray | None] = lambda number: None
    digests: dict[int, bytes | None] = field(default_factory=dict, compare=False, repr=False)
    ahead: MutableMapping[int, np.ndarray] = field(default_factory=WeakValueDictionary, compare=False, repr=False)

    @classmethod
    def of(cls, media: np.ndarray | Video, name: str | None = None) -> FrameSource:
        """Of what `media.open_media` returns."""
        if isinstance(media, Video):
            ahead: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()
            sizes = [(media.height, media.width)] * len(media)
            return cls(name, sizes, media.times, partial(_read, media, ahead), ahead=ahead)
        return cls.of_images([media], name=name)

    @classmethod
    def of_images(
        cls, images: Sequence[np.ndarray], times: Sequence[float] | None = None, name: str | None = None
    ) -> FrameSource:
        """Of images or frames in memory."""
        sizes = [i.shape[:2] for i in images]
        return cls(name, sizes, times, lambda numbers: (images[n] for n in numbers), images.__getitem__)

    @property
    def video(self) -> bool:
        return self.times is not None


def _read(video: Video, ahead: MutableMapping[int, np.ndarray], numbers: Sequence[int]) -> Iterator[np.ndarray]:
    """Frames of a video, those ahead as they are."""
    found = [ahead.get(n) for n in numbers]
    others = video.read([n for n, frame in zip(numbers, found, strict=True) if frame is None])
    for frame in found:
        if frame is None:
            yield from islice(others, 1)
        else:
            yield frame


@dataclass(frozen=True)
class Request:
    """One request: the regions, the frames in which each is marked, and the frames that the LLM sees whole."""

    source: FrameSource
    regions: Sequence[Region]
    frames: Sequence[tuple[int, ...]]  # of each region
    scene: Sequence[int]  # Full only
    first_region: int = 0  # number of the first region in the caller's list

    @property
    def num_marks(self) -> int:
        return sum(map(len, self.frames))

    def marks(self) -> Iterator[Mark]:
        """The masks one by one, drawn when looked at, each in its bounding box; those that lie on a device stay there.

        Raises:
            ValueError: a region that does not fit its pixels, by its number in the caller's list.
        """
        for i, (region, frames) in enumerate(zip(self.regions, self.frames, strict=True), self.first_region):
            for frame in frames:
                name = f"region {i}, frame {frame}" if self.source.video else f"region {i}"
                bound = frame if self.source.video else None
                yield Mark(frame, region.drawn(*self.source.sizes[frame], bound, name=name), name)

    def single(self, i: int) -> Request:
        """Region i as a request of its own."""
        return Request(self.source, [self.regions[i]], [self.frames[i]], self.scene, self.first_region + i)

    def object_tokens(self, counts: Sequence[int]) -> tuple[ObjectTokens, ...]:
        """How the objects are written, from the tokens of each mark; timed where an object may have several marks."""
        left = iter(counts)
        times = self.source.times
        return tuple(
            ObjectTokens(
                tuple(next(left) for _ in frames),
                None if times is None or len(self.scene) else tuple(times[f] for f in frames),
            )
            for frames in self.frames
        )


def bind_regions(source: FrameSource, regions: Sequence[Region], first_region: int = 0) -> list[tuple[int, ...]]:
    """The frames of each region, checked against the source; (0,) for an image.

    Args:
        source: the image or video.
        regions: what is marked.
        first_region: number of the first of them in the caller's list.

    Raises:
        ValueError: naming the region, what was expected and what came.
    """
    if not regions:
        raise ValueError("regions: expected at least one, got none")
    frames: list[tuple[int, ...]] = []
    for i, region in enumerate(regions, first_region):
        if source.times is None:
            if region.frames is not None:
                raise ValueError(f"region {i}: expected a region of an image, got one bound to frames {region.frames}")
            frames.append((0,))
            continue
        if region.frames is None:
            raise ValueError(
                f"region {i}: expected a mapping from frame to region for a video, got a {region.kind} without a frame"
            )
        for frame in region.frames:
            if not 0 <= frame < len(source.sizes):
                raise ValueError(f"region {i}: expected frames from 0 to {len(source.sizes) - 1}, got {frame}")
        frames.append(region.frames)
    return frames
