"""Attention within each sequence of a packed batch, in one launch: blocks of queries against their own keys only."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl

from pixelrefer_fast.kernels._launch import OPTIONS, CompileCase, configuration, launch, shipped
from pixelrefer_fast.kernels._sizes import cdiv, next_power_of_2


@triton.jit
def _attend(
    main,  # [Q, MAIN] float32: sums of weighted values
    rest,  # [Q, REST] float32: their other columns, unused without any
    total,  # [Q] float32: sum of the weights
    highest,  # [Q] float32: largest score, in powers of two
    q_main,  # [Q, MAIN]
    q_rest,  # [Q, REST], unused likewise
    k,  # [keys, d], the sequence's first key of this head
    v,  # [keys, d]
    start,
    stop,
    keys,
    last,  # the last key that the first query sees, unused unless CAUSAL
    scale,
    K_ROW: tl.constexpr,
    V_ROW: tl.constexpr,
    HEAD: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_K: tl.constexpr,
    RAGGED: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Online softmax over the keys from start to stop; RAGGED where a block may reach beyond what is seen."""
    column = tl.arange(0, MAIN)[None, :]
    over = MAIN + tl.arange(0, REST if REST else 16)[None, :]
    for at in range(start, stop, BLOCK_K):
        key = at + tl.arange(0, BLOCK_K)
        row = key.to(tl.int64)[:, None]
        inside = (key < keys)[:, None] if RAGGED else tl.full([BLOCK_K, 1], True, tl.int1)
        columns = inside & (column < HEAD) if MAIN > HEAD else inside
        k_main = tl.load(k + row * K_ROW + column, columns, 0.0)  # [K, MAIN]
        v_main = tl.load(v + row * V_ROW + column, columns, 0.0)
        score = tl.dot(q_main, k_main.T, input_precision="ieee")  # [Q, K]
        if REST:
            k_rest = tl.load(k + row * K_ROW + over, inside & (over < HEAD), 0.0)  # [K, REST]
            v_rest = tl.load(v + row * V_ROW + over, inside & (over < HEAD), 0.0)
            score = tl.dot(q_rest, k_rest.T, score, input_precision="ieee")
        if RAGGED:
            # rows behind the last query see keys that are not there, and are not stored
            ahead = key[None, :] - tl.arange(0, q_main.shape[0])[:, None]
            visible = ahead <= last if CAUSAL else (key < keys)[None, :]
            score = tl.where(visible, score, float("-inf"))
        now = tl.maximum(highest, tl.max(score, 1) * scale)  # [Q]
        # a row of scores that are all -inf has no largest one to take off
        off = tl.where(now == float("-inf"), 0.0, now)
        weight = tl.exp2(score * scale - off[:, None])  # [Q, K]
        shrink = tl.exp2(highest - off)
        total = total * shrink + tl.sum(weight, 1)
        weight = weight.to(v.dtype.element_ty)
        main = tl.dot(weight, v_main, main * shrink[:, None], input_precision="ieee")
        if REST:
            rest = tl.dot(weight, v_rest, rest * shrink[:, None], input_precision="ieee")
        highest = now
    return main, rest, total, highest


@triton.jit(do_not_specialize=["blocks"])
def _varlen_attention(
    q,  # [Pq, H, d] float
    k,  # [Pk, H / GROUP, d] same dtype
    v,  # [Pk, H / GROUP, d] same dtype
    out,  # [Pq, H, d] same dtype, contiguous
    cu_seqlens_q,  # [V + 1] int32
    cu_seqlens_k,  # [V + 1] int32
    blocks,
    scale,
    Q_ROW: tl.constexpr,
    Q_HEAD: tl.constexpr,
    K_ROW: tl.constexpr,
    K_HEAD: tl.constexpr,
    V_ROW: tl.constexpr,
    V_HEAD: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD: tl.constexpr,
    GROUP: tl.constexpr,
    CAUSAL: tl.constexpr,
    MAIN: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    sequence = tl.program_id(0) // blocks
    head = tl.program_id(1)
    first_q = tl.load(cu_seqlens_q + sequence)
    queries = tl.load(cu_seqlens_q + sequence + 1) - first_q
    first = tl.program_id(0) % blocks * BLOCK_Q
    if first >= queries:
        return
    first_k = tl.load(cu_seqlens_k + sequence)
    keys = tl.load(cu_seqlens_k + sequence + 1) - first_k
    k += first_k.to(tl.int64) * K_ROW + head // GROUP * K_HEAD
    v += first_k.to(tl.int64) * V_ROW + head // GROUP * V_HEAD

    query = first + tl.arange(0, BLOCK_Q)
    inside = (query < queries)[:, None]
    row = (first_q + query).to(tl.int64)[:, None]
    column = tl.arange(0, MAIN)[None, :]
    over = MAIN + tl.arange(0, REST if REST else 16)[None, :]
    columns = inside & (column < HEAD) if MAIN > HEAD else inside
    q += row * Q_ROW + head * Q_HEAD
    q_main = tl.load(q + column, columns, 0.0)  # [Q, MAIN]
    q_rest = tl.load(q + over, inside & (over < HEAD), 0.0)  # [Q, REST]
    main = tl.zeros([BLOCK_Q, MAIN], tl.float32)
    rest = tl.zeros([BLOCK_Q, REST if REST else 16], tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    highest = tl.full([BLOCK_Q], float("-inf"), tl.float32)

    # the last query stands at the last key; all see the keys before `full`, none one from `stop` on
    last = first + keys - queries
    full = keys // BLOCK_K * BLOCK_K
    stop = keys
    if CAUSAL:
        full = tl.maximum(tl.minimum(last + 1, keys), 0) // BLOCK_K * BLOCK_K
        stop = tl.maximum(tl.minimum(last + BLOCK_Q, keys), 0)
    main, rest, total, highest = _attend(
        main, rest, total, highest, q_main, q_rest, k, v, 0, full, keys, last, scale,
        K_ROW, V_ROW, HEAD, MAIN, REST, BLOCK_K, RAGGED=False, CAUSAL=CAUSAL,
    )  # fmt: skip
    main, rest, total, highest = _attend(
        main, rest, total, highest, q_main, q_rest, k, v, full, stop, keys, last, scale,
        K_ROW, V_ROW, HEAD, MAIN, REST, BLOCK_K, RAGGED=True, CAUSAL=CAUSAL,
    )  # fmt: skip

    # without keys nothing was summed, and the result is zero
    total = tl.where(total == 0.0, 1.0, total)[:, None]
    out += row * (HEADS * HEAD) + head * HEAD
    tl.store(out + column, (main / total).to(out.dtype.element_ty), columns)
    if REST:
        tl.store(out + over, (rest / total).to(out.dtype.element_ty), inside & (over < HEAD))


def varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_q: int,
    max_k: int,
    causal: bool = False,
) -> torch.Tensor:
    """As `pixelrefer_fast.ops.varlen_attention`; the last dimension of q, k and v is contiguous."""
    patches, heads, head_dim = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    name = _name(q.dtype, causal)
    config = configuration(name, head_dim, q.device)
    blocks = cdiv(max_q, config["BLOCK_Q"])
    launch(
        _varlen_attention,
        name,
        (blocks * (len(cu_seqlens_q) - 1), heads),
        q,
        k,
        v,
        out,
        cu_seqlens_q.contiguous(),
        cu_seqlens_k.contiguous(),
        blocks,
        math.log2(math.e) / math.sqrt(head_dim),
        # at most: how long each sequence is, only the device knows
        flops=4 * patches * max_k * heads * head_dim,
        moved=(2 * q.numel() + k.numel() + v.numel()) * q.element_size(),
        Q_ROW=q.stride(0),
        Q_HEAD=q.stride(1),
        K_ROW=k.stride(0),
        K_HEAD=k.stride(1),
        V_ROW=v.stride(0),
        V_HEAD=v.stride(1),
        HEADS=heads,
        HEAD=head_dim,
        GROUP=heads // k.shape[1] if heads else 1,
        CAUSAL=causal,
        **_split(head_dim),
        **config,
    )
    return out


def _name(dtype: torch.dtype, causal: bool) -> str:
    # float32 has no tensor cores, and a causal mask takes registers: other blocks
    kind = "causal" if causal else "attention"
    return f"varlen_attention.{kind}_float32" if dtype == torch.float32 else f"varlen_attention.{kind}"


def _split(head_dim: int) -> dict[str, int]:
    """A head in two blocks of columns, powers of two from 16 on: 72 is 64 and 8 in 16, not 72 in 128."""
    main = max(16, 1 << (head_dim.bit_length() - 1))
    rest = head_dim - main
    return {"MAIN": main, "REST": max(16, next_power_of_2(rest)) if rest > 0 else 0}


def compile_cases() -> Iterator[CompileCase]:
    for dtypes, causal in itertools.product((("fp16", "bf16"), ("fp32",)), (False, True)):
        name = _name(torch.float32 if dtypes == ("fp32",) else torch.float16, causal)
        # the encoder's heads are parts of one product, the LLM's are three products
        heads, group = (12, 6) if causal else (16, 1)
        shared = f", {heads // group} of keys, causal" if causal else ""
        for device, entry in shipped(name):
            head = entry.get("upto", 256)
            rows = (
                {"Q": heads * head, "K": heads // group * head} if causal else {"Q": 3 * 16 * head, "K": 3 * 16 * head}
            )
            for dtype in dtypes:
                yield CompileCase(
                    kernel=_varlen_attention,
                    name=name,
                    shape=f"{dtype}, {heads} heads of {head}{shared}, {device}",
                    signature={
                        **dict.fromkeys(("q", "k", "v", "out"), f"*{dtype}"),
                        "cu_seqlens_q": "*i32",
                        "cu_seqlens_k": "*i32",
                        "blocks": "i32",
                        "scale": "fp32",
                    },
                    constants={
                        "Q_ROW": rows["Q"],
                        "K_ROW": rows["K"],
                        "V_ROW": rows["K"],
                        **{f"{x}_HEAD": head for x in "QKV"},
                        "HEADS": heads,
                        "HEAD": head,
                        "GROUP": group,
                        "CAUSAL": causal,
                        **_split(head),
                        **{k: v for k, v in entry.items() if k.startswith("BLOCK")},
                    },
                    options={k: entry[k] for k in OPTIONS},
                    matrix=True,
                )
