"""varlen_attention on one layer of real requests.

The encoder's views have 16 heads of 72, parts of one product; the LLM's prompts, causal, 12 heads of 128 on 2 of
keys and values (Lite-2B).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

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
    yield _prompts("64 questions of 20 tokens on a prefix of 770", [20] * 64, [790] * 64)
    yield _prompts("1 prompt of 10,000 tokens", [10000], [10000])


def _case(name: str, keys: Sequence[int], skipped: int = 1, smoke: bool = False) -> Case:
    """Of every view that is not a context view one query in `skipped` is asked for."""
    queries = [n if n in CONTEXT else n // skipped for n in keys]
    return Case(
        "varlen_attention",
        name,
        functools.partial(makers.varlen_attention, queries=queries, keys=keys, heads=HEADS, head=HEAD),
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
        functools.partial(
            makers.varlen_attention, queries=queries, keys=keys, heads=heads, groups=groups, head=head, causal=1
        ),
        flops=4 * pairs * heads * head,
        moved=lambda dtype: (
            2 * (sum(queries) * heads + sum(keys) * groups) * head * dtype.itemsize + 8 * (len(keys) + 1)
        ),
        smoke=smoke,
    )
