"""paged_attention of one layer and one step: 12 heads of 128 on 2 of keys and values (Lite-2B), blocks of 64 tokens."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from _case import Arguments, Case, normal

HEADS, GROUPS, HEAD, SIZE = 12, 2, 128, 64


def cases() -> Iterator[Case]:
    yield _case("2 sequences of 5 and 70 tokens", [5, 70], smoke=True)
    yield _case("1 sequence of 100 tokens", [100])
    yield _case("8 sequences of 100 tokens", [100] * 8)
    yield _case("64 sequences of 60 to 123 tokens", list(range(60, 124)))
    yield _case("8 sequences of 10,000 tokens", [10000] * 8)


def _case(name: str, lengths: Sequence[int], smoke: bool = False) -> Case:
    return Case(
        "paged_attention",
        name,
        functools.partial(_arguments, list(lengths)),
        flops=4 * sum(lengths) * HEADS * HEAD,
        # keys and values once, queries and results
        moved=lambda dtype: 2 * (sum(lengths) * GROUPS + len(lengths) * HEADS) * HEAD * dtype.itemsize,
        smoke=smoke,
    )


def _arguments(lengths: list[int], device: torch.device, dtype: torch.dtype) -> Arguments:
    needed = [-(-n // SIZE) for n in lengths]
    q = normal((len(lengths), HEADS, HEAD), 0, device, dtype)
    keys, values = (normal((sum(needed) + 1, SIZE, GROUPS, HEAD), seed, device, dtype) for seed in (1, 2))
    table = torch.zeros(len(lengths), max(needed), dtype=torch.int32)
    for i, count in enumerate(needed):
        table[i, :count] = torch.arange(count) + 1 + sum(needed[:i])
    return q, keys, values, table.to(device), torch.tensor(lengths, dtype=torch.int32, device=device)
