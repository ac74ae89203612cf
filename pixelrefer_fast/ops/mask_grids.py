"""Packed masks to their grids at patch resolution."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_shape
from pixelrefer_fast.ops._extension import available, declines, out_variant
from pixelrefer_fast.ops._registry import register_op

# columns of the table: where the mask's cells and bits begin, bits from one row of the window to the next; the window
# that the bits cover, outside of which nothing is marked; the crop that is resized; the grid; bits of the weights
# of each pass where passes round (`weight_bits`), else 0
COLUMNS = 15
(
    FIRST_CELL, FIRST_BIT, ROW_BITS, TOP, LEFT, ROWS, WIDTH, CROP_TOP, CROP_LEFT, CROP_BOTTOM, CROP_RIGHT, GRID_ROWS,
    GRID_COLUMNS, DOWN_BITS, ACROSS_BITS,
) = range(COLUMNS)  # fmt: skip
MOST_SIDE = 2**30  # of windows and crops
MOST_GRID_SIDE = 2**20
MOST_BITS = 15


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    masks = [  # window, crop, grid, spare bits of a row
        ((3, 5, 20, 30), (0, 1, 25, 40), (4, 6), 0),
        ((0, 0, 9, 9), (0, 0, 9, 9), (3, 3), 7),
        ((2, 2, 1, 1), (0, 0, 4, 5), (12, 15), 7),
        ((0, 0, 0, 0), (0, 0, 0, 0), (1, 1), 0),
        ((7, 1, 31, 8), (8, 3, 30, 7), (22, 4), 3),
    ]
    for chosen in (masks, masks[:1], []):
        rows, cell, bit = [], 0, 5
        for (top, left, height, width), crop, (down, across), spare in chosen:
            rows.append((cell, bit, width + spare, top, left, height, width, *crop, down, across, 0, 0))
            cell, bit = cell + down * across, bit + height * (width + spare)
        bits = torch.randint(256, (bit // 8 + 1,), generator=generator, dtype=torch.uint8)
        table = torch.tensor(rows, dtype=torch.int64).reshape(-1, COLUMNS)
        yield bits, table, cell
        yield bits, table + torch.tensor([*[0] * DOWN_BITS, 14, 15]), cell


@register_op(
    source="reference mm_utils.py resize_image_mask (the mask at patch resolution)",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
)
def mask_grids(bits: torch.Tensor, table: torch.Tensor, cells: int) -> torch.Tensor:
    """Cut masks out of packed bits and resize them bilinearly: half-pixel centres, no antialias.

    All of it is in whole numbers: host and device agree to the last bit. A mask whose passes round gets cells of 0 and
    1, by the integer weights that torch takes for uint8 (PixelRefer). Of another a cell is the exact mean of its four
    pixels, rounded once (PixelRefer-Lite; OpenCV rounds the places too, by its build and the processor).

    Args:
        bits: (B,) uint8, the highest bit of a byte first.
        table: (M, 15) int64, a row a mask (the columns above); cells of the masks follow each other.
        cells: of all grids.

    Returns:
        (cells,) float32, the grids in raster order, one after the other.

    Raises:
        ValueError: wrong shapes or dtypes; for tensors of the host also masks outside the bits or the cells. (On a
            device bits that do not exist are 0.)
    """
    owner = torch.searchsorted(table[:, FIRST_CELL].contiguous(), torch.arange(cells, device=bits.device), right=True)
    mask = torch.cat([table.new_zeros(1, COLUMNS), table])[owner]
    inside = torch.arange(cells, device=bits.device) - mask[:, FIRST_CELL]
    grid_rows, grid_columns = mask[:, GRID_ROWS].clamp(min=1), mask[:, GRID_COLUMNS].clamp(min=1)
    crop_rows, crop_columns = mask[:, CROP_BOTTOM] - mask[:, CROP_TOP], mask[:, CROP_RIGHT] - mask[:, CROP_LEFT]
    low_row, down = _taps(inside // grid_columns, grid_rows, crop_rows)
    low_column, across = _taps(inside % grid_columns, grid_columns, crop_columns)

    def pixel(row: torch.Tensor, column: torch.Tensor) -> torch.Tensor:
        row, column = row + mask[:, CROP_TOP] - mask[:, TOP], column + mask[:, CROP_LEFT] - mask[:, LEFT]
        there = (row >= 0) & (row < mask[:, ROWS]) & (column >= 0) & (column < mask[:, WIDTH])
        place = mask[:, FIRST_BIT] + row * mask[:, ROW_BITS] + column
        there &= (place >= 0) & (place < 8 * len(bits))
        place = torch.where(there, place, 0)
        byte = torch.cat([bits, bits.new_zeros(1)])[place // 8].long()
        return torch.where(there, byte >> (7 - place % 8) & 1, 0)

    pixels = [[pixel(low_row + r, low_column + c) for c in range(2)] for r in range(2)]
    above, below = (low * (2 * grid_columns - across) + high * across for low, high in pixels)
    total = above * (2 * grid_rows - down) + below * down
    exact = (total.double() / (4 * grid_rows * grid_columns).double()).float()
    passed = [_rounded(low, high, across, grid_columns, mask[:, ACROSS_BITS]) for low, high in pixels]
    stepped = _rounded(passed[0], passed[1], down, grid_rows, mask[:, DOWN_BITS]).float()
    return torch.where(mask[:, DOWN_BITS] > 0, stepped, exact)


def _taps(place: torch.Tensor, size: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The lower of the two places that one reads, and the weight of the upper one, times 2 * size."""
    at = ((2 * place + 1) * source - size).clamp(min=0)
    low = at // (2 * size)
    inside = low < source - 1
    return torch.where(inside, low, (source - 1).clamp(min=0)), torch.where(inside, at % (2 * size), 0)


def weight_bits(size: int, source: int) -> int:
    """Bits of torch's integer weights that resize uint8 along one axis: as many as the largest leaves within 15."""
    for place in range(size):
        at = max((2 * place + 1) * source - size, 0)
        rest = 0 if at // (2 * size) >= source - 1 else at % (2 * size)
        if max(rest, 2 * size - rest) * 65536 >= 65535 * 2 * size:
            return 14
    return 15


def _rounded(
    low: torch.Tensor, high: torch.Tensor, rest: torch.Tensor, size: torch.Tensor, bits: torch.Tensor
) -> torch.Tensor:
    """A pass over two pixels of 0 and 1."""
    above = ((rest << bits) + size) // (2 * size)
    below = ((2 * size - rest << bits) + size) // (2 * size)
    return below * low + above * high + (1 << (bits - 1).clamp(min=0)) >> bits


@mask_grids.check
def _check(bits: torch.Tensor, table: torch.Tensor, cells: int) -> None:
    check_shape("mask_grids", "bits", bits, None)
    check_dtype("mask_grids", "bits", bits, torch.uint8)
    check_shape("mask_grids", "table", table, None, COLUMNS)
    check_dtype("mask_grids", "table", table, torch.int64)
    check_device("mask_grids", bits.device, table=table)
    check_count("mask_grids", "cells", cells)
    if table.device.type == "cpu":
        _check_table(len(bits), table.tolist(), cells)


def _check_table(size: int, table: list[list[int]], cells: int) -> None:
    first = 0
    for number, mask in enumerate(table):
        cell, bit, row_bits, _, _, rows, width, *crop, grid_rows, grid_columns, down, across = mask
        good = cell == first and 0 <= min(mask[TOP:DOWN_BITS]) <= max(mask[TOP:DOWN_BITS]) <= MOST_SIDE
        good = good and max(grid_rows, grid_columns) <= MOST_GRID_SIDE and crop[0] <= crop[2] and crop[1] <= crop[3]
        good = good and 0 <= min(down, across) <= max(down, across) <= MOST_BITS and (down > 0) == (across > 0)
        if good and rows and width:
            good = bit >= 0 and width <= row_bits <= 8 * MOST_SIDE and bit + (rows - 1) * row_bits + width <= 8 * size
        first += grid_rows * grid_columns
        if not good or first > cells:
            raise ValueError(
                f"mask_grids: expected masks within {size} bytes of bits and {cells} cells, got mask {number}, {mask}"
            )
    if first != cells:
        raise ValueError(f"mask_grids: expected {first} cells for these grids, got {cells}")


@mask_grids.fake
def _fake(bits: torch.Tensor, cells: int) -> torch.Tensor:
    return bits.new_empty(cells, dtype=torch.float32)


_mask_grids_out = out_variant("mask_grids_out(Tensor bits, Tensor table, Tensor(a!) cells) -> ()")


@mask_grids.provider("cuda", devices=("cpu", "cuda"), available=available, accepts=lambda bits: declines(bits))
def _extension(bits: torch.Tensor, table: torch.Tensor, cells: int) -> torch.Tensor:
    grids = _fake(bits, cells)
    _mask_grids_out(bits.contiguous(), table.contiguous(), grids)
    return grids
