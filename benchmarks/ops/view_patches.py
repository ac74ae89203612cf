"""view_patches at the plans of real requests: pixels of crops, local, global and whole views, packed."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case, moved
from pixelrefer_fast.planning.views import ViewPlan


def cases() -> Iterator[Case]:
    yield _case("Full, 1 object of 60x80", "full", 1, (60, 80), smoke=True)
    yield _case("Lite, 1 object of 480x640", "lite", 1, (480, 640))
    yield _case("Lite, 8 objects of 1080x1920", "lite", 8, (1080, 1920))
    yield _case("Lite, 64 objects of 1080x1920, context views under a budget", "lite", 64, (1080, 1920))
    yield _case("Full, 8 objects of 20 frames of 480x854", "full", 8, (480, 854), frames=20)


def _case(name: str, kind: str, objects: int, size: tuple[int, int], frames: int = 1, smoke: bool = False) -> Case:
    plan = makers.view_plan(kind, objects, size, frames)
    height, width = size
    arguments = functools.partial(
        makers.view_patches, kind=kind, objects=objects, height=height, width=width, frames=frames
    )
    *inputs, patches = arguments(torch.device("cpu"), torch.float32)
    total = moved(*inputs) + 4 * 588 * patches
    return Case(
        "view_patches",
        name,
        arguments,
        flops=_flops(plan),
        moved=lambda dtype: total,
        dtypes=(torch.float32,),
        smoke=smoke,
    )


def _flops(plan: ViewPlan) -> int:
    """A multiply-add for each pixel that a value is made of, pass by pass where passes are separate; normalising."""
    total = 0.0
    for v in plan.views:
        source, first, final = (
            (v.bottom - v.top, v.right - v.left),
            (v.height, v.width),
            (v.final_height, v.final_width),
        )
        if first != source:
            rows, columns = (max(2.0, a / b) for a, b in zip(source, first, strict=True))
            total += 2 * 3 * first[0] * first[1] * rows * columns
        if final != first:
            rows, columns = (4 * max(1.0, a / b) for a, b in zip(first, final, strict=True))
            total += 2 * 3 * (first[0] * final[1] * columns + final[0] * final[1] * rows)
        total += 2 * 3 * final[0] * final[1]
    return round(total)
