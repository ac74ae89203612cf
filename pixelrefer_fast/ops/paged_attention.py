"""Attention of one new token of each sequence over keys and values that lie in blocks, its own among them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from pixelrefer_fast.ops import _attention_libraries as libraries
from pixelrefer_fast.ops._causal import attend
from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_HEAD = 256  # of the Triton kernel


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    def make(lengths: list[int], size: int, heads: tuple[int, int], head_dim: int) -> tuple:
        needed = [-(-n // size) for n in lengths]
        width = max(needed, default=0) + 1
        blocks = sum(needed) + 1
        qkv = torch.randn(len(lengths), heads[0] + 2 * heads[1], head_dim, generator=generator).to(dtype)
        angles = torch.rand(len(lengths), head_dim // 2, generator=generator)
        turns = torch.stack([angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], 1)], 1).to(dtype)
        k, v = (torch.randn(blocks, size, heads[1], head_dim, generator=generator).to(dtype) for _ in range(2))
        table = torch.zeros(len(lengths), width, dtype=torch.int32)
        order = torch.randperm(blocks - 1, generator=generator) + 1
        for i, count in enumerate(needed):
            table[i, :count] = order[sum(needed[:i]) : sum(needed[: i + 1])]
        last = torch.tensor(lengths, dtype=torch.int64) - 1
        rows = table.gather(1, (last // size)[:, None])[:, 0] * size + last % size
        arrivals = torch.zeros(len(lengths) * heads[1], dtype=torch.int32)
        return qkv, turns, rows, k, v, table, torch.tensor(lengths, dtype=torch.int32), arrivals

    yield make([5, 1, 9], 4, (4, 2), 16)
    yield make([17], 8, (3, 3), 72)
    yield make([1, 3, 16], 8, (6, 1), 8)
    yield make([], 4, (2, 2), 8)


@register_op(
    source="attention of transformers models/qwen2/modeling_qwen2.py with one query of each sequence",
    tolerance={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    samples=_samples,
    mutates=("keys", "values", "arrivals"),
)
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
    """softmax(q kᵀ / sqrt(d)) v of one new token of each sequence, whose key and value are put into the cache first.

    Queries and keys are turned by the token's place: element i of a head together with element i + d / 2.

    Args:
        qkv: (B, H + 2G, d), any float dtype: H heads of queries, G of keys, G of values. d is even; G divides H: each
            head of keys and values serves H / G neighbouring heads of the queries.
        turns: (B, 2, d) same dtype: cosines of each token's place, and its sines; the first half is the second one over
            again, sines negative. A kernel reads the second halves.
        rows: (B,) int64: the row of the cache (block * size + place in it) that the token's key and value go to.
        keys, values: (blocks, size, G, d), same dtype, contiguous; written to. Rows of a sequence's blocks behind its
            length hold finite numbers for the definition, and anything for a kernel.
        table: (B, W) int32: the blocks of each sequence, in order. Those behind its length may be any.
        lengths: (B,) int32: keys of each sequence, the new one included: from 1 to W * size.
        arrivals: (B * G or more,) int32 zeros, which are zeros again afterwards: who computes the keys of a sequence in
            parts counts in it which part is the last.

    Returns:
        (B, H, d).

    Raises:
        ValueError: for shapes or dtypes that do not fit. The numbers in `rows`, `table` and `lengths` are not read by
            the host.
    """
    (size, groups, head_dim), batch, width = keys.shape[1:], len(qkv), table.shape[1]
    q = _into_cache(qkv, turns, rows, keys, values)
    if not batch:
        return q.clone()
    # (B, G, W * size, d)
    blocks = table.flatten().long()
    k, v = (
        x.index_select(0, blocks).view(batch, width * size, groups, head_dim).transpose(1, 2) for x in (keys, values)
    )
    # the heads of a group are queries of one head
    grouped = q.unflatten(1, (groups, q.shape[1] // groups))
    seen = torch.arange(width * size, device=qkv.device) < lengths[:, None]
    return attend(grouped, k, v, attn_mask=seen[:, None, None]).flatten(1, 2)


def _into_cache(
    qkv: torch.Tensor, turns: torch.Tensor, rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Keys, turned, and values into their rows; the queries (B, H, d), turned."""
    groups = keys.shape[2]
    heads = qkv.shape[1] - 2 * groups
    cos, sin = turns[:, :, None].unbind(1)
    x = qkv[:, : heads + groups]
    turned = x * cos + x.roll(x.shape[-1] // 2, -1) * sin
    keys.flatten(0, 1).index_copy_(0, rows, turned[:, heads:])
    values.flatten(0, 1).index_copy_(0, rows, qkv[:, heads + groups :])
    return turned[:, :heads]


@paged_attention.check
def _check(
    qkv: torch.Tensor,
    turns: torch.Tensor,
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    arrivals: torch.Tensor,
) -> None:
    name = "paged_attention"
    check_shape(name, "qkv", qkv, None, None, None)
    batch, all_heads, head_dim = qkv.shape
    check_shape(name, "keys", keys, None, None, None, head_dim)
    groups = keys.shape[2]
    heads = all_heads - 2 * groups
    if not groups or heads < 1 or heads % groups:
        raise ValueError(
            f"{name}: expected keys of so many heads that qkv's {all_heads} are a multiple of them and two times them, "
            f"got {groups}"
        )
    if head_dim % 2:
        raise ValueError(f"{name}: expected heads of an even size, got {head_dim}")
    check_shape(name, "turns", turns, batch, 2, head_dim)
    check_shape(name, "values", values, *keys.shape)
    check_shape(name, "rows", rows, batch)
    check_shape(name, "table", table, batch, None)
    check_shape(name, "lengths", lengths, batch)
    check_shape(name, "arrivals", arrivals, None)
    for label, tensor in (("turns", turns), ("keys", keys), ("values", values)):
        check_dtype(name, label, tensor, qkv.dtype)
    check_dtype(name, "rows", rows, torch.int64)
    for label, tensor in (("table", table), ("lengths", lengths), ("arrivals", arrivals)):
        check_dtype(name, label, tensor, torch.int32)
    if len(arrivals) < batch * groups:
        raise ValueError(f"{name}: expected arrivals of {batch * groups} or more, got {len(arrivals)}")
    check_device(
        name, qkv.device, turns=turns, rows=rows, keys=keys, values=values, table=table, lengths=lengths,
        arrivals=arrivals,
    )  # fmt: skip


@paged_attention.fake
def _fake(qkv: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    return qkv.new_empty(len(qkv), qkv.shape[1] - 2 * keys.shape[2], qkv.shape[2])


def _accepts(qkv: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> Reason:
    if qkv.dtype not in KERNEL_DTYPES:
        return f"it computes float32, float16 and bfloat16, not {qkv.dtype}"
    if qkv.shape[2] > LARGEST_HEAD:
        return f"it takes head sizes up to {LARGEST_HEAD}, not {qkv.shape[2]}"
    if not (keys.is_contiguous() and values.is_contiguous()):
        return "keys and values are not contiguous"
    return None


paged_attention.kernel(accepts=_accepts)  # before the library: one launch instead of six


@paged_attention.provider(
    "flash_attn_3", available=partial(libraries.available, libraries.PAGED), accepts=libraries.paged_accepts
)
def _flash_attn_3(
    qkv: torch.Tensor,
    turns: torch.Tensor,
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    lengths: torch.Tensor,
    arrivals: torch.Tensor,
) -> torch.Tensor:
    return libraries.paged_run(_into_cache(qkv, turns, rows, keys, values), keys, values, table, lengths)
