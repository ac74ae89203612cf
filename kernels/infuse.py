"""Cross-attention of pooled tokens with the ragged feature rows that their groups share.

Both forms (`pixelrefer_fast/ops/infuse.py`) run through the same two kernels, over a scratch of scores that stays in
the L2 cache. They differ in what a query and a key are:

* folded: a query is D wide, W_k folded into it; keys and values are the features themselves, shared by all heads, so
  that the heads of a token are further lines of one product;
* projected: a query is D / H wide; keys and values differ by head.

A *row* is a token among all of them, R = M n. A *line* is a query of a group: its members' tokens in the order of
`order`, in the folded form head by head. The scores' rows are sorted by group.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels.add_norm import add_norm

LN_EPS = 1e-5
PITCH = 16  # score columns of a row are a multiple, which keeps rows aligned


@triton.jit(do_not_specialize=["max_rows"])
def _gather(
    features,  # [F, D]
    groups,  # [G, 4] i32: first place, members, first feature row, feature rows
    gathered,  # [G, max_rows, D], zeros after a group's own rows
    max_rows,
    WIDTH: tl.constexpr,  # D
    BLOCK_D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    group = row // max_rows
    own = row % max_rows
    first = tl.load(groups + group * 4 + 2)
    length = tl.load(groups + group * 4 + 3)
    columns = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)  # [D]
    # one comparison: of a scalar one, spread over a block, the interpreter makes an integer, which is no mask to it
    known = columns < tl.where(own < length, WIDTH, 0)
    values = tl.load(features + (first + own) * WIDTH + columns, mask=known, other=0.0)
    tl.store(gathered + row * WIDTH + columns, values, mask=columns < WIDTH)


@triton.jit
def _lines(
    groups,  # [G, 4] i32
    n,
    line_blocks,
    HEADS: tl.constexpr,
    FOLDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Group and head (0 if folded) of a program, whether it has a line; of its lines, [M]: head, query, validity."""
    program = tl.program_id(0)
    first = (program % line_blocks) * BLOCK_M
    group = (program // line_blocks).to(tl.int64)
    if FOLDED:
        head = group * 0
    else:
        head = group % HEADS
        group = group // HEADS
    queries = tl.load(groups + group * 4 + 1) * n  # of a head
    line = first + tl.arange(0, BLOCK_M)  # [M]
    heads = head + line // queries
    valid = heads < (HEADS if FOLDED else head + 1)
    return group, head, first < queries * (HEADS if FOLDED else 1), heads, line % queries, valid


@triton.jit
def _token_rows(
    order,  # [M] i32
    first_place,
    query,  # [M]
    valid,  # [M]
    n,
):
    """Row among all tokens of each query of a group, [M]."""
    objects = tl.load(order + first_place + query // n, mask=valid, other=0).to(tl.int64)
    return objects * n + query % n


@triton.jit(do_not_specialize=["n", "total", "max_rows", "pitches", "line_blocks"])
def _scores(
    queries,  # folded: [H, R, D]; projected: [R, H, D / H]
    keys,  # folded: features [F, D]; projected: [G, max_rows, 2 D], keys before values
    order,  # [M] i32
    groups,  # [G, 4] i32
    scores,  # [H, R, 16 pitches] f32, rows by place in `order`
    scale,  # log2(e) / sqrt(D / H)
    n,
    total,  # R
    max_rows,
    pitches,
    line_blocks,
    WIDTH: tl.constexpr,  # D
    HEADS: tl.constexpr,
    FOLDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    INNER: tl.constexpr = WIDTH if FOLDED else WIDTH // HEADS
    STRIDE: tl.constexpr = WIDTH if FOLDED else 2 * WIDTH
    # one chain of as many float32 sums as features are wide has twice the error of a library's product
    BY_BLOCKS: tl.constexpr = FOLDED and queries.dtype.element_ty == tl.float32
    group, head, any_line, heads, query, valid = _lines(groups, n, line_blocks, HEADS, FOLDED, BLOCK_M)
    length = tl.load(groups + group * 4 + 3)
    first_key = tl.program_id(1) * BLOCK_N
    if (not any_line) | (first_key >= length):
        return
    first_place = tl.load(groups + group * 4).to(tl.int64)
    rows = _token_rows(order, first_place, query, valid, n)  # [M]
    if FOLDED:
        own = queries + (heads * total + rows) * INNER  # [M]
        first_row = tl.load(groups + group * 4 + 2).to(tl.int64)
    else:
        own = queries + (rows * HEADS + head) * INNER
        first_row = group * max_rows
    key = first_key + tl.arange(0, BLOCK_N)  # [N]
    known = key < length
    shared = keys + (first_row + key) * STRIDE + head * INNER  # [N]

    accumulator = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for k in range(0, INNER, BLOCK_K):
        column = k + tl.arange(0, BLOCK_K)  # [K]
        a = tl.load(own[:, None] + column[None, :], mask=valid[:, None] & (column < INNER)[None, :], other=0.0)
        b = tl.load(shared[None, :] + column[:, None], mask=known[None, :] & (column < INNER)[:, None], other=0.0)
        if BY_BLOCKS:
            # no plain sum, which the compiler makes a chain again
            accumulator = tl.fma(tl.dot(a, b, input_precision="ieee"), 1.0, accumulator)  # [M, N]
        else:
            accumulator = tl.dot(a, b, accumulator, input_precision="ieee")  # [M, N]
    cells = (heads * total + first_place * n + query)[:, None] * (pitches * 16) + key[None, :]
    tl.store(scores + cells, accumulator * scale, mask=valid[:, None] & known[None, :])


@triton.jit(do_not_specialize=["n", "total", "max_rows", "pitches", "line_blocks"])
def _weighted_sum(
    scores,  # [H, R, 16 pitches] f32, rows by place in `order`
    values,  # folded: features [F, D]; projected: [G, max_rows, 2 D], keys before values
    order,  # [M] i32
    groups,  # [G, 4] i32
    summed,  # folded: [H, R, D]; projected: [R, H, D / H]
    n,
    total,  # R
    max_rows,
    pitches,
    line_blocks,
    WIDTH: tl.constexpr,  # D
    HEADS: tl.constexpr,
    FOLDED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    INNER: tl.constexpr = WIDTH if FOLDED else WIDTH // HEADS
    STRIDE: tl.constexpr = WIDTH if FOLDED else 2 * WIDTH
    OFFSET: tl.constexpr = 0 if FOLDED else WIDTH
    group, head, any_line, heads, query, valid = _lines(groups, n, line_blocks, HEADS, FOLDED, BLOCK_M)
    if not any_line:
        return
    length = tl.load(groups + group * 4 + 3)
    first_place = tl.load(groups + group * 4).to(tl.int64)
    own = scores + (heads * total + first_place * n + query) * (pitches * 16)  # [M]
    first_row = tl.load(groups + group * 4 + 2).to(tl.int64) if FOLDED else group * max_rows
    column = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)  # [E]
    wanted = column < INNER
    shared = values + first_row * STRIDE + OFFSET + head * INNER + column  # [E]

    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    sum_of_weights = tl.zeros([BLOCK_M], tl.float32)
    accumulator = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    for first_key in range(0, length, BLOCK_N):
        key = first_key + tl.arange(0, BLOCK_N)  # [N]
        known = key < length
        # what lies after a group's rows is not loaded: a weight of zero would not hide a NaN there
        s = tl.load(own[:, None] + key[None, :], mask=valid[:, None] & known[None, :], other=0.0)  # [M, N]
        v = tl.load(
            shared[None, :] + key.to(tl.int64)[:, None] * STRIDE, mask=known[:, None] & wanted[None, :], other=0.0
        )  # [N, E]
        s = tl.where(known[None, :], s, float("-inf"))
        larger = tl.maximum(largest, tl.max(s, 1))
        weights = tl.exp2(s - larger[:, None])  # [M, N]
        shrink = tl.exp2(largest - larger)  # [M]
        sum_of_weights = sum_of_weights * shrink + tl.sum(weights, 1)
        accumulator = tl.dot(weights.to(v.dtype), v, accumulator * shrink[:, None], input_precision="ieee")
        largest = larger
    rows = _token_rows(order, first_place, query, valid, n)  # [M]
    target = (heads * total + rows) * INNER if FOLDED else (rows * HEADS + head) * INNER  # [M]
    result = (accumulator / sum_of_weights[:, None]).to(summed.dtype.element_ty)
    tl.store(summed + target[:, None] + column[None, :], result, mask=valid[:, None] & wanted[None, :])


def infuse(
    tokens: torch.Tensor,
    normed: torch.Tensor,
    features: torch.Tensor,
    order: torch.Tensor,
    groups: torch.Tensor,
    in_weight: torch.Tensor,
    query_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    ln_weight: torch.Tensor | None,
    ln_bias: torch.Tensor | None,
    heads: int,
    max_members: int,
    max_rows: int,
    projected: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One infusion step, (M, n, D) twice, as the operation of this name: seven launches, three of them products."""
    objects, n, width = tokens.shape
    # out_weight too: the vendor library sums in another order for other strides
    features, in_weight, out_weight = features.contiguous(), in_weight.contiguous(), out_weight.contiguous()
    order, groups = order.contiguous(), groups.contiguous()
    rows, head_dim = objects * n, width // heads
    query_weight, key_weight, value_weight = in_weight.chunk(3)
    queries = torch.addmm(query_bias, normed.reshape(rows, width), query_weight.T).view(rows, heads, head_dim)
    mixed = torch.empty_like(queries)
    if projected:
        gathered = _gathered(features, groups, max_rows)
        keys_and_values = gathered @ in_weight[width:].T  # (G max_rows, 2 D)
        _attend(queries, keys_and_values, order, groups, mixed, n, heads, max_members, max_rows, projected)
    else:
        folded = torch.bmm(queries.transpose(0, 1), key_weight.view(heads, head_dim, width))  # (H, R, D)
        summed = torch.empty_like(folded)
        _attend(folded, features, order, groups, summed, n, heads, max_members, max_rows, projected)
        torch.bmm(summed, value_weight.view(heads, head_dim, width).transpose(1, 2), out=mixed.transpose(0, 1))
    delta = torch.addmm(out_bias, mixed.view(rows, width), out_weight.T)
    infused, following = add_norm(tokens.reshape(rows, width), delta, ln_weight, ln_bias, LN_EPS)
    return infused.view(tokens.shape), following if ln_weight is None else following.view(tokens.shape)


def _gathered(features: torch.Tensor, groups: torch.Tensor, max_rows: int) -> torch.Tensor:
    """(G max_rows, D): each group's feature rows, filled up with zeros."""
    width = features.shape[1]
    config = configuration("infuse.gather", width, features.device)
    gathered = features.new_empty(len(groups) * max_rows, width)
    launch(
        _gather,
        "infuse.gather",
        (len(gathered), triton.cdiv(width, config["BLOCK_D"])),
        features,
        groups,
        gathered,
        max_rows,
        WIDTH=width,
        **config,
        moved=2 * gathered.numel() * gathered.element_size(),
    )
    return gathered


def _attend(
    queries: torch.Tensor,
    shared: torch.Tensor,
    order: torch.Tensor,
    groups: torch.Tensor,
    summed: torch.Tensor,
    n: int,
    heads: int,
    max_members: int,
    max_rows: int,
    projected: bool,
) -> None:
    """Softmax of the queries' scores and the weighted sum, in two launches; writes `summed`, laid out as `queries`."""
    rows, inner = len(order) * n, queries.shape[-1]
    width = inner * heads if projected else inner
    pitches = triton.cdiv(max_rows, PITCH)
    scratch = torch.empty(heads, rows, pitches * PITCH, dtype=torch.float32, device=queries.device)
    lines = max_members * n * (1 if projected else heads)
    # as if each group had max_rows rows; how many it has, the device knows
    flops = 2 * heads * rows * max_rows * inner
    moved = (queries.numel() + len(groups) * max_rows * width) * queries.element_size() + 4 * heads * rows * max_rows

    def blocks(config: dict[str, int]) -> tuple[int, int]:
        line_blocks = triton.cdiv(lines, config["BLOCK_M"])
        return line_blocks, len(groups) * line_blocks * (heads if projected else 1)

    sizes = {"WIDTH": width, "HEADS": heads, "FOLDED": not projected}
    suffix = "_float32" if queries.dtype == torch.float32 else ""  # whose products are no tensor core's
    name = f"infuse.scores{suffix}"
    config = configuration(name, inner, queries.device)
    line_blocks, programs = blocks(config)
    launch(
        _scores,
        name,
        (programs, triton.cdiv(max_rows, config["BLOCK_N"])),
        queries,
        shared,
        order,
        groups,
        scratch,
        math.log2(math.e) * (width // heads) ** -0.5,
        n,
        rows,
        max_rows,
        pitches,
        line_blocks,
        **sizes,
        **config,
        flops=flops,
        moved=moved,
    )
    name = f"infuse.weighted_sum{suffix}"
    config = configuration(name, inner, queries.device)
    line_blocks, programs = blocks(config)
    launch(
        _weighted_sum,
        name,
        (programs, triton.cdiv(inner, config["BLOCK_E"])),
        scratch,
        shared,
        order,
        groups,
        summed,
        n,
        rows,
        max_rows,
        pitches,
        line_blocks,
        **sizes,
        **config,
        flops=flops,
        moved=moved,
    )


def compile_cases() -> Iterator[CompileCase]:
    """The released models' widths, D 1152 and 8 heads of 144, in both forms, and heads of other sizes."""
    integers = dict.fromkeys(("n", "total", "max_rows", "pitches", "line_blocks"), "i32")
    shapes = ((1152, 8, True), (1152, 8, False), (1024, 4, False), (1152, 16, False), (264, 11, False))
    for dtype in ("fp32", "fp16", "bf16"):
        item = f"*{dtype}"
        for width in (1024, 1152):
            for entry in _entries("infuse.gather", width):
                yield CompileCase(
                    _gather,
                    "infuse.gather",
                    f"{dtype}, {width} wide",
                    {"features": item, "groups": "*i32", "gathered": item, "max_rows": "i32"},
                    {"WIDTH": width, "BLOCK_D": entry["BLOCK_D"]},
                    {option: entry[option] for option in OPTIONS},
                )
        for kernel, name, tensors in (
            (_scores, "infuse.scores", {"queries": item, "keys": item, "scores": "*fp32", "scale": "fp32"}),
            (_weighted_sum, "infuse.weighted_sum", {"scores": "*fp32", "values": item, "summed": item}),
        ):
            name += "_float32" if dtype == "fp32" else ""
            for width, heads, folded in shapes:
                for entry in _entries(name, width if folded else width // heads):
                    yield CompileCase(
                        kernel,
                        name,
                        f"{dtype}, {'folded' if folded else 'projected'}, {heads} heads of {width // heads}",
                        tensors | integers | {"order": "*i32", "groups": "*i32"},
                        {"WIDTH": width, "HEADS": heads, "FOLDED": folded}
                        | {block: size for block, size in entry.items() if block.startswith("BLOCK_")},
                        {option: entry[option] for option in OPTIONS},
                        matrix=True,
                    )


def _entries(name: str, size: int) -> Iterable[dict[str, int]]:
    """What `configuration` takes at this size, for each device."""
    taken: dict[str, dict[str, int]] = {}
    for device, entry in shipped(name):
        if size <= entry.get("upto", size):
            taken.setdefault(device, entry)
    return taken.values()
