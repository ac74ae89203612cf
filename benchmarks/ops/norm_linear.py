"""norm_linear of one layer and one step, queries, keys and values: 1536 to 2048 (Lite-2B), 3584 to 4608 (Lite-7B)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case


def cases() -> Iterator[Case]:
    yield _case("2 rows, 48 to 40", 2, 48, 40, smoke=True)
    for rows in (1, 8, 64):
        yield _case(f"{rows} rows, Lite-2B", rows, 1536, 2048)
    yield _case("1 row, Lite-7B", 1, 3584, 4608)


def _case(name: str, rows: int, width: int, made: int, smoke: bool = False) -> Case:
    return Case(
        "norm_linear",
        name,
        functools.partial(makers.norm_linear, rows=rows, width=width, made=made),
        flops=2 * rows * width * made,
        moved=lambda dtype: (rows * width + width + made * (width + 1) + rows * made) * dtype.itemsize,
        smoke=smoke,
    )
