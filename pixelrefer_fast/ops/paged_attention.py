"""Attention of one new token of each sequence over keys and values that lie in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrefer_fast.ops._causal import attend
from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import register_op


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    def make(lengths: list[int], size: int, heads: tuple[int, int], head_dim: int) -> tuple:
        needed = [-(-n // size) for n in lengths]
        width = max(needed, default=0) + 1
        blocks = sum(needed) + 1
        q = torch.randn(len(lengths), heads[0], head_dim, generator=generator).to(dtype)
        k, v = (torch.randn(blocks, size, heads[1], head_dim, generator=generator).to(dtype) for _ in range(2))
        table = torch.zeros(len(lengths), width, dtype=torch.int32)
        order = torch.randperm(blocks - 1, generator=generator) + 1
        for i, count in enumerate(needed):
            table[i, :count] = order[sum(needed[:i]) : sum(needed[: i + 1])]
        return q, k, v, table, torch.tensor(lengths, dtype=torch.int32)

    yield make([5, 1, 9], 4, (4, 2), 16)
    yield make([17], 8, (3, 3), 72)
    yield make([0, 3, 16], 8, (6, 1), 8)
    yield make([], 4, (2, 2), 8)


@register_op(
    source="attention of transformers models/qwen2/modeling_qwen2.py with one query of each sequence",
    tolerance={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    samples=_samples,
)
def paged_attention(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(d)) v of one query of each sequence over its own keys.

    Args:
        q: (B, H, d), any float dtype.
        keys, values: (blocks, size, G, d), same dtype; G divides H: each of their heads serves H / G neighbouring heads
            of the queries. Rows of a sequence's blocks behind its length hold finite numbers.
        table: (B, W) int32: the blocks of each sequence, in order. Those behind its length may be any.
        lengths: (B,) int32: keys of each sequence, at most W * size.

    Returns:
        (B, H, d). A sequence without keys gives zeros.

    Raises:
        ValueError: for shapes or dtypes that do not fit. The numbers in `table` and `lengths` are not read by the host.
    """
    batch, heads, head_dim = q.shape
    size, groups = keys.shape[1:3]
    width = table.shape[1]
    # (B, G, W * size, d)
    blocks = table.flatten().long()
    k, v = (
        x.index_select(0, blocks).view(batch, width * size, groups, head_dim).transpose(1, 2) for x in (keys, values)
    )
    # the heads of a group are queries of one head
    grouped = q.unflatten(1, (groups, heads // max(groups, 1)))
    seen = torch.arange(width * size, device=q.device) < lengths[:, None]
    if not batch:
        return q.new_zeros(q.shape)
    out = attend(grouped, k, v, attn_mask=seen[:, None, None]).flatten(1, 2)
    return out.masked_fill((lengths == 0)[:, None, None], 0)


@paged_attention.check
def _check(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, table: torch.Tensor, lengths: torch.Tensor
) -> None:
    check_shape("paged_attention", "q", q, None, None, None)
    check_shape("paged_attention", "keys", keys, None, None, None, q.shape[2])
    groups = keys.shape[2]
    if not groups or q.shape[1] % groups:
        raise ValueError(
            f"paged_attention: expected keys of as many heads as q or of a divisor of its {q.shape[1]}, got {groups}"
        )
    check_shape("paged_attention", "values", values, *keys.shape)
    check_shape("paged_attention", "table", table, len(q), None)
    check_shape("paged_attention", "lengths", lengths, len(q))
    for name, tensor in (("keys", keys), ("values", values)):
        check_dtype("paged_attention", name, tensor, q.dtype)
    for name, tensor in (("table", table), ("lengths", lengths)):
        check_dtype("paged_attention", name, tensor, torch.int32)
    check_device("paged_attention", q.device, keys=keys, values=values, table=table, lengths=lengths)


@paged_attention.fake
def _fake(q: torch.Tensor) -> torch.Tensor:
    return q.new_empty(q.shape)
