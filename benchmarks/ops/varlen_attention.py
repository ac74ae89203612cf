"""varlen_attention on one layer's views of real requests: 16 heads of 72, parts of one product as in the encoder."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from _case import Arguments, Case, normal

HEADS, HEAD = 16, 72
CONTEXT = [256, 576]  # local and global view of an image


def cases() -> Iterator[Case]:
    yield _case("5 and 3 patches", [5, 3], smoke=True)
    yield _case("1 object of an image", [150, *CONTEXT])
    yield _case("8 objects of an image", [*range(115, 186, 10), *CONTEXT])
    yield _case("8 objects of an image, last layer: half of the crops' patches", [*range(115, 186, 10), *CONTEXT], 2)
    yield _case("20 frames of 480x854", [34 * 60] * 20)
    yield _case("1 view of 16,384 patches", [16384])


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


def _arguments(queries: list[int], keys: list[int], device: torch.device, dtype: torch.dtype) -> Arguments:
    q, k, v = normal((sum(keys), 3, HEADS, HEAD), 0, device, dtype).unbind(1)
    offsets = [torch.tensor([0, *x]).cumsum(0, dtype=torch.int32).to(device) for x in (queries, keys)]
    if queries != keys:
        q = q[: sum(queries)].contiguous()
    return q, k, v, *offsets, max(queries), max(keys)
