"""scatter_tokens on batches of prompts: 32 tokens of 1 to 4,096 objects, in prompts of 16 objects and 120 other ids."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case

TOKENS = 32  # of one object
OBJECTS = 16  # of one prompt
TEXT = 120
WIDTH = 1536  # of the LLM of the 2B model


def cases() -> Iterator[Case]:
    yield _case(2, smoke=True)
    for objects in (1, 16, 256, 4096):
        yield _case(objects)


def _case(objects: int, smoke: bool = False) -> Case:
    tokens = objects * TOKENS
    return Case(
        "scatter_tokens",
        f"{objects:,} object{'s' * (objects > 1)}: {tokens:,} tokens of {WIDTH:,}",
        functools.partial(makers.scatter_tokens, objects=objects),
        flops=0,
        # each token read and written, and its slot
        moved=lambda dtype: 2 * tokens * WIDTH * dtype.itemsize + 8 * tokens,
        smoke=smoke,
    )
