"""add_norm on the packed patches of an encoder layer and on the tokens between infusion steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

WIDTH = 1152


def cases() -> Iterator[Case]:
    yield _case("5 rows of 72", 5, 72, smoke=True)
    yield _case("512 rows: tokens of 16 objects", 512, WIDTH)
    yield _case("982 rows: patches of 1 object of an image", 150 + 256 + 576, WIDTH)
    yield _case("16,384 rows: a whole pass", 16384, WIDTH)


def _case(name: str, rows: int, width: int, smoke: bool = False) -> Case:
    return Case(
        "add_norm",
        name,
        functools.partial(makers.add_norm, rows=rows, width=width),
        flops=9 * rows * width,
        moved=lambda dtype: (4 * rows + 2) * width * dtype.itemsize,
        smoke=smoke,
    )
