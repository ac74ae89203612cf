"""Grids of the encoded views to the places of a packed (varlen) sequence of patches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from pixelrefer_fast.ops._check import INT32_MAX, check_count, check_dtype, check_shape
from pixelrefer_fast.ops._extension import available, declines, out_variant, scratch
from pixelrefer_fast.ops._registry import register_op


class PackedViews(NamedTuple):
    """Where each packed patch lies; every view is a sequence of its own.

    Patches from cu_seqlens[-1] on are padding: row 0, column 0, sequence V. When the views have more patches than there
    is room for, the rest is left out, and cu_seqlens and longest still tell the true numbers.
    """

    row: torch.Tensor  # (patches,) int32: row in the view's own grid
    column: torch.Tensor  # (patches,) int32
    sequence: torch.Tensor  # (patches,) int32: the view
    cu_seqlens: torch.Tensor  # (V + 1,) int32: view i's patches are cu_seqlens[i]:cu_seqlens[i + 1]
    longest: torch.Tensor  # (1,) int32: patches of the largest view, 0 without views


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for grids, room in (([(4, 6, 2), (1, 1, 1), (3, 5, 1)], 7), ([(2, 2, 2)], -1), ([], 2), ([(16, 16, 1)] * 9, 0)):
        patches = sum(h * w for h, w, _ in grids)
        yield torch.tensor(grids, dtype=torch.int64).reshape(-1, 3), patches + room
    yield torch.zeros(0, 3, dtype=torch.int64), 0


@register_op(
    source="reference model/damovl_encoder/modeling_damovl_encoder.py rot_pos_emb and cu_seqlens",
    tolerance={torch.float32: 0.0, torch.float16: 0.0, torch.bfloat16: 0.0},
    samples=_samples,
)
def pack_views(grids: torch.Tensor, patches: int) -> PackedViews:
    """Row, column and sequence of every packed patch, and the bounds of the sequences.

    Args:
        grids: (V, 3) int64, (rows, columns, merge) of each view. Merge 1 means patches in raster order, merge 2 in
            (rows / 2, columns / 2, 2, 2) order; both sides are multiples of it.
        patches: patches that there is room for.

    Returns:
        PackedViews.

    Raises:
        ValueError: wrong shape or dtype, negative room; for tensors of the host also grids that are none, and more
            patches than int32 counts. (On a device such grids give places that mean nothing, and write nowhere else.)
    """
    ends = grids[:, :2].prod(1).cumsum(0)
    bounds = torch.cat([ends.new_zeros(1), ends])
    place = torch.arange(patches, device=grids.device)
    sequence = torch.searchsorted(ends, place, right=True)
    # patches of the padding read a view of one patch
    rows_columns_merge = torch.cat([grids, grids.new_ones(1, 3)])[sequence]
    columns, merge = rows_columns_merge[:, 1], rows_columns_merge[:, 2]
    inside = torch.where(sequence < len(grids), place - bounds[sequence], 0)
    block, within = inside // merge**2, inside % merge**2
    row = block // (columns // merge) * merge + within // merge
    column = block % (columns // merge) * merge + within % merge
    longest = bounds.diff(prepend=bounds[:1]).max().view(1)
    row, column, sequence, cu_seqlens, longest = (x.int() for x in (row, column, sequence, bounds, longest))
    return PackedViews(row, column, sequence, cu_seqlens, longest)


@pack_views.check
def _check(grids: torch.Tensor, patches: int) -> None:
    check_shape("pack_views", "grids", grids, None, 3)
    check_dtype("pack_views", "grids", grids, torch.int64)
    check_count("pack_views", "patches", patches)
    if grids.device.type == "cpu":
        sides, merge = grids[:, :2], grids[:, 2:]
        good = (sides >= 0) & (sides <= INT32_MAX) & (merge >= 1) & (merge <= 2) & (sides % merge.clamp(1, 2) == 0)
        if not good.all():
            i = int((~good).nonzero()[0, 0])
            raise ValueError(
                "pack_views: expected grids of (rows, columns, merge) with merge 1, or 2 and even sides, "
                f"got {tuple(grids[i].tolist())} for view {i}"
            )
        total = int(sides.double().prod(1).sum())  # int64 may overflow
        if total > INT32_MAX:
            raise ValueError(f"pack_views: expected at most {INT32_MAX} patches, got {total}")


@pack_views.fake
def _fake(grids: torch.Tensor, patches: int) -> PackedViews:
    sizes = (patches, patches, patches, len(grids) + 1, 1)
    return PackedViews(*(grids.new_empty(size, dtype=torch.int32) for size in sizes))


_pack_views_out = out_variant(
    "pack_views_out(Tensor grids, Tensor(a!) row, Tensor(b!) column, Tensor(c!) sequence, Tensor(d!) cu_seqlens, "
    "Tensor(e!) longest, Tensor(f!) scratch) -> ()"
)


@pack_views.provider("cuda", devices=("cpu", "cuda"), available=available, accepts=lambda grids: declines(grids))
def _extension(grids: torch.Tensor, patches: int) -> PackedViews:
    packed = _fake(grids, patches)
    # a word for each view and for each block of 1024 views, and a few
    _pack_views_out(grids.contiguous(), *packed, scratch(grids, 4 + 2 * len(grids)))
    return packed
