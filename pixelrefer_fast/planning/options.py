"""How to encode: the keyword options of `PixelRefer` and `PixelReferLite` besides those of decoding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from pixelrefer_fast.checks.values import check_seed, is_integer, is_number, plain_list, shown


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode.

    Args:
        kmeans_start: first centroids, one entry a mark (ranks among its selected patches; None: the default).
        kmeans_seed: draw them at random as the reference does; default: evenly spaced ranks.
        fps, max_frames: how the frames of a video that the Full model sees whole are chosen.
        frames: those frames themselves, by number and increasing, instead of choosing.
    """

    kmeans_start: Sequence[Sequence[int] | None] | None = None
    kmeans_seed: int | None = None
    fps: float | None = 1.0
    max_frames: int = 768
    frames: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.kmeans_start is not None and not isinstance(self.kmeans_start, (list, tuple)):
            raise ValueError(f"kmeans_start: expected a list with an entry a mark, got {shown(self.kmeans_start)}")
        check_seed("kmeans_seed", self.kmeans_seed)
        if self.fps is not None and not (is_number(self.fps) and 0 < self.fps < math.inf):
            raise ValueError(f"fps: expected a number above 0 or None, got {shown(self.fps)}")
        if not is_integer(self.max_frames) or self.max_frames < 1:
            raise ValueError(f"max_frames: expected an integer of at least 1, got {shown(self.max_frames)}")
        if self.frames is not None:
            frames = plain_list(self.frames, "frames")
            rising = all(is_integer(f) and f >= 0 for f in frames) and all(a < b for a, b in pairwise(frames))
            if not frames or not rising:
                raise ValueError(f"frames: expected rising numbers of frames, got {shown(frames)}")


def split_options(options: dict[str, Any], *kinds: type) -> tuple[Any, Any]:
    """Sort keyword options into the dataclasses that have them."""
    known = {f.name: kind for kind in kinds for f in fields(kind)}
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"options: expected some of {sorted(known)}, got {unknown}")
    built = [kind(**{k: v for k, v in options.items() if known[k] is kind}) for kind in kinds]
    return built[0], built[-1]
