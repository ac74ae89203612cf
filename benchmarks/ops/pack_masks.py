"""pack_masks on masks of a 1080p image, as a segmenter leaves them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

HEIGHT, WIDTH = 1080, 1920


def cases() -> Iterator[Case]:
    yield _case(1, 90, 160, smoke=True)
    for objects in (1, 16, 64):
        yield _case(objects, HEIGHT, WIDTH)


def _case(objects: int, height: int, width: int, smoke: bool = False) -> Case:
    return Case(
        "pack_masks",
        f"{objects} mask{'s' * (objects > 1)} of {width} by {height} pixels",
        functools.partial(makers.pack_masks, objects=objects, height=height, width=width),
        flops=0,
        # masks and cuts in; bits, and eight numbers of each mask, out
        moved=lambda dtype: objects * (height * width + 4 + height * -(-width // 8) + 64),
        dtypes=(torch.float32,),
        smoke=smoke,
    )
