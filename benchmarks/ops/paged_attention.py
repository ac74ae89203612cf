"""paged_attention of one layer and one step: 12 heads of 128 on 2 of keys and values (Lite-2B), blocks of 64 tokens."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

HEADS, GROUPS, HEAD = 12, 2, 128


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
        functools.partial(makers.paged_attention, sequences=len(lengths), lengths=lengths),
        flops=4 * sum(lengths) * HEADS * HEAD,
        # keys and values once, the new ones twice, queries and results
        moved=lambda dtype: 2 * ((sum(lengths) + len(lengths)) * GROUPS + len(lengths) * HEADS) * HEAD * dtype.itemsize,
        smoke=smoke,
    )
