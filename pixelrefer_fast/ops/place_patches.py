"""Selected patches to the feature rows that they read, and their places in the image."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch

from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_shape
from pixelrefer_fast.ops._extension import available, declines, out_variant
from pixelrefer_fast.ops._registry import register_op

# columns of the table: the first patch of the mark's crop among all, the crop's grid, the mask's grid, the box as the
# position term takes it, the image's size
COLUMNS = 11
FIRST_PATCH, ROWS, WIDTH, MASK_ROWS, MASK_COLUMNS, BOX0, BOX1, BOX2, BOX3, IMAGE_HEIGHT, IMAGE_WIDTH = range(COLUMNS)


class PlacedPatches(NamedTuple):
    """What each selected patch reads; slots that no mark has read `nowhere`, with no weight, at (0, 0)."""

    patch: torch.Tensor  # (S, corners) int64, among the packed ones
    weights: torch.Tensor  # (S, corners) float32
    positions: torch.Tensor  # (S, 2) float32, (x, y) relative to the whole image


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    def case(marks: list[tuple[int, int, int, int]], spare: int, corners: int) -> tuple:
        rows, columns, table, offsets, first = [], [], [], [0], 7
        for down, across, mask_down, mask_across in marks:
            chosen = torch.rand(mask_down * mask_across, generator=generator).gt(0.4).nonzero().flatten()
            rows.append(chosen // mask_across)
            columns.append(chosen % mask_across)
            offsets.append(offsets[-1] + len(chosen))
            table.append((first, down, across, mask_down, mask_across, 3, 5, 3 + 9 * down, 5 + 11 * across, 480, 641))
            first += down * across
        packed = [torch.cat([*part, torch.full((spare,), -1)]).int() for part in (rows, columns)]
        named = torch.tensor(table, dtype=torch.int64).reshape(-1, COLUMNS)
        return *packed, torch.tensor(offsets), named, corners, first

    same = [(4, 6, 4, 6), (1, 1, 1, 1), (7, 3, 7, 3)]
    yield case(same, 5, 1)
    yield case(same, 0, 4)
    yield case([(4, 6, 9, 11), (3, 3, 3, 3), (1, 2, 6, 5)], 3, 4)
    yield case([], 0, 1)
    yield case([], 2, 4)


@register_op(
    source="reference model/region_encoder.py MaskPooling and its position term; paper section 4.2.1 (equations 3, 4)",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
    static=("corners",),
)
def place_patches(
    row: torch.Tensor, column: torch.Tensor, offsets: torch.Tensor, table: torch.Tensor, corners: int, nowhere: int
) -> PlacedPatches:
    """Find each selected patch among the packed ones.

    Where a crop's grid is coarser than its mask's, a patch reads four (bilinear, half-pixel centres, as torch's
    interpolate weighs them), else one.

    Args:
        row, column: (S,) int32 in the mark's mask grid, as `pack_objects` gives them.
        offsets: (M + 1,) int64, patches of each mark.
        table: (M, 11) int64, a row a mark (the columns above).
        corners: 4, or 1 where the grids of all marks are those of their crops.
        nowhere: what slots from offsets[-1] on read.

    Returns:
        PlacedPatches.

    Raises:
        ValueError: wrong shapes, dtypes or numbers.
    """
    slots = torch.arange(len(row), device=row.device)
    owner = torch.searchsorted(offsets[1:].contiguous(), slots, right=True)
    # the slots behind the last mark's read a mark of one patch
    marks = torch.cat([table, table.new_ones(1, COLUMNS)])[owner]
    there = owner < len(table)
    first, rows, columns, mask_rows, mask_columns = marks[:, :BOX0].unbind(1)
    if corners == 1:
        index = (first + row * columns + column)[:, None]
        weights = torch.ones(len(row), 1, device=row.device)
        positions = _positions(row, column, marks)
    else:
        low_row, high_row, row_weight = _neighbours(row, mask_rows, rows)
        low_column, high_column, column_weight = _neighbours(column, mask_columns, columns)
        pairs = [(low_row, low_column), (low_row, high_column), (high_row, low_column), (high_row, high_column)]
        index = torch.stack([first + r * columns + c for r, c in pairs], dim=1)
        by_row, by_column = (1 - row_weight, row_weight), (1 - column_weight, column_weight)
        weights = torch.stack([r * c for r in by_row for c in by_column], dim=1)
        positions = _positions(*pairs[0], marks) * weights[:, :1]
        for corner in range(1, 4):
            positions = positions + _positions(*pairs[corner], marks) * weights[:, corner : corner + 1]
    return PlacedPatches(
        torch.where(there[:, None], index, nowhere),
        torch.where(there[:, None], weights, 0.0),
        torch.where(there[:, None], positions, 0.0),
    )


def _neighbours(place: torch.Tensor, size: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Lower and upper source place and the upper one's weight, for half-pixel centres."""
    scale = source.float() / size.float()
    at = (scale * (place.float() + 0.5) - 0.5).clamp(min=0)
    low = at.long()
    high = torch.minimum(low + 1, source - 1)
    return low, high, at - low


def _positions(row: torch.Tensor, column: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """(S, 2) float32 (x, y) of patches, relative to the whole image (paper equation 4).

    As trained, the box's rows lie on the x axis and its columns on the y axis. A side of one pixel has no extent: its
    divisor, which the reference leaves at zero, is one.
    """
    rows, columns = marks[:, ROWS].float(), marks[:, WIDTH].float()
    box0, box1, box2, box3, height, width = marks[:, BOX0:].float().unbind(1)
    x = (column / columns * (box2 - box0) + box0) / (width - 1).clamp(min=1)
    y = (row / rows * (box3 - box1) + box1) / (height - 1).clamp(min=1)
    return torch.stack([x, y], dim=1)


@place_patches.check
def _check(
    row: torch.Tensor, column: torch.Tensor, offsets: torch.Tensor, table: torch.Tensor, corners: int, nowhere: int
) -> None:
    check_shape("place_patches", "row", row, None)
    check_shape("place_patches", "column", column, len(row))
    check_shape("place_patches", "table", table, None, COLUMNS)
    check_shape("place_patches", "offsets", offsets, len(table) + 1)
    for name, tensor in (("row", row), ("column", column)):
        check_dtype("place_patches", name, tensor, torch.int32)
    for name, tensor in (("offsets", offsets), ("table", table)):
        check_dtype("place_patches", name, tensor, torch.int64)
    check_device("place_patches", row.device, column=column, offsets=offsets, table=table)
    check_count("place_patches", "nowhere", nowhere)
    check_count("place_patches", "corners", corners)
    if corners not in (1, 4):
        raise ValueError(f"place_patches: expected corners, 1 or 4, got {corners}")
    if offsets.device.type == "cpu":
        values = offsets.tolist()
        if values[0] != 0 or any(b < a for a, b in pairwise(values)):
            raise ValueError(f"place_patches: expected offsets from 0 that never fall, got {str(values)[:80]}")


@place_patches.fake
def _fake(row: torch.Tensor, corners: int) -> PlacedPatches:
    slots = len(row)
    patch = row.new_empty((slots, corners), dtype=torch.int64)
    weights, positions = (row.new_empty((slots, width), dtype=torch.float32) for width in (corners, 2))
    return PlacedPatches(patch, weights, positions)


_place_patches_out = out_variant(
    "place_patches_out(Tensor row, Tensor column, Tensor offsets, Tensor table, int nowhere, Tensor(a!) patch, "
    "Tensor(b!) weights, Tensor(c!) positions) -> ()"
)


@place_patches.provider("cuda", devices=("cpu", "cuda"), available=available, accepts=lambda row: declines(row))
def _extension(
    row: torch.Tensor, column: torch.Tensor, offsets: torch.Tensor, table: torch.Tensor, corners: int, nowhere: int
) -> PlacedPatches:
    placed = _fake(row, corners)
    _place_patches_out(
        row.contiguous(), column.contiguous(), offsets.contiguous(), table.contiguous(), nowhere, *placed
    )
    return placed
