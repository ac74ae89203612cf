"""Requests about different images and videos -> one plan of views over one source of frames.

One packed pass serves all of them; frames and views that several requests share are in it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pixelrefer_fast.config import ModelConfig
from pixelrefer_fast.request import FrameSource, Request
from pixelrefer_fast.views import Mark, ViewPlan, plan_views


@dataclass(frozen=True)
class Part:
    """Where one request lies in a joint plan."""

    marks: range  # its marks
    scene: tuple[int, ...]  # Full: its scene's views, in order


@dataclass(frozen=True)
class Joint:
    """One plan for several requests.

    Attributes:
        plan: the views of all requests; images are numbered as in `source`.
        source: the frames of all requests, each source's once and one after the other.
        parts: of each request.
    """

    plan: ViewPlan
    source: FrameSource
    parts: tuple[Part, ...]


def join(config: ModelConfig, requests: Sequence[Request]) -> Joint:
    """Plan several requests together, each by the rules and the pixel budget of a request of its own.

    Args:
        config: the model's.
        requests: of any images and videos; those with one and the same `FrameSource` object share its frames.

    Raises:
        ValueError: naming the mark that cannot be planned (as the request's regions name it).
    """
    sources: dict[int, FrameSource] = {id(r.source): r.source for r in requests}
    first: dict[int, int] = {}
    frames = 0
    for key, own in sources.items():
        first[key] = frames
        frames += len(own.sizes)
    source = together(list(sources.values()), list(first.values()))
    plan = ViewPlan()
    parts = []
    for request in requests:
        offset = first[id(request.source)]
        scene, marks = len(plan.scene), len(plan.marks)
        plan_views(
            config,
            source.sizes,
            _marks(request, offset),
            request.num_marks,
            [offset + frame for frame in request.scene],
            config.spatial_merge_size if request.source.video else 1,
            into=plan,
        )
        parts.append(Part(range(marks, len(plan.marks)), tuple(plan.scene[scene:])))
    return Joint(plan, source, tuple(parts))


def _marks(request: Request, offset: int) -> Iterator[Mark]:
    return (replace(mark, image=mark.image + offset) for mark in request.marks())


def together(sources: Sequence[FrameSource], first: Sequence[int]) -> FrameSource:
    """All frames of the sources, numbered from `first` on each; they are read source by source, in the order asked."""
    bounds = [*first, sum(len(s.sizes) for s in sources)]

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        start = 0
        while start < len(numbers):
            owner = next(i for i in range(len(sources)) if bounds[i] <= numbers[start] < bounds[i + 1])
            stop = start
            while stop < len(numbers) and bounds[owner] <= numbers[stop] < bounds[owner + 1]:
                stop += 1
            yield from sources[owner].read([n - bounds[owner] for n in numbers[start:stop]])
            start = stop

    return FrameSource(None, [size for s in sources for size in s.sizes], None, read)
