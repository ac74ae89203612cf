"""Cross-attention of pooled tokens with the ragged feature rows that their groups share, in four launches a step.

Both forms (`pixelrefer_fast/ops/infuse.py`) begin with `_queries` (LayerNorm, query product and, in the folded form,
W_k) and end with the output product, into which the residual goes as what it is added to:

* folded (`_folded.py`): scores; their softmax, the weighted sum of the features and W_v; the output product;
* projected: the library's product of features and W_k, W_v; `_attend`, scores, softmax and weighted sum of a head; the
  library's output product.

Words and shared parts: `_infuse_parts.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._folded import add_output, attend_folded, output, scores, values
from pixelrefer_fast.kernels._infuse_parts import (
    configured,
    head_lines,
    head_parts,
    product_added,
    score_scale,
    token_rows,
)
from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, launch, shipped
from pixelrefer_fast.kernels._sizes import cdiv

LN_EPS = 1e-5


@triton.jit(do_not_specialize=["total"])
def _queries(
    tokens,  # [R, D]
    gain,  # [D] of the LayerNorm
    shift,  # [D]
    in_weight,  # [3 D, D]
    query_bias,  # [D]
    out_bias,  # [D]
    queries,  # out: folded: [H, R, D]; projected: [R, H, D / H]
    carried,  # out: [R, D] tokens + out_bias, to which the output product is added
    total,  # R
    epsilon,
    WIDTH: tl.constexpr,  # D
    HEADS: tl.constexpr,
    FOLDED: tl.constexpr,
    HEAD_MAIN: tl.constexpr,
    HEAD_REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The LayerNorm of some rows times one head's W_q and, folded, the result times its W_k; the head's columns of
    `carried` as well."""
    INNER: tl.constexpr = WIDTH // HEADS
    dtype: tl.constexpr = tokens.dtype.element_ty
    head = tl.program_id(1)
    row = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)  # [M]
    valid = row < total
    own = tokens + row * WIDTH

    mean = tl.zeros([BLOCK_M], tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)  # [K]
        x = tl.load(own[:, None] + column[None, :], mask=valid[:, None] & (column < WIDTH)[None, :], other=0.0)
        mean += tl.sum(x.to(tl.float32), 1)
    mean /= WIDTH
    squares = tl.zeros([BLOCK_M], tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)  # [K]
        here = valid[:, None] & (column < WIDTH)[None, :]
        x = tl.load(own[:, None] + column[None, :], mask=here, other=0.0).to(tl.float32)
        away = tl.where(here, x - mean[:, None], 0.0)
        squares += tl.sum(away * away, 1)
    scale = 1.0 / tl.sqrt(squares / WIDTH + epsilon)  # [M]

    main = tl.arange(0, HEAD_MAIN)
    query = tl.zeros([BLOCK_M, HEAD_MAIN], tl.float32)
    if HEAD_REST > 0:
        rest = HEAD_MAIN + tl.arange(0, HEAD_REST)
        query_rest = tl.zeros([BLOCK_M, HEAD_REST], tl.float32)
    for k in range(0, WIDTH, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)  # [K]
        inside = column < WIDTH
        x = tl.load(own[:, None] + column[None, :], mask=valid[:, None] & inside[None, :], other=0.0).to(tl.float32)
        along = tl.load(gain + column, mask=inside, other=0.0).to(tl.float32)
        added = tl.load(shift + column, mask=inside, other=0.0).to(tl.float32)
        normed = ((x - mean[:, None]) * scale[:, None] * along[None, :] + added[None, :]).to(dtype)  # [M, K]
        at = in_weight + (head * INNER + main)[None, :] * WIDTH + column[:, None]
        weight = tl.load(at, mask=inside[:, None] & (main < INNER)[None, :], other=0.0)  # [K, main]
        query = product_added(normed, weight, query)
        if HEAD_REST > 0:
            at = in_weight + (head * INNER + rest)[None, :] * WIDTH + column[:, None]
            weight_rest = tl.load(at, mask=inside[:, None] & (rest < INNER)[None, :], other=0.0)
            query_rest = product_added(normed, weight_rest, query_rest)

    for part in tl.static_range(2 if HEAD_REST > 0 else 1):
        place = main if part == 0 else rest
        here = valid[:, None] & (place < INNER)[None, :]
        bias = tl.load(query_bias + head * INNER + place, mask=place < INNER, other=0.0).to(tl.float32)
        if part == 0:
            query += bias[None, :]
        else:
            query_rest += bias[None, :]
        x = tl.load(own[:, None] + (head * INNER + place)[None, :], mask=here, other=0.0).to(tl.float32)
        passed = tl.load(out_bias + head * INNER + place, mask=place < INNER, other=0.0).to(tl.float32)
        cell = row[:, None] * WIDTH + (head * INNER + place)[None, :]
        tl.store(carried + cell, (x + passed[None, :]).to(dtype), mask=here)
        if not FOLDED:
            tl.store(queries + cell, (query if part == 0 else query_rest).to(dtype), mask=here)

    if FOLDED:
        narrow = query.to(dtype)
        if HEAD_REST > 0:
            narrow_rest = query_rest.to(dtype)
        for k in range(0, WIDTH, BLOCK_K):
            column = k + tl.arange(0, BLOCK_K)  # [K]
            inside = column < WIDTH
            at = in_weight + (WIDTH + head * INNER + main)[:, None] * WIDTH + column[None, :]
            weight = tl.load(at, mask=inside[None, :] & (main < INNER)[:, None], other=0.0)  # [main, K]
            folded = product_added(narrow, weight, tl.zeros([BLOCK_M, BLOCK_K], tl.float32))
            if HEAD_REST > 0:
                at = in_weight + (WIDTH + head * INNER + rest)[:, None] * WIDTH + column[None, :]
                weight_rest = tl.load(at, mask=inside[None, :] & (rest < INNER)[:, None], other=0.0)
                folded = product_added(narrow_rest, weight_rest, folded)
            at = queries + (head.to(tl.int64) * total + row)[:, None] * WIDTH + column[None, :]
            tl.store(at, folded.to(dtype), mask=valid[:, None] & inside[None, :])


@triton.jit(do_not_specialize=["n", "first_row", "line_blocks"])
def _attend(
    queries,  # [R, H, D / H]
    shared,  # [span, 2 D], keys before values, of the features from `first_row` on
    order,  # [M] i32
    groups,  # [G, 4] i32
    mixed,  # out: [R, H, D / H]
    scale,  # log2(e) / sqrt(D / H)
    n,
    first_row,
    line_blocks,
    WIDTH: tl.constexpr,  # D
    HEADS: tl.constexpr,
    HEAD_MAIN: tl.constexpr,
    HEAD_REST: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Projected: attention of a block of a head's lines with all keys of their group."""
    INNER: tl.constexpr = WIDTH // HEADS
    dtype: tl.constexpr = queries.dtype.element_ty
    group, head, any_line, query, valid = head_lines(groups, n, line_blocks, HEADS, BLOCK_M)
    if not any_line:
        return
    length = tl.load(groups + group * 4 + 3)
    rows = token_rows(order, tl.load(groups + group * 4).to(tl.int64), query, valid, n)  # [M]
    own = rows * WIDTH + head * INNER  # [M]
    start = shared + (tl.load(groups + group * 4 + 2).to(tl.int64) - first_row) * (2 * WIDTH) + head * INNER

    main = tl.arange(0, HEAD_MAIN)
    asked = valid[:, None] & (main < INNER)[None, :]
    q = tl.load(queries + own[:, None] + main[None, :], mask=asked, other=0.0)
    result = tl.zeros([BLOCK_M, HEAD_MAIN], tl.float32)
    if HEAD_REST > 0:
        rest = HEAD_MAIN + tl.arange(0, HEAD_REST)
        asked_rest = valid[:, None] & (rest < INNER)[None, :]
        q_rest = tl.load(queries + own[:, None] + rest[None, :], mask=asked_rest, other=0.0)
        result_rest = tl.zeros([BLOCK_M, HEAD_REST], tl.float32)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    weight_sum = tl.zeros([BLOCK_M], tl.float32)
    for first_key in range(0, length, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)  # [N]
        known = key < length
        at = start + key.to(tl.int64) * (2 * WIDTH)  # [N]
        # what lies after a group's rows is another group's or nobody's: a weight of zero would not hide a NaN there
        k = tl.load(at[None, :] + main[:, None], mask=known[None, :] & (main < INNER)[:, None], other=0.0)  # [main, N]
        v = tl.load(at[:, None] + WIDTH + main[None, :], mask=known[:, None] & (main < INNER)[None, :], other=0.0)
        s = tl.dot(q, k, input_precision="ieee")  # [M, N]
        if HEAD_REST > 0:
            here = known[None, :] & (rest < INNER)[:, None]
            k_rest = tl.load(at[None, :] + rest[:, None], mask=here, other=0.0)
            here = known[:, None] & (rest < INNER)[None, :]
            v_rest = tl.load(at[:, None] + WIDTH + rest[None, :], mask=here, other=0.0)
            s = tl.dot(q_rest, k_rest, s, input_precision="ieee")
        s = tl.where(known[None, :], s * scale, float("-inf"))
        larger = tl.maximum(largest, tl.max(s, 1))
        weights = tl.exp2(s - larger[:, None])  # [M, N]
        shrink = tl.exp2(largest - larger)  # [M]
        weight_sum = weight_sum * shrink + tl.sum(weights, 1)
        result = tl.dot(weights.to(dtype), v, result * shrink[:, None], input_precision="ieee")
        if HEAD_REST > 0:
            result_rest = tl.dot(weights.to(dtype), v_rest, result_rest * shrink[:, None], input_precision="ieee")
        largest = larger
    tl.store(mixed + own[:, None] + main[None, :], (result / weight_sum[:, None]).to(dtype), mask=asked)
    if HEAD_REST > 0:
        out = (result_rest / weight_sum[:, None]).to(dtype)
        tl.store(mixed + own[:, None] + rest[None, :], out, mask=asked_rest)


def infuse(
    tokens: torch.Tensor,
    features: torch.Tensor,
    order: torch.Tensor,
    groups: torch.Tensor,
    ln_weight: torch.Tensor,
    ln_bias: torch.Tensor,
    in_weight: torch.Tensor,
    query_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    heads: int,
    max_members: int,
    max_rows: int,
    first_row: int,
    span: int,
    projected: bool,
) -> torch.Tensor:
    """As the operation of this name; groups outside the features and above the maxima are the caller's mistake."""
    features, order, groups = features.contiguous(), order.contiguous(), groups.contiguous()
    ln_weight, ln_bias, query_bias = ln_weight.contiguous(), ln_bias.contiguous(), query_bias.contiguous()
    in_weight, out_weight, out_bias = in_weight.contiguous(), out_weight.contiguous(), out_bias.contiguous()
    objects, n, width = tokens.shape
    rows = objects * n
    carried = tokens.new_empty(rows, width)
    if not rows or not width:
        return carried.view(tokens.shape)
    queries = tokens.new_empty((rows, width) if projected else (heads, rows, width))
    _project_queries(
        tokens.contiguous(), ln_weight, ln_bias, in_weight, query_bias, out_bias, queries, carried, heads, projected
    )
    if projected:
        shared = torch.mm(features[first_row : first_row + span], in_weight[width:].t())  # (span, 2 D)
        mixed = torch.empty_like(queries)
        _attend_projected(queries, shared, order, groups, mixed, n, heads, max_members, max_rows, first_row)
        carried.addmm_(mixed, out_weight.t())
    else:
        parts = attend_folded(queries, features, order, groups, in_weight, n, max_members, max_rows)
        add_output(parts, out_weight, carried)
    return carried.view(tokens.shape)


def _project_queries(
    tokens: torch.Tensor,
    ln_weight: torch.Tensor,
    ln_bias: torch.Tensor,
    in_weight: torch.Tensor,
    query_bias: torch.Tensor,
    out_bias: torch.Tensor,
    queries: torch.Tensor,
    carried: torch.Tensor,
    heads: int,
    projected: bool,
) -> None:
    """Writes `queries` and `carried`, in one launch."""
    rows, width = carried.shape
    name, config = configured("infuse.queries", width // heads, tokens)
    weights = width * width * (1 if projected else 2)
    launch(
        _queries,
        name,
        (cdiv(rows, config["BLOCK_M"]), heads),
        tokens,
        ln_weight,
        ln_bias,
        in_weight,
        query_bias,
        out_bias,
        queries,
        carried,
        rows,
        LN_EPS,
        WIDTH=width,
        HEADS=heads,
        FOLDED=not projected,
        **head_parts(width // heads),
        **config,
        flops=2 * rows * weights,
        moved=(2 * carried.numel() + queries.numel() + weights) * tokens.element_size(),
    )


def _attend_projected(
    queries: torch.Tensor,
    shared: torch.Tensor,
    order: torch.Tensor,
    groups: torch.Tensor,
    mixed: torch.Tensor,
    n: int,
    heads: int,
    max_members: int,
    max_rows: int,
    first_row: int,
) -> None:
    """Writes `mixed` (R, D) from projected queries (R, D), in one launch."""
    rows, width = queries.shape
    name, config = configured("infuse.attend", width // heads, queries)
    line_blocks = cdiv(max_members * n, config["BLOCK_M"])
    launch(
        _attend,
        name,
        (len(groups) * heads * line_blocks,),
        queries,
        shared,
        order,
        groups,
        mixed,
        score_scale(width // heads),
        n,
        first_row,
        line_blocks,
        WIDTH=width,
        HEADS=heads,
        **head_parts(width // heads),
        **config,
        flops=4 * rows * max_rows * width,
        moved=(2 * queries.numel() + shared.numel()) * queries.element_size(),
    )


TENSORS = {
    _queries: ("tokens", "gain", "shift", "in_weight", "query_bias", "out_bias", "queries", "carried"),
    scores: ("queries", "features"),
    values: ("features", "in_weight"),
    output: ("out_weight", "carried"),
    _attend: ("queries", "shared", "mixed"),
}
TYPES = {"order": "*i32", "groups": "*i32", "scores": "*fp32", "parts": "*fp32", "scale": "fp32", "epsilon": "fp32"}


def compile_cases() -> Iterator[CompileCase]:
    """The released models' width, D 1152 and 8 heads of 144, and heads of other sizes."""
    for dtype in ("fp32", "fp16", "bf16"):
        for kernel, name, forms in (
            (_queries, "infuse.queries", (True, False)),
            (scores, "infuse.scores", (True,)),
            (values, "infuse.values", (True,)),
            (output, "infuse.output", (True,)),
            (_attend, "infuse.attend", (False,)),
        ):
            name += "_float32" if dtype == "fp32" else ""
            for width, heads in ((1152, 8), (1024, 4), (1152, 16), (264, 11)):
                size = width if kernel in (scores, output) else width // heads
                for entry in _entries(name, size):
                    blocks = {k: v for k, v in entry.items() if k.startswith("BLOCK_") or k == "CHUNKS"}
                    splits = cdiv(width, blocks["BLOCK_E"] * blocks["CHUNKS"]) if "CHUNKS" in blocks else 3
                    for folded in forms:
                        constants = {"WIDTH": width, "HEADS": heads, "FOLDED": folded, "SPLITS": splits}
                        constants |= head_parts(width // heads) | blocks
                        yield CompileCase(
                            kernel,
                            name,
                            f"{dtype}, {'folded' if folded else 'projected'}, {heads} heads of {width // heads}",
                            {
                                argument: f"*{dtype}" if argument in TENSORS[kernel] else TYPES.get(argument, "i32")
                                for argument in kernel.arg_names
                                if not argument.isupper()
                            },
                            {k: v for k, v in constants.items() if k in kernel.arg_names},
                            {option: entry[option] for option in OPTIONS},
                            # the others' blocks are an object's 32 tokens, of which sm_90 has no larger instruction
                            matrix=kernel is scores,
                        )


def _entries(name: str, size: int) -> Iterable[dict[str, int]]:
    """What `configuration` takes at this size, for each device."""
    taken: dict[str, dict[str, int]] = {}
    for device, entry in shipped(name):
        if size <= entry.get("upto", size):
            taken.setdefault(device, entry)
    return taken.values()
