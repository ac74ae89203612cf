"""linear_gelu on the packed patches of an encoder layer: 1152 to 4304."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

WIDTH, INNER = 1152, 4304


def cases() -> Iterator[Case]:
    yield _case("5 rows, 48 to 40", 5, 48, 40, smoke=True)
    yield _case("982 rows: patches of 1 object of an image", 150 + 256 + 576, WIDTH, INNER)
    yield _case("16,384 rows: a whole pass", 16384, WIDTH, INNER)


def _case(name: str, rows: int, width: int, inner: int, smoke: bool = False) -> Case:
    return Case(
        "linear_gelu",
        name,
        functools.partial(makers.linear_gelu, rows=rows, width=width, inner=inner),
        flops=2 * rows * width * inner,
        moved=lambda dtype: (rows * width + inner * (width + 1) + rows * inner) * dtype.itemsize,
        smoke=smoke,
    )
