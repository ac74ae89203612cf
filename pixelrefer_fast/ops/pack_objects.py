"""Resized masks to ragged lists of selected patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from pixelrefer_fast.ops._check import check_dtype, check_shape
from pixelrefer_fast.ops._registry import register_op


class PackedObjects(NamedTuple):
    """The selected patches of all objects, one object after the other, each in raster order."""

    cell: torch.Tensor  # (S,) int64: position in the packed mask grids
    row: torch.Tensor  # (S,) int64: row in the object's own grid
    column: torch.Tensor  # (S,) int64
    offsets: torch.Tensor  # (M + 1,) int64: object i's patches are offsets[i]:offsets[i + 1]


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for shapes in ([(3, 5), (1, 1), (7, 2)], [(1, 1)], [], [(16, 16)] * 9):
        cells = sum(h * w for h, w in shapes)
        grid = torch.rand(cells, generator=generator)
        yield grid * (grid > 0.5), torch.tensor(shapes, dtype=torch.int64).reshape(-1, 2)
    yield torch.zeros(6), torch.tensor([[2, 3]])


@register_op(
    source="reference model/region_encoder.py MaskPooling; paper section 4.2.1 (equation 3)",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
)
def pack_objects(mask_grids: torch.Tensor, grid_shapes: torch.Tensor) -> PackedObjects:
    """List the cells whose resized mask is above zero.

    Args:
        mask_grids: (cells,) float32, the masks at patch resolution, flattened in raster order, one after the other.
        grid_shapes: (M, 2) int64, (rows, columns) of each grid.

    Returns:
        PackedObjects.

    Raises:
        ValueError: the shapes do not add up to the number of cells.
    """
    check_shape("pack_objects", "mask_grids", mask_grids, None)
    check_shape("pack_objects", "grid_shapes", grid_shapes, None, 2)
    check_dtype("pack_objects", "grid_shapes", grid_shapes, torch.int64)
    sizes = grid_shapes.prod(1)
    if int(sizes.sum()) != len(mask_grids):
        raise ValueError(f"pack_objects: expected {int(sizes.sum())} cells for these shapes, got {len(mask_grids)}")
    first = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)])
    index = torch.nonzero(mask_grids > 0).flatten()
    owner = torch.searchsorted(first, index, right=True) - 1
    inside = index - first[owner]
    columns = grid_shapes[owner, 1]
    counts = torch.bincount(owner, minlength=len(grid_shapes))
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return PackedObjects(index, inside // columns, inside % columns, offsets)
