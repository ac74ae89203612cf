"""mask_grids on the masks of 1 to 4,096 objects: boxes of 320 by 300 pixels to grids of 16 by 17 patches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case
from pixelrefer_fast.ops.mask_grids import COLUMNS

CELLS = makers.CELLS[0] * makers.CELLS[1]


def cases() -> Iterator[Case]:
    yield _case(3, smoke=True)
    for objects in (1, 16, 256, 4096):
        yield _case(objects)


def _case(objects: int, smoke: bool = False) -> Case:
    return Case(
        "mask_grids",
        f"{objects:,} object{'s' * (objects > 1)} of {makers.CELLS[0]} by {makers.CELLS[1]} patches",
        functools.partial(makers.mask_grids, objects=objects),
        flops=0,
        # four bits of a byte each, and the table, in; the cells out
        moved=lambda dtype: objects * (8 * CELLS + 8 * COLUMNS),
        dtypes=(torch.float32,),
        smoke=smoke,
    )
