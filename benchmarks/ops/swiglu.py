"""swiglu of one layer and one step: 1536 to 8960 (Lite-2B) and 3584 to 18944 (Lite-7B)."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case


def cases() -> Iterator[Case]:
    yield _case("2 rows, 48 to 40", 2, 48, 40, smoke=True)
    for rows in (1, 8, 64):
        yield _case(f"{rows} rows, Lite-2B", rows, 1536, 8960)
    yield _case("1 row, Lite-7B", 1, 3584, 18944)


def _case(name: str, rows: int, width: int, inner: int, smoke: bool = False) -> Case:
    return Case(
        "swiglu",
        name,
        functools.partial(makers.swiglu, rows=rows, width=width, inner=inner),
        flops=4 * rows * width * inner,
        moved=lambda dtype: (rows * width + width + 2 * inner * width + rows * inner) * dtype.itemsize,
        smoke=smoke,
    )
