"""varlen_attention on one layer of real requests.

The encoder's views have 16 heads of 72, parts of one product; the LLM's prompts, causal, 12 heads of 128 on 2 of
keys and values (Lite-2B).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from _case import Arguments, Case, normal

HEADS, HEAD = 16, 72
LLM = 12, 2, 128
CONTEXT = [256, 576]  # local and global view of an image


def cases() -> Iterator[Case]:
    yield _case("5 and 3 patches", [5, 3], smoke=True)
    yield _case("1 object of an image", [150, *CONTEXT])
    yield _case("8 objects of an image", [*range(115, 186, 10), *CONTEXT])
    yield _case("8 objects of an image, last layer: half of the crops' patches", [*range(115, 186, 10), *CONTEXT], 2)
    yield _case("20 frames of 480x854", [34 * 60] * 20)
    yield _case("1 view of 16,384 patches", [16384])
    yield _prompts("prompts of 4 and 2 tokens", [4, 2], [4, 2], smoke=True)
    yield _prompts("1 prompt of 60 tokens", [60], [60])
    yield _prompts("64 prompts of 40 to 71 tokens", [40 + i % 32 for i in range(64)], [40 + i % 32 for i in range(64)])
    yield _prompts("64 questions of 20 tokens on a beginning of 770", [20] * 64, [790] * 64)
    yield _prompts("1 prompt of 10,000 tokens", [10000], [10000])


def _case(name: str, keys: Sequence[int], skipped: int = 1, smoke: bool = False) -> Case:
    """Of every view that is not a context view one query in `skipped` is asked for."""
    queries = [n if n in CONTEXT else n // skipped for n in keys]
    return Case(
        "varlen_attention",
        name,
        functools.partial(_arguments, queries, list(keys)),
        # two products over every pair of a query and a key of its view
        flops=sum(4 * a * b for a, b in zip(queries, keys, strict=True)) * HEADS * HEAD,
        moved=lambda dtype: 2 * (sum(queries) + sum(keys)) * HEADS * HEAD * dtype.itemsize + 8 * (len(keys) + 1),
        smoke=smoke,
    )


def _prompts(name: str, queries: Sequence[int], keys: Sequence[int], smoke: bool = False) -> Case:
    heads, groups, head = LLM
    pairs = sum(a * b - a * (a - 1) // 2 for a, b in zip(queries, keys, strict=True))
    return Case(
        "varlen_attention",
        name,
        functools.partial(_prompt_arguments, list(queries), list(keys)),
        flops=4 * pairs * heads * head,
        moved=lambda dtype: (
            2 * (sum(queries) * heads + sum(keys) * groups) * head * dtype.itemsize + 8 * (len(keys) + 1)
        ),
        smoke=smoke,
    )


def _prompt_arguments(queries: list[int], keys: list[int], device: torch.device, dtype: torch.dtype) -> Arguments:
    heads, groups, head = LLM
    q = normal((sum(queries), heads, head), 0, device, dtype)
    k, v = (normal((sum(keys), groups, head), seed, device, dtype) for seed in (1, 2))
    offsets = [torch.tensor([0, *x]).cumsum(0, dtype=torch.int32).to(device) for x in (queries, keys)]
    return q, k, v, *offsets, max(queries), max(keys), True


def _arguments(queries: list[int], keys: list[int], device: torch.device, dtype: torch.dtype) -> Arguments:
    q, k, v = normal((sum(keys), 3, HEADS, HEAD), 0, device, dtype).unbind(1)
    offsets = [torch.tensor([0, *x]).cumsum(0, dtype=torch.int32).to(device) for x in (queries, keys)]
    if queries != keys:
        q = q[: sum(queries)].contiguous()
    return q, k, v, *offsets, max(queries), max(keys)
