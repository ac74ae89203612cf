"""Requests about different images and videos -> one plan of views over one source of frames.

One packed pass serves all of them; frames and views that several requests share are in it once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pixelrefer_fast.checkpoint.config import ModelConfig
from pixelrefer_fast.ops.view_patches import BLACK
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.views import ViewPlan, plan_views


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
    return merge(requests, [plan_request(config, request) for request in requests])


def plan_request(config: ModelConfig, request: Request) -> ViewPlan:
    """The views of one request.

    Raises:
        ValueError: naming the mark that cannot be planned.
    """
    source = request.source
    scene_merge = config.spatial_merge_size if source.video else 1
    return plan_views(config, source.sizes, request.marks(), request.num_marks, request.scene, scene_merge)


def merge(requests: Sequence[Request], plans: Sequence[ViewPlan], with_scene: Sequence[bool] | None = None) -> Joint:
    """Plans of single requests as one: views that several of them need are in it once.

    Args:
        requests: of any images and videos; those with one and the same `FrameSource` object share its frames.
        plans: of each.
        with_scene: whether the views of a request's scene are wanted; None: all are.
    """
    sources = list({id(r.source): r.source for r in requests}.values())
    first: dict[int, int] = {}
    frames = 0
    for source in sources:
        first[id(source)] = frames
        frames += len(source.sizes)
    merged = ViewPlan()
    parts = []
    wanted = with_scene or [True] * len(requests)
    for request, plan, whole in zip(requests, plans, wanted, strict=True):
        offset = first[id(request.source)]
        places: dict[int, int] = {}

        def place(number: int, plan: ViewPlan = plan, places: dict[int, int] = places, offset: int = offset) -> int:
            if number not in places:
                view = plan.views[number]
                places[number] = merged.add(view if view.image == BLACK else replace(view, image=view.image + offset))
            return places[number]

        scene = tuple(place(v) for v in plan.scene) if whole else ()
        merged.scene += scene
        start = len(merged.marks)
        for mark in plan.marks:
            merged.marks.append(
                replace(
                    mark,
                    image=mark.image + offset,
                    crop=place(mark.crop),
                    global_view=None if mark.global_view is None else place(mark.global_view),
                    local_view=None if mark.local_view is None else place(mark.local_view),
                )
            )
        parts.append(Part(range(start, len(merged.marks)), scene))
    return Joint(merged, together(sources, list(first.values())), tuple(parts))


def together(sources: Sequence[FrameSource], first: Sequence[int]) -> FrameSource:
    """All frames of the sources, numbered from `first` on each; they are read source by source, in the order asked."""
    bounds = [*first, sum(len(s.sizes) for s in sources)]

    def owner_of(number: int) -> int:
        return next(i for i in range(len(sources)) if bounds[i] <= number < bounds[i + 1])

    def read(numbers: Sequence[int]) -> Iterator[np.ndarray]:
        start = 0
        while start < len(numbers):
            owner = owner_of(numbers[start])
            stop = start
            while stop < len(numbers) and bounds[owner] <= numbers[stop] < bounds[owner + 1]:
                stop += 1
            yield from sources[owner].read([n - bounds[owner] for n in numbers[start:stop]])
            start = stop

    def held(number: int) -> np.ndarray | None:
        owner = owner_of(number)
        return sources[owner].held(number - bounds[owner])

    return FrameSource(None, [size for s in sources for size in s.sizes], None, read, held)
