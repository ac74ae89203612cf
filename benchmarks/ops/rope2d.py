"""rope2d on one layer's packed patches of real requests: 16 heads of 72."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

HEADS, HEAD = 16, 72


def cases() -> Iterator[Case]:
    yield _case("5 patches", 5, smoke=True)
    yield _case("982 patches: 1 object of an image", 150 + 256 + 576)
    yield _case("2,032 patches: 8 objects of an image", 8 * 150 + 256 + 576)
    yield _case("16,384 patches: a whole pass", 16384)


def _case(name: str, patches: int, smoke: bool = False) -> Case:
    elements = patches * HEADS * HEAD
    return Case(
        "rope2d",
        name,
        functools.partial(makers.rope2d, patches=patches),
        # the bias on q, k and v; two products and a sum for each element of q and k
        flops=elements * (3 + 2 * 3),
        # every element read and written, a row and a column a patch, the bias and the table
        moved=lambda dtype: (
            (2 * patches + 1) * 3 * HEADS * HEAD * dtype.itemsize + 8 * patches + 2 * makers.PLACES * HEAD
        ),
        smoke=smoke,
    )
