"""best_token over Qwen2's vocabulary, after 100 tokens that are less likely then."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case


def cases() -> Iterator[Case]:
    yield _case("2 rows of 300", 2, 300, smoke=True)
    for rows in (1, 8, 64):
        yield _case(f"{rows} rows of 151,936", rows, 151936)


def _case(name: str, rows: int, vocabulary: int, smoke: bool = False) -> Case:
    return Case(
        "best_token",
        name,
        functools.partial(makers.best_token, rows=rows, vocabulary=vocabulary),
        flops=0,
        moved=lambda dtype: rows * vocabulary * dtype.itemsize,
        smoke=smoke,
    )
