"""view_patches at the plans of real requests: pixels of crops, local, global and whole views, packed."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from _case import Arguments, Case, moved

from pixelrefer_fast.config import ModelConfig, VisionConfig
from pixelrefer_fast.ops.view_patches import pack_pixels
from pixelrefer_fast.views import Mark, ViewPlan, plan_views

MAX_LENGTH = 16384  # the pixel budget of the released models, in patches


def cases() -> Iterator[Case]:
    yield _case("Full, 1 object of 60x80", "full", 1, (60, 80), smoke=True)
    yield _case("Lite, 1 object of 480x640", "lite", 1, (480, 640))
    yield _case("Lite, 8 objects of 1080x1920", "lite", 8, (1080, 1920))
    yield _case("Lite, 64 objects of 1080x1920, context views under a budget", "lite", 64, (1080, 1920))
    yield _case("Full, 8 objects of 20 frames of 480x854", "full", 8, (480, 854), frames=20)


def _case(name: str, kind: str, objects: int, size: tuple[int, int], frames: int = 1, smoke: bool = False) -> Case:
    plan = _plan(kind, objects, size, frames)
    arguments = functools.partial(_arguments, plan, size, frames)
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


def _plan(kind: str, objects: int, size: tuple[int, int], frames: int) -> ViewPlan:
    """Boxes of all sizes from an eighth to a half of the frame's sides."""
    config = ModelConfig(
        "full" if kind == "full" else "lite", VisionConfig(1152, 27, 16, 4304), {}, 32, MAX_LENGTH, 2, {}
    )
    rng = np.random.default_rng(0)
    marks = []
    for i in range(objects):
        height, width = (int(rng.integers(side // 8, side // 2)) for side in size)
        top, left = (int(rng.integers(0, side - own)) for side, own in zip(size, (height, width), strict=True))
        mask = np.zeros(size, dtype=np.uint8)
        mask[top : top + height, left : left + width] = 1
        marks.append(Mark(i % frames, mask, f"object {i}"))
    scene = range(frames) if kind == "full" else []
    return plan_views(config, [size] * frames, marks, objects, scene=scene, scene_merge=2 if frames > 1 else 1)


def _arguments(
    plan: ViewPlan, size: tuple[int, int], frames: int, device: torch.device, dtype: torch.dtype
) -> Arguments:
    rng = np.random.default_rng(1)
    pixels, images = pack_pixels([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(frames)])
    first = plan.first_rows
    return (*(t.to(device) for t in (pixels, images, plan.table(), torch.tensor(first))), first[-1])


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
