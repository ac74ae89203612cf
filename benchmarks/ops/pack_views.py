"""pack_views on the encoder's sequences of 1 to 4,096 objects: a crop and two context views each, merged 2 by 2."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

PATCHES = sum(rows * columns for rows, columns, _ in makers.VIEWS)


def cases() -> Iterator[Case]:
    yield _case(2, smoke=True)
    for objects in (1, 16, 256, 4096):
        yield _case(objects)


def _case(objects: int, smoke: bool = False) -> Case:
    views = objects * len(makers.VIEWS)
    return Case(
        "pack_views",
        f"{objects:,} object{'s' * (objects > 1)}: {views:,} views, {objects * PATCHES:,} patches",
        functools.partial(makers.pack_views, objects=objects),
        flops=0,
        # the grids in; row, column and sequence of each patch, and the bounds out
        moved=lambda dtype: 24 * views + 12 * objects * PATCHES + 4 * (views + 2),
        dtypes=(torch.float32,),
        smoke=smoke,
    )
