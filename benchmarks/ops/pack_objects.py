"""pack_objects on the masks of 1 to 4,096 objects: crops of 16 by 17 patches, of which about half are selected."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from _case import Arguments, Case, Rivals

ROWS, COLUMNS = 16, 17
CELLS = ROWS * COLUMNS


def cases() -> Iterator[Case]:
    yield _case(3, smoke=True)
    for objects in (1, 16, 256, 4096):
        yield _case(objects)


def _case(objects: int, smoke: bool = False) -> Case:
    selected = int((_masks(objects) > 0).sum())
    return Case(
        "pack_objects",
        f"{objects:,} object{'s' * (objects > 1)} of {ROWS} by {COLUMNS} patches",
        functools.partial(_arguments, objects),
        flops=0,
        # masks and shapes in; cell, row and column of each selected patch, counts and offsets out
        moved=lambda dtype: 4 * objects * CELLS + 16 * objects + 16 * selected + 16 * objects + 8,
        dtypes=(torch.float32,),
        smoke=smoke,
        rivals=_rivals,
    )


def _masks(objects: int) -> torch.Tensor:
    return torch.rand(objects * CELLS, generator=torch.Generator().manual_seed(0)) - 0.5


def _arguments(objects: int, device: torch.device, dtype: torch.dtype) -> Arguments:
    masks = _masks(objects)
    shapes = torch.tensor([[ROWS, COLUMNS]] * objects)
    return masks.to(device), shapes.to(device), int((masks > 0).sum())


def _rivals(arguments: Arguments) -> Rivals:
    """As the reference does it: a loop over objects, boolean indexing, one wait each."""
    masks, shapes, _ = arguments

    def loop() -> list[torch.Tensor]:
        found = []
        start = 0
        for rows, columns in shapes.tolist():
            grid = masks[start : start + rows * columns].view(rows, columns)
            found.append(torch.nonzero(grid > 0))
            start += rows * columns
        return found

    rivals: dict[str, Callable[[], object]] = {"a loop over objects": loop}
    return rivals
