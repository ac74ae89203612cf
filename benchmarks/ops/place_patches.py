"""place_patches on what pack_objects gives of 1 to 4,096 objects of 16 by 17 patches, half of them selected."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case
from pixelrefer_fast.ops.place_patches import COLUMNS


def cases() -> Iterator[Case]:
    yield _case(3, smoke=True)
    for objects in (1, 16, 256, 4096):
        yield _case(objects)


def _case(objects: int, smoke: bool = False) -> Case:
    arguments = functools.partial(makers.place_patches, objects=objects)
    slots = len(arguments(torch.device("cpu"), torch.float32)[0])
    return Case(
        "place_patches",
        f"{objects:,} object{'s' * (objects > 1)} of {makers.CELLS[0]} by {makers.CELLS[1]} patches",
        arguments,
        flops=0,
        # row and column of each slot, offsets and the table in; patch, weight and position out
        moved=lambda dtype: slots * (8 + 8 + 4 + 8) + 8 * (objects + 1) + 8 * COLUMNS * objects,
        dtypes=(torch.float32,),
        smoke=smoke,
    )
