"""pack_objects on the masks of 1 to 4,096 objects: crops of 16 by 17 patches, of which about half are selected."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Arguments, Case, Rival

ROWS, COLUMNS = makers.CELLS
CELLS = ROWS * COLUMNS


def cases() -> Iterator[Case]:
    yield _case(3, smoke=True)
    for objects in (1, 16, 256, 4096):
        yield _case(objects)


def _case(objects: int, smoke: bool = False) -> Case:
    arguments = functools.partial(makers.pack_objects, objects=objects)
    *_, selected = arguments(torch.device("cpu"), torch.float32)
    return Case(
        "pack_objects",
        f"{objects:,} object{'s' * (objects > 1)} of {ROWS} by {COLUMNS} patches",
        arguments,
        flops=0,
        # masks and shapes in; cell, row and column of each selected patch, counts and offsets out
        moved=lambda dtype: 4 * objects * CELLS + 16 * objects + 16 * selected + 16 * objects + 8,
        dtypes=(torch.float32,),
        smoke=smoke,
        rivals={"a loop over objects": _loop},
    )


def _loop(arguments: Arguments) -> Rival:
    """As the reference does it: a loop over objects, boolean indexing, one wait each."""
    masks, shapes, _ = arguments

    def run() -> list[torch.Tensor]:
        found = []
        start = 0
        for rows, columns in shapes.tolist():
            grid = masks[start : start + rows * columns].view(rows, columns)
            found.append(torch.nonzero(grid > 0))
            start += rows * columns
        return found

    def results(found: list[torch.Tensor]) -> list[torch.Tensor | None]:
        row, column = torch.cat(found).int().unbind(1)
        return [None, row, column, torch.tensor(list(map(len, found)), device=masks.device), None]

    return Rival(run, results, "without cells and offsets")
