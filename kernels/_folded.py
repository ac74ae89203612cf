"""The folded form of `infuse`: queries as wide as the features, which are keys and values at once.

`scores` go to a scratch that stays in the L2 cache; `values` takes their softmax, the weighted sum of the features and
W_v; `output` multiplies with W_o and adds the residual.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._infuse_parts import (
    configured,
    head_lines,
    head_parts,
    product_added,
    score_scale,
    token_rows,
)
from pixelrefer_fast.kernels._launch import launch
from pixelrefer_fast.kernels._sizes import cdiv

PITCH = 16  # score columns of a row are a multiple, which keeps rows aligned


@triton.jit(do_not_specialize=["n", "total", "max_rows", "pitches", "line_blocks"])
def scores(
    queries,  # [H, R, D]
    features,  # [F, D]
    order,  # [M] i32
    groups,  # [G, 4] i32
    scores,  # out: [H, R, 16 pitches] f32, rows by place in `order`
    scale,  # log2(e) / sqrt(D / H)
    n,
    total,  # R
    max_rows,
    pitches,
    line_blocks,
    WIDTH: tl.constexpr,  # D
    HEADS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Folded: scores of a block of lines and a block of keys; the heads of a token are further lines."""
    program = tl.program_id(0)
    group = (program // line_blocks).to(tl.int64)
    first_line, first_key = (program % line_blocks) * BLOCK_M, tl.program_id(1) * BLOCK_N
    count = tl.load(groups + group * 4 + 1) * n  # queries of a head
    length = tl.load(groups + group * 4 + 3)
    if (first_line >= count * HEADS) | (first_key >= length):
        return
    line = first_line + tl.arange(0, BLOCK_M)  # [M]
    head, query = line // count, line % count
    valid = head < HEADS
    first_place = tl.load(groups + group * 4).to(tl.int64)
    rows = token_rows(order, first_place, query, valid, n)  # [M]
    own = queries + (head * total + rows) * WIDTH  # [M]
    key = first_key + tl.arange(0, BLOCK_N)  # [N]
    known = key < length
    shared = features + (tl.load(groups + group * 4 + 2).to(tl.int64) + key) * WIDTH  # [N]
    score = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)  # [K]
        a = tl.load(own[:, None] + column[None, :], mask=valid[:, None] & (column < WIDTH)[None, :], other=0.0)
        b = tl.load(shared[None, :] + column[:, None], mask=known[None, :] & (column < WIDTH)[:, None], other=0.0)
        score = product_added(a, b, score)  # [M, N]
    cells = (head * total + first_place * n + query)[:, None] * (pitches * 16) + key[None, :]
    # a row ends at a multiple of 16, so that 8 bytes are masked as one; behind the group's keys is no score
    tl.store(scores + cells, score * scale, mask=valid[:, None] & (key < pitches * 16)[None, :])


@triton.jit(do_not_specialize=["n", "total", "max_rows", "pitches", "line_blocks"])
def values(
    scores,  # [H, R, 16 pitches] f32, rows by place in `order`
    features,  # [F, D]
    order,  # [M] i32
    groups,  # [G, 4] i32
    in_weight,  # [3 D, D]
    parts,  # out: [splits, R, D] f32
    n,
    total,  # R
    max_rows,
    pitches,
    line_blocks,
    WIDTH: tl.constexpr,  # D
    HEADS: tl.constexpr,
    HEAD_MAIN: tl.constexpr,
    HEAD_REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    CHUNKS: tl.constexpr,
):
    """Folded: softmax of a head's scores, the weighted sum of CHUNKS blocks of the features' columns, times the same
    columns of W_v; what the programs of other columns make is added by `output`."""
    INNER: tl.constexpr = WIDTH // HEADS
    dtype: tl.constexpr = features.dtype.element_ty
    group, head, any_line, query, valid = head_lines(groups, n, line_blocks, HEADS, BLOCK_M)
    if not any_line:
        return
    length = tl.load(groups + group * 4 + 3)
    first_place = tl.load(groups + group * 4).to(tl.int64)
    own = scores + (head.to(tl.int64) * total + first_place * n + query) * (pitches * 16)  # [M]
    shared = features + tl.load(groups + group * 4 + 2).to(tl.int64) * WIDTH

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight_sum = tl.zeros([BLOCK_M], tl.float32)
    for first_key in range(0, length, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)  # [N]
        # a row of the scratch ends at a multiple of 16, so that 16 bytes are masked as one; what nobody wrote there is
        # no score
        s = tl.load(own[:, None] + key[None, :], mask=valid[:, None] & (key < pitches * 16)[None, :], other=0.0)
        s = tl.where((key < length)[None, :], s, float("-inf"))
        larger = tl.maximum(largest, tl.max(s, 1))
        weight_sum = weight_sum * tl.exp2(largest - larger) + tl.sum(tl.exp2(s - larger[:, None]), 1)
        largest = larger

    main = tl.arange(0, HEAD_MAIN)
    mixed = tl.zeros([BLOCK_M, HEAD_MAIN], tl.float32)
    if HEAD_REST > 0:
        rest = HEAD_MAIN + tl.arange(0, HEAD_REST)
        mixed_rest = tl.zeros([BLOCK_M, HEAD_REST], tl.float32)
    for chunk in range(CHUNKS):
        column = (tl.program_id(1) * CHUNKS + chunk) * BLOCK_E + tl.arange(0, BLOCK_E)  # [E]
        inside = column < WIDTH
        summed = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
        for first_key in range(0, length, BLOCK_N):
            key = first_key + tl.arange(0, BLOCK_N)  # [N]
            known = key < length
            s = tl.load(own[:, None] + key[None, :], mask=valid[:, None] & (key < pitches * 16)[None, :], other=0.0)
            weights = tl.exp2(tl.where(known[None, :], s, float("-inf")) - largest[:, None])  # [M, N]
            at = shared + key.to(tl.int64)[:, None] * WIDTH + column[None, :]
            v = tl.load(at, mask=known[:, None] & inside[None, :], other=0.0)  # [N, E]
            summed = tl.dot(weights.to(dtype), v, summed, input_precision="ieee")
        narrow = (summed / weight_sum[:, None]).to(dtype)  # [M, E]
        at = in_weight + (2 * WIDTH + head * INNER + main)[None, :] * WIDTH + column[:, None]
        weight = tl.load(at, mask=inside[:, None] & (main < INNER)[None, :], other=0.0)  # [E, main]
        mixed = product_added(narrow, weight, mixed)
        if HEAD_REST > 0:
            at = in_weight + (2 * WIDTH + head * INNER + rest)[None, :] * WIDTH + column[:, None]
            weight_rest = tl.load(at, mask=inside[:, None] & (rest < INNER)[None, :], other=0.0)
            mixed_rest = product_added(narrow, weight_rest, mixed_rest)

    rows = token_rows(order, first_place, query, valid, n)  # [M]
    target = parts + (tl.program_id(1).to(tl.int64) * total + rows) * WIDTH + head * INNER  # [M]
    tl.store(target[:, None] + main[None, :], mixed, mask=valid[:, None] & (main < INNER)[None, :])
    if HEAD_REST > 0:
        tl.store(target[:, None] + rest[None, :], mixed_rest, mask=valid[:, None] & (rest < INNER)[None, :])


@triton.jit(do_not_specialize=["total"])
def output(
    parts,  # [splits, R, D] f32
    out_weight,  # [D, D]
    carried,  # [R, D], to which the product is added
    total,  # R
    WIDTH: tl.constexpr,  # D
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Folded: the sum of `values`' parts, rounded as the attention's result is, times W_o."""
    dtype: tl.constexpr = carried.dtype.element_ty
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)  # [M]
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)  # [N]
    valid, inside = row < total, column < WIDTH
    product = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        along = k + tl.arange(0, BLOCK_K)  # [K]
        known = along < WIDTH
        mixed = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        for split in tl.static_range(SPLITS):
            at = parts + (total * split + row)[:, None] * WIDTH + along[None, :]
            mixed += tl.load(at, mask=valid[:, None] & known[None, :], other=0.0)
        at = out_weight + column[None, :].to(tl.int64) * WIDTH + along[:, None]
        weight = tl.load(at, mask=known[:, None] & inside[None, :], other=0.0)  # [K, N]
        product = product_added(mixed.to(dtype), weight, product)
    here = valid[:, None] & inside[None, :]
    at = carried + row[:, None] * WIDTH + column[None, :]
    before = tl.load(at, mask=here, other=0.0).to(tl.float32)
    tl.store(at, (before + product).to(dtype), mask=here)


def attend_folded(
    queries: torch.Tensor,
    features: torch.Tensor,
    order: torch.Tensor,
    groups: torch.Tensor,
    in_weight: torch.Tensor,
    n: int,
    max_members: int,
    max_rows: int,
) -> torch.Tensor:
    """(splits, R, D) float32 parts of what the attention gives, from folded queries (H, R, D), in two launches."""
    heads, rows, width = queries.shape
    pitches = cdiv(max_rows, PITCH)
    scratch = torch.empty(heads, rows, pitches * PITCH, dtype=torch.float32, device=queries.device)
    # as if each group had max_rows rows; how many it has, the device knows
    pairs, shared = heads * rows * max_rows, len(groups) * max_rows * width
    item = queries.element_size()
    name, config = configured("infuse.scores", width, queries)
    line_blocks = cdiv(max_members * n * heads, config["BLOCK_M"])
    launch(
        scores,
        name,
        (len(groups) * line_blocks, cdiv(max_rows, config["BLOCK_N"])),
        queries,
        features,
        order,
        groups,
        scratch,
        score_scale(width // heads),
        n,
        rows,
        max_rows,
        pitches,
        line_blocks,
        WIDTH=width,
        HEADS=heads,
        **config,
        flops=2 * pairs * width,
        moved=(queries.numel() + shared) * item + 4 * pairs,
    )
    name, config = configured("infuse.values", width // heads, queries)
    line_blocks = cdiv(max_members * n, config["BLOCK_M"])
    splits = cdiv(width, config["BLOCK_E"] * config["CHUNKS"])
    parts = torch.empty(splits, rows, width, dtype=torch.float32, device=queries.device)
    launch(
        values,
        name,
        (len(groups) * heads * line_blocks, splits),
        scratch,
        features,
        order,
        groups,
        in_weight,
        parts,
        n,
        rows,
        max_rows,
        pitches,
        line_blocks,
        WIDTH=width,
        HEADS=heads,
        **head_parts(width // heads),
        **config,
        flops=2 * pairs * width + 2 * rows * width * width,
        moved=(shared + width * width) * item + 4 * (pairs + parts.numel()),
    )
    return parts


def add_output(parts: torch.Tensor, out_weight: torch.Tensor, carried: torch.Tensor) -> None:
    """Adds the output product of the `parts` (splits, R, D) to `carried` (R, D), in one launch."""
    rows, width = carried.shape
    name, config = configured("infuse.output", width, carried)
    launch(
        output,
        name,
        (cdiv(rows, config["BLOCK_M"]), cdiv(width, config["BLOCK_N"])),
        parts,
        out_weight,
        carried,
        rows,
        WIDTH=width,
        SPLITS=len(parts),
        **config,
        flops=2 * rows * width * width,
        moved=4 * parts.numel() + (2 * carried.numel() + out_weight.numel()) * carried.element_size(),
    )
