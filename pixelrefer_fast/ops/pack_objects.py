"""Resized masks to ragged lists of selected patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from pixelrefer_fast.ops._check import INT32_MAX, check_count, check_device, check_dtype, check_shape
from pixelrefer_fast.ops._extension import available, declines, out_variant, scratch
from pixelrefer_fast.ops._registry import Reason, register_op


class PackedObjects(NamedTuple):
    """The selected patches of all objects, one object after the other, each in raster order.

    Entries from offsets[-1] on are -1. When more patches are selected than there is room for, the rest is left out, and
    counts and offsets still tell the true numbers.
    """

    cell: torch.Tensor  # (capacity,) int64: position in the packed mask grids
    row: torch.Tensor  # (capacity,) int32: row in the object's own grid
    column: torch.Tensor  # (capacity,) int32
    counts: torch.Tensor  # (M,) int64: selected patches of each object
    offsets: torch.Tensor  # (M + 1,) int64: object i's patches are offsets[i]:offsets[i + 1]


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for shapes, room in (([(3, 5), (1, 1), (7, 2)], 4), ([(1, 1)], 0), ([], 3), ([(16, 16)] * 9, -700)):
        cells = sum(h * w for h, w in shapes)
        grid = torch.rand(cells, generator=generator)
        yield grid * (grid > 0.5), torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2), cells + room
    yield torch.zeros(6), torch.tensor([[2, 3]]), 0


@register_op(
    source="reference model/region_encoder.py MaskPooling; paper section 4.2.1 (equation 3)",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
)
def pack_objects(mask_grids: torch.Tensor, grid_shapes: torch.Tensor, capacity: int) -> PackedObjects:
    """List the cells whose resized mask is above zero (NaN is not).

    Args:
        mask_grids: (cells,) float32, the masks at patch resolution, flattened in raster order, one after the other.
            Cells beyond those of the grids are not looked at.
        grid_shapes: (M, 2) int64, (rows, columns) of each grid.
        capacity: patches that there is room for.

    Returns:
        PackedObjects.

    Raises:
        ValueError: wrong shapes, dtypes or capacity; for tensors of the host also sides that are none and grids of more
            cells than there are. (On a device a negative side is none, and a cell that does not exist not selected.)
    """
    shapes = grid_shapes.clamp(min=0)
    first = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)])
    index = torch.nonzero(mask_grids[: int(first[-1])] > 0).flatten()
    owner = torch.searchsorted(first, index, right=True) - 1
    counts = torch.bincount(owner, minlength=len(shapes))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])

    inside, columns = index - first[owner], shapes[owner, 1]
    packed = index.new_full((3, capacity), -1)
    written = torch.stack([index, inside // columns, inside % columns])[:, :capacity]
    packed[:, : written.shape[1]] = written
    return PackedObjects(packed[0], packed[1].int(), packed[2].int(), counts, offsets)


@pack_objects.check
def _check(mask_grids: torch.Tensor, grid_shapes: torch.Tensor, capacity: int) -> None:
    check_shape("pack_objects", "mask_grids", mask_grids, None)
    check_shape("pack_objects", "grid_shapes", grid_shapes, None, 2)
    check_dtype("pack_objects", "grid_shapes", grid_shapes, torch.int64)
    check_device("pack_objects", mask_grids.device, grid_shapes=grid_shapes)
    check_count("pack_objects", "capacity", capacity)
    if grid_shapes.device.type == "cpu":
        low, high = (int(v) for v in grid_shapes.aminmax()) if len(grid_shapes) else (0, 0)
        if not 0 <= low <= high <= INT32_MAX:
            raise ValueError(f"pack_objects: expected sides from 0 to {INT32_MAX}, got {low} to {high}")
        cells = int(grid_shapes.double().prod(1).sum())  # int64 may overflow
        if cells > len(mask_grids):
            raise ValueError(f"pack_objects: expected {cells} cells or more for these shapes, got {len(mask_grids)}")


@pack_objects.fake
def _fake(mask_grids: torch.Tensor, grid_shapes: torch.Tensor, capacity: int) -> PackedObjects:
    cell, counts, offsets = (grid_shapes.new_empty(n) for n in (capacity, len(grid_shapes), len(grid_shapes) + 1))
    row, column = (grid_shapes.new_empty(capacity, dtype=torch.int32) for _ in range(2))
    return PackedObjects(cell, row, column, counts, offsets)


_pack_objects_out = out_variant(
    "pack_objects_out(Tensor mask_grids, Tensor grid_shapes, Tensor(a!) cell, Tensor(b!) row, Tensor(c!) column, "
    "Tensor(d!) counts, Tensor(e!) offsets, Tensor(f!) scratch) -> ()"
)


def _accepts(mask_grids: torch.Tensor) -> Reason:
    if mask_grids.dtype != torch.float32:
        return f"mask_grids are {mask_grids.dtype}, the extension reads torch.float32"
    return declines(mask_grids)


@pack_objects.provider("cuda", devices=("cpu", "cuda"), available=available, accepts=_accepts)
def _extension(mask_grids: torch.Tensor, grid_shapes: torch.Tensor, capacity: int) -> PackedObjects:
    packed = _fake(mask_grids, grid_shapes, capacity)
    # a word for each object and for each block of 1024 objects or 2048 cells, and a few
    words = scratch(mask_grids, 8 + 2 * len(grid_shapes) + len(mask_grids) // 1024)
    _pack_objects_out(mask_grids.contiguous(), grid_shapes.contiguous(), *packed, words)
    return packed
