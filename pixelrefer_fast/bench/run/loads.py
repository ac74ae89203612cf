"""What is asked in benchmarks of whole questions: one object, many, a video, a batch, and the points of the curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE, DESCRIBE_VIDEO
from pixelrefer_fast.bench.run import workloads
from pixelrefer_fast.bench.run.askers import BenchRequest
from pixelrefer_fast.checkpoint.config import GLOBAL_VIEW
from pixelrefer_fast.media import open_media

Size = tuple[int, int]  # height, width
FRAMES = 20  # of the video, as in the paper's tables
BATCH = 64
# 1,408 patches, and in a video of 20 frames 7,040 vision tokens: nearly those of the paper's table 5
PAPER_PICTURE: Size = (448, 616)
HD_PICTURE: Size = (1080, 1920)
SMALL_PICTURE: Size = (168, 168)  # the embedded models' world


@dataclass(frozen=True, eq=False)
class Load:
    """What one call is asked.

    Attributes:
        case: in words.
        requests: all asked at once.
        sizes: objects, frames, marked, height, width, batch.
        batch_size: requests that may run together; None: as the library thinks best.
    """

    case: str
    requests: Sequence[BenchRequest]
    sizes: dict[str, int]
    batch_size: int | None = None

    @property
    def together(self) -> BenchRequest | None:
        """All regions as one question's, where they are of one image or video: what is encoded in one call."""
        first = self.requests[0]
        if any(r.media is not first.media for r in self.requests):
            return None
        return BenchRequest(first.media, first.question, [region for r in self.requests for region in r.regions])


def ellipses(count: int, height: int, width: int, seed: int = 0) -> list[np.ndarray]:
    """(H, W) uint8 masks, each wholly inside the picture and of a tenth to a fifth of its sides from centre to edge."""
    random = np.random.default_rng(seed)
    masks = []
    y, x = np.arange(height)[:, None], np.arange(width)[None]
    for _ in range(count):
        ry, rx = random.uniform(0.1, 0.2) * height, random.uniform(0.1, 0.2) * width
        cy, cx = random.uniform(ry, height - ry), random.uniform(rx, width - rx)
        masks.append((((y + 0.5 - cy) / ry) ** 2 + ((x + 0.5 - cx) / rx) ** 2 <= 1).astype(np.uint8))
    return masks


def image_load(case: str, size: Size, objects: int = 1, seed: int = 0) -> Load:
    """So many objects of one image, each described by itself."""
    picture = workloads.picture(*size, seed)
    requests = [BenchRequest(picture, DESCRIBE_IMAGE, [mask]) for mask in ellipses(objects, *size, seed)]
    return Load(case, requests, _sizes(size, objects=objects))


def video_load(case: str, size: Size, frames: int, kind: str, marked: int | None = None) -> Load:
    """One object of a video, which moves; marked in so many frames (None: in all, by PixelRefer in one)."""
    # a frame a second: Full, which takes as many of a video, sees all of them
    pictures = open_media(list(workloads.video(frames, *size, 0)), times=[float(i) for i in range(frames)])
    count = 1 if kind == "full" else frames if marked is None else marked
    mask = ellipses(1, *size)[0]
    chosen = [frames // 2] if count == 1 else [round(i * (frames - 1) / (count - 1)) for i in range(count)]
    own = {frame: np.roll(mask, 2 * (frame - frames // 2), axis=1) for frame in chosen}
    request = BenchRequest(pictures, DESCRIBE_VIDEO, [own])
    return Load(case, [request], _sizes(size, frames=frames, marked=count))


def batch_load(case: str, size: Size, batch: int) -> Load:
    """So many images, one object each, all at once."""
    requests = [BenchRequest(workloads.picture(*size, i), DESCRIBE_IMAGE, ellipses(1, *size, i)) for i in range(batch)]
    return Load(case, requests, _sizes(size, objects=batch, batch=batch), batch)


def _sizes(size: Size, objects: int = 1, frames: int = 1, marked: int = 1, batch: int = 1) -> dict[str, int]:
    named = {"objects": objects, "frames": frames, "marked": marked, "height": size[0], "width": size[1]}
    return named | {"batch": batch}


def pictures_of(config: Any) -> tuple[Size, Size]:
    """Sizes of pictures for a model: (one that is large for it, one as in the paper's tables)."""
    released = config.global_view_size == GLOBAL_VIEW
    return (HD_PICTURE, PAPER_PICTURE) if released else (SMALL_PICTURE, SMALL_PICTURE)


def case_loads(model: Any) -> Iterator[Load]:
    """The whole cases, each made when its turn comes."""
    large, usual = pictures_of(model.config)
    yield image_load("one object", large)
    yield image_load("8 objects of one image", large, 8)
    yield video_load(f"{FRAMES}-frame video", usual, FRAMES, model.kind)
    yield batch_load(f"batch of {BATCH}", usual, BATCH)


CASES = 4


def curve_load(model: Any, curve: str, value: int) -> Load:
    """One point of a curve."""
    _, usual = pictures_of(model.config)
    case = f"{curve} {value}"
    if curve == "objects":
        return image_load(case, usual, value)
    if curve == "frames":
        return video_load(case, usual, value, model.kind)
    if curve == "side":
        return image_load(case, (value, value))
    if curve == "n":
        return image_load(case, usual)
    return batch_load(case, usual, value)
