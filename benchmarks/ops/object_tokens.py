"""object_tokens at the released sizes of Lite: 32 tokens an object, width 1152, context of 256 and 576 patches."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Case
from pixelrefer_fast.ops.infuse import folded_work, projected_work

HEADS, ITERATIONS = 8, 3
PATCHES = 150  # selected ones of an ordinary object


def cases() -> Iterator[Case]:
    yield _case("2 objects of 9 patches", 2, patches=9, tokens=4, width=48, llm_width=40, rows=(5, 7), smoke=True)
    for objects in (1, 4, 16, 64):
        yield _case(f"{objects} object{'s' * (objects > 1)} of {PATCHES} patches of one image", objects)


def _case(
    name: str,
    objects: int,
    patches: int = PATCHES,
    tokens: int = makers.TOKENS,
    width: int = makers.WIDTH,
    llm_width: int = makers.LLM_WIDTH,
    rows: Sequence[int] = (makers.LOCAL, makers.GLOBAL),
    smoke: bool = False,
) -> Case:
    selected, pooled = objects * patches, objects * tokens
    # tokens and means; inner products (half of a symmetric matrix), sums of its rows in each iteration
    pooling = 8 * selected * width + objects * (patches * (patches + 1) * width + 2 * ITERATIONS * patches**2 * tokens)
    # of either form of a step what computes less
    steps = sum(
        min(
            sum(cost.flops for cost in work([(pooled, own)], own, width, HEADS))
            for work in (projected_work, folded_work)
        )
        for own in rows
    )
    return Case(
        "object_tokens",
        name,
        functools.partial(
            makers.object_tokens,
            objects=objects,
            patches=patches,
            tokens=tokens,
            width=width,
            llm_width=llm_width,
            rows=rows,
            heads=HEADS,
            iterations=ITERATIONS,
        ),
        flops=pooling + steps + 2 * pooled * llm_width * (width + llm_width),
        # features of the objects and of their context; weights and vectors; indices, places, starts; the result
        moved=lambda dtype: (
            ((selected + sum(rows)) * width + len(rows) * (4 * width + 4) * width + 3 * width) * dtype.itemsize
            + (llm_width * (width + llm_width + 2) + pooled * llm_width) * dtype.itemsize
            + 20 * selected
            + 8 * (pooled + objects + 1)
        ),
        smoke=smoke,
    )
