"""A decoding step's attention in one launch: rotation, the cache's new rows, and one query over keys in blocks.

A program serves the queries that share a head of keys, of one sequence, over a part of its keys. How many keys there
are only the device knows: programs that find no part left end at once. The part that is done last adds up all of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import next_power_of_2

PROGRAMS = 256  # wanted at once: two for each multiprocessor of the largest devices
MOST_PARTS = 32  # of a sequence's keys
LEAST_CHUNKS = 4  # of BLOCK_K keys: in a smaller part there is less to save than adding it up costs


@triton.jit(do_not_specialize=["width", "parts"])
def _paged_attention(
    qkv,  # [B, HEADS + 2 GROUPS, HEAD] float, rows ROW elements apart
    turns,  # [B, 2, HEAD] same dtype, of which the second halves are read
    rows,  # [B] int64
    keys,  # [blocks, SIZE, GROUPS, HEAD] same dtype, the new key of each sequence is written
    values,  # likewise
    table,  # [B, width] int32
    lengths,  # [B] int32
    arrivals,  # [B * GROUPS] int32, zeros before and after
    sums,  # [B * GROUPS, parts, HEADS / GROUPS, HEAD] float32: sums of weighted values of a part
    weights,  # [B * GROUPS, parts, 2, HEADS / GROUPS] float32: its largest score and the sum of its weights
    out,  # [B, HEADS, HEAD] same dtype
    width,
    parts,
    scale,
    ROW: tl.constexpr,
    HEADS: tl.constexpr,
    GROUPS: tl.constexpr,
    HEAD: tl.constexpr,
    SIZE: tl.constexpr,
    LEAST: tl.constexpr,  # chunks of a part
    BLOCK_H: tl.constexpr,  # a power of two, at least HEADS / GROUPS
    BLOCK_D: tl.constexpr,  # a power of two, at least HEAD / 2
    BLOCK_K: tl.constexpr,
):
    SHARE: tl.constexpr = HEADS // GROUPS
    HALF: tl.constexpr = HEAD // 2
    own = tl.program_id(0)
    sequence = (own // GROUPS).to(tl.int64)
    group = own % GROUPS
    part = tl.program_id(1)
    before = tl.load(lengths + sequence) - 1  # keys that are there already
    chunks = tl.cdiv(before, BLOCK_K)
    each = tl.maximum(tl.cdiv(chunks, parts), LEAST)
    used = tl.maximum(tl.cdiv(chunks, each), 1)
    if part >= used:
        return

    # halves of a head apart: element i is turned with element i + HEAD / 2
    i = tl.arange(0, BLOCK_D)
    inside = i < HALF
    turn = turns + sequence * (2 * HEAD) + HALF + i
    cos = tl.load(turn, inside, 0.0).to(tl.float32)
    sin = tl.load(turn + HEAD, inside, 0.0).to(tl.float32)
    dtype = out.dtype.element_ty
    head = tl.arange(0, BLOCK_H)
    mine = (head < SHARE)[:, None] & inside[None, :]
    query = qkv + sequence * ROW + (group * SHARE + head)[:, None] * HEAD + i[None, :]
    one = tl.load(query, mine, 0.0).to(tl.float32)
    two = tl.load(query + HALF, mine, 0.0).to(tl.float32)
    q_one = (one * cos[None, :] - two * sin[None, :]).to(dtype)  # [H, D]
    q_two = (two * cos[None, :] + one * sin[None, :]).to(dtype)

    # the new key and value, which the first part counts in and keeps
    first = part == 0
    kept = inside & (i + part * BLOCK_D < HALF)
    new = qkv + sequence * ROW + (HEADS + group) * HEAD + i
    one = tl.load(new, inside, 0.0).to(tl.float32)
    two = tl.load(new + HALF, inside, 0.0).to(tl.float32)
    k_one = (one * cos - two * sin).to(dtype)  # [D]
    k_two = (two * cos + one * sin).to(dtype)
    v_one = tl.load(new + GROUPS * HEAD, inside, 0.0)
    v_two = tl.load(new + GROUPS * HEAD + HALF, inside, 0.0)
    cell = (tl.load(rows + sequence) * GROUPS + group) * HEAD + i
    tl.store(keys + cell, k_one, kept)
    tl.store(keys + cell + HALF, k_two, kept)
    tl.store(values + cell, v_one, kept)
    tl.store(values + cell + HALF, v_two, kept)
    score = tl.sum(q_one.to(tl.float32) * k_one.to(tl.float32)[None, :], 1)
    score += tl.sum(q_two.to(tl.float32) * k_two.to(tl.float32)[None, :], 1)
    highest = tl.where(first, score * scale, float("-inf"))  # [H], in powers of two
    total = tl.zeros([BLOCK_H], tl.float32) + tl.where(first, 1.0, 0.0)
    start_one = tl.where(first, v_one.to(tl.float32), 0.0)
    start_two = tl.where(first, v_two.to(tl.float32), 0.0)
    main_one = tl.zeros([BLOCK_H, BLOCK_D], tl.float32) + start_one[None, :]
    main_two = tl.zeros([BLOCK_H, BLOCK_D], tl.float32) + start_two[None, :]

    begin = part * each * BLOCK_K
    stop = tl.minimum((part + 1) * each * BLOCK_K, before)
    entries = table + sequence * width
    # where a chunk of keys lies in one block, its number is asked for a turn before the keys are: copies of keys whose
    # addresses hang on a load of the same turn get no second buffer
    following = tl.load(entries + begin // SIZE, begin < stop, 0)
    for start in range(begin, stop, BLOCK_K):
        key = start + tl.arange(0, BLOCK_K)
        seen = key < stop
        if SIZE % BLOCK_K == 0:
            block = following.to(tl.int64)
            following = tl.load(entries + (start + BLOCK_K) // SIZE, start + BLOCK_K < stop, 0)
        else:
            block = tl.load(entries + key // SIZE, seen, 0).to(tl.int64)
        cells = ((block * SIZE + key % SIZE) * GROUPS + group)[:, None] * HEAD + i[None, :]
        there = seen[:, None] & inside[None, :] if BLOCK_D > HALF else seen[:, None]
        k_first = tl.load(keys + cells, there, 0.0)  # [K, D]
        k_second = tl.load(keys + cells + HALF, there, 0.0)
        v_first = tl.load(values + cells, there, 0.0)
        v_second = tl.load(values + cells + HALF, there, 0.0)
        scores = tl.dot(q_one, k_first.T, input_precision="ieee")  # [H, K]
        scores = tl.dot(q_two, k_second.T, scores, input_precision="ieee")
        scores = tl.where(seen[None, :], scores * scale, float("-inf"))
        now = tl.maximum(highest, tl.max(scores, 1))
        # a row of scores that are all -inf has no largest one to take off
        off = tl.where(now == float("-inf"), 0.0, now)
        weight = tl.exp2(scores - off[:, None])
        shrink = tl.exp2(highest - off)
        total = total * shrink + tl.sum(weight, 1)
        weight = weight.to(dtype)
        main_one = tl.dot(weight, v_first, main_one * shrink[:, None], input_precision="ieee")
        main_two = tl.dot(weight, v_second, main_two * shrink[:, None], input_precision="ieee")
        highest = now

    result = out + (sequence * HEADS + group * SHARE + head)[:, None] * HEAD + i[None, :]
    if used == 1:
        tl.store(result, (main_one / total[:, None]).to(dtype), mine)
        tl.store(result + HALF, (main_two / total[:, None]).to(dtype), mine)
        return

    line = own.to(tl.int64) * parts
    at = sums + ((line + part) * SHARE + head)[:, None] * HEAD + i[None, :]
    tl.store(at, main_one, mine)
    tl.store(at + HALF, main_two, mine)
    tl.store(weights + (line + part) * (2 * SHARE) + head, highest, head < SHARE)
    tl.store(weights + (line + part) * (2 * SHARE) + SHARE + head, total, head < SHARE)
    tl.debug_barrier()  # all threads have written before one of them says so
    if tl.atomic_add(arrivals + own, 1, sem="acq_rel") < used - 1:
        return
    # the last one: what the others wrote comes before their arrivals
    highest = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    main_one = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    main_two = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    for p in range(used):
        at = sums + ((line + p) * SHARE + head)[:, None] * HEAD + i[None, :]
        high = tl.load(weights + (line + p) * (2 * SHARE) + head, head < SHARE, 0.0)
        now = tl.maximum(highest, high)
        off = tl.where(now == float("-inf"), 0.0, now)
        shrink = tl.exp2(highest - off)
        grow = tl.exp2(high - off)
        total = total * shrink + grow * tl.load(weights + (line + p) * (2 * SHARE) + SHARE + head, head < SHARE, 0.0)
        main_one = main_one * shrink[:, None] + grow[:, None] * tl.load(at, mine, 0.0)
        main_two = main_two * shrink[:, None] + grow[:, None] * tl.load(at + HALF, mine, 0.0)
        highest = now
    total = tl.where(head < SHARE, total, 1.0)
    tl.store(result, (main_one / total[:, None]).to(dtype), mine)
    tl.store(result + HALF, (main_two / total[:, None]).to(dtype), mine)
    tl.atomic_xchg(arrivals + own, 0, sem="relaxed")


def paged_attention(
    qkv: torch.Tensor,
    turns: torch.Tensor,
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    arrivals: torch.Tensor,
) -> torch.Tensor:
    """As `pixelrefer_fast.ops.paged_attention`; keys and values are contiguous."""
    batch, all_heads, head_dim = qkv.shape
    size, groups = keys.shape[1:3]
    heads = all_heads - 2 * groups
    qkv, table = qkv.contiguous(), table if table.stride(1) == 1 else table.contiguous()
    out = qkv.new_empty(batch, heads, head_dim)
    parts = parts_of(batch * groups)
    spread = batch * groups if parts > 1 else 0
    sums = torch.empty(spread, parts, heads // groups, head_dim, dtype=torch.float32, device=qkv.device)
    weights = torch.empty(spread, parts, 2, heads // groups, dtype=torch.float32, device=qkv.device)
    name = _name(qkv.dtype)
    launch(
        _paged_attention,
        name,
        (batch * groups, parts),
        qkv,
        turns.contiguous(),
        rows.contiguous(),
        keys,
        values,
        table,
        lengths.contiguous(),
        arrivals,
        sums,
        weights,
        out,
        table.stride(0),
        parts,
        math.log2(math.e) / math.sqrt(head_dim),
        # without the keys and values that are there already: how many, only the device knows
        moved=(qkv.numel() + turns.numel() // 2 + 2 * batch * groups * head_dim + out.numel()) * qkv.element_size(),
        ROW=all_heads * head_dim,
        HEADS=heads,
        GROUPS=groups,
        HEAD=head_dim,
        SIZE=size,
        LEAST=LEAST_CHUNKS,
        **_blocks(heads, groups, head_dim),
        **configuration(name, head_dim, qkv.device),
    )
    return out


def parts_of(programs: int) -> int:
    """In how many parts the keys of a sequence may be computed, where so many programs have one each."""
    return max(1, min(MOST_PARTS, PROGRAMS // max(programs, 1)))


def _name(dtype: torch.dtype) -> str:
    return "paged_attention.attention_float32" if dtype == torch.float32 else "paged_attention.attention"


def _blocks(heads: int, groups: int, head_dim: int) -> dict[str, int]:
    """Rows and columns of a program's queries, as a matrix product takes them: powers of two from 16 on."""
    return {
        "BLOCK_H": max(16, next_power_of_2(heads // groups)),
        "BLOCK_D": max(16, next_power_of_2(head_dim // 2)),
    }


def compile_cases() -> Iterator[CompileCase]:
    for dtypes in (("fp16", "bf16"), ("fp32",)):
        name = _name(torch.float32 if dtypes == ("fp32",) else torch.float16)
        for (device, entry), dtype in itertools.product(shipped(name), dtypes):
            head = entry.get("upto", 256)
            heads, groups = 12, 2
            floats = ("qkv", "turns", "keys", "values", "out")
            yield CompileCase(
                kernel=_paged_attention,
                name=name,
                shape=f"{dtype}, {heads} heads of {head}, {groups} of keys, {device}",
                signature={
                    **dict.fromkeys(floats, f"*{dtype}"),
                    "rows": "*i64",
                    **dict.fromkeys(("table", "lengths", "arrivals"), "*i32"),
                    **dict.fromkeys(("sums", "weights"), "*fp32"),
                    "width": "i32",
                    "parts": "i32",
                    "scale": "fp32",
                },
                constants={
                    "ROW": (heads + 2 * groups) * head,
                    "HEADS": heads,
                    "GROUPS": groups,
                    "HEAD": head,
                    "SIZE": 64,
                    "LEAST": LEAST_CHUNKS,
                    **_blocks(heads, groups, head),
                    **{k: v for k, v in entry.items() if k.startswith("BLOCK")},
                },
                options={k: entry[k] for k in OPTIONS},  # 16 rows of queries are too few for wgmma
            )
