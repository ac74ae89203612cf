"""Sequences in blocks for the tests of paged_attention, and what their attention is, one by one."""

from __future__ import annotations

import torch

Case = tuple[torch.Tensor, ...]


def paged_case(
    lengths: list[int],
    size: int,
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype = torch.float32,
    spare: int = 0,
    device: torch.device | str = "cpu",
) -> Case:
    """Blocks in any order, some of nobody between them; rows behind each length are anything finite."""
    generator = torch.Generator().manual_seed(sum(lengths))
    needed = [-(-n // size) for n in lengths]
    blocks = sum(needed) + 2
    qkv = torch.randn(len(lengths), heads[0] + 2 * heads[1], head_dim, generator=generator).to(dtype)
    angles = torch.rand(len(lengths), head_dim // 2, generator=generator) * 6
    turns = torch.stack([angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], 1)], 1).to(dtype)
    k, v = (torch.randn(blocks, size, heads[1], head_dim, generator=generator).to(dtype) for _ in range(2))
    order = torch.randperm(blocks, generator=generator)
    table = torch.zeros(len(lengths), max(needed, default=0) + spare, dtype=torch.int32)
    for i, count in enumerate(needed):
        table[i, :count] = order[sum(needed[:i]) : sum(needed[: i + 1])]
    rows = [int(table[i, (n - 1) // size]) * size + (n - 1) % size for i, n in enumerate(lengths)]
    arrivals = torch.zeros(len(lengths) * heads[1], dtype=torch.int32)
    case = qkv, turns, torch.tensor(rows, dtype=torch.int64), k, v, table, torch.tensor(lengths, dtype=torch.int32)
    return tuple(x.to(device) for x in (*case, arrivals))


def exactly(case: Case, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attention in this dtype, and keys and values afterwards."""
    qkv, turns, keys, values = (x.to(dtype) for x in (*case[:2], *case[3:5]))
    rows, table, lengths = case[2], *case[5:7]
    keys, values = keys.clone(), values.clone()
    groups, head_dim = keys.shape[2:]
    heads, half = qkv.shape[1] - 2 * groups, head_dim // 2
    turning = qkv[:, : heads + groups]
    one, two = turning[..., :half], turning[..., half:]
    cos, sin = turns[:, 0, None, :half], turns[:, 1, None, half:]
    turned = torch.cat([one * cos - two * sin, two * cos + one * sin], -1)
    keys.flatten(0, 1)[rows] = turned[:, heads:]
    values.flatten(0, 1)[rows] = qkv[:, heads + groups :]
    out = qkv.new_zeros(len(qkv), heads, head_dim)
    for i, length in enumerate(lengths.tolist()):
        own = [x[table[i].long()].flatten(0, 1)[:length].repeat_interleave(heads // groups, 1) for x in (keys, values)]
        scores = torch.einsum("hd,shd->hs", turned[i, :heads], own[0]) * head_dim**-0.5
        out[i] = torch.einsum("hs,shd->hd", scores.softmax(-1), own[1])
    return out, keys, values
