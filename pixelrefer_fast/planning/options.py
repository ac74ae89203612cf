"""How to encode: the keyword options of `PixelRefer` and `PixelReferLite` besides those of decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import pairwise
from typing import TypedDict, TypeVar

from pixelrefer_fast.checks.values import check_seed, is_finite_number, is_integer, plain_list, shown

_T = TypeVar("_T")
_U = TypeVar("_U")


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
        if self.fps is not None and not (is_finite_number(self.fps) and self.fps > 0):
            raise ValueError(f"fps: expected a number above 0 or None, got {shown(self.fps)}")
        if not is_integer(self.max_frames) or self.max_frames < 1:
            raise ValueError(f"max_frames: expected an integer of at least 1, got {shown(self.max_frames)}")
        if self.frames is not None:
            frames = plain_list(self.frames, "frames")
            rising = all(is_integer(f) and f >= 0 for f in frames) and all(a < b for a, b in pairwise(frames))
            if not frames or not rising:
                raise ValueError(f"frames: expected rising numbers of frames, got {shown(frames)}")


class EncodeKeywords(TypedDict, total=False):
    """`EncodeOptions` as keywords, for type checkers."""

    kmeans_start: Sequence[Sequence[int] | None] | None
    kmeans_seed: int | None
    fps: float | None
    max_frames: int
    frames: Sequence[int] | None


def read_options(options: Mapping[str, object], kind: type[_T]) -> _T:
    """The dataclass `kind` from keyword options, all of which are its fields (else ValueError)."""
    _check_known(options, kind)
    return kind(**options)


def split_options(options: Mapping[str, object], first: type[_T], second: type[_U]) -> tuple[_T, _U]:
    """Two dataclasses from the keyword options of both; one that neither has is a ValueError."""
    _check_known(options, first, second)
    return first(**_own(options, first)), second(**_own(options, second))


def _check_known(options: Mapping[str, object], *kinds: type) -> None:
    known = {name for kind in kinds for name in _names(kind)}
    unknown = [name for name in options if name not in known]
    if unknown:
        for kind in kinds:
            for name, where in getattr(kind, "elsewhere", {}).items():
                if name in unknown:
                    raise ValueError(f"{name}: no option of this engine; {where}")
        raise ValueError(
            f"options: expected some of {', '.join(sorted(known))}, got {shown(unknown)}{_near(unknown, known)}"
        )


def _near(unknown: Iterable[str], known: Iterable[str]) -> str:
    """What may have been meant."""
    near = {best for name in unknown for best in get_close_matches(str(name), list(known), 1)}
    return f"; did you mean {' and '.join(sorted(near))}?" if near else ""


def _own(options: Mapping[str, object], kind: type) -> dict[str, object]:
    return {name: options[name] for name in _names(kind) if name in options}


def _names(kind: type) -> list[str]:
    return [own.name for own in fields(kind)]
