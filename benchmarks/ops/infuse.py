"""infuse at the released models' sizes: 32 tokens an object, width 1152, 8 heads; views of 16x16 and 24x24 patches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from pixelrefer_fast.bench.run import arguments as makers
from pixelrefer_fast.bench.run.cases import Arguments, Case, Rival
from pixelrefer_fast.ops.infuse import folded_work, is_projected, plan_groups, projected_work

TOKENS, WIDTH, HEADS = 32, 1152, 8
LOCAL, GLOBAL = 256, 576
CROP = 150  # patches of an object's crop, which lie between the views


def cases() -> Iterator[Case]:
    yield _case("2 objects of 3 and 5 rows", [(0, 3), (5, 5)], tokens=4, width=48, smoke=True)
    for rows in (LOCAL, GLOBAL):
        for objects in (1, 4, 16, 64):
            yield _case(
                f"{objects} object{'s' * (objects > 1)} of one image, {rows} rows", [(CROP * objects, rows)] * objects
            )
        apart = [(CROP + i * (CROP + LOCAL + GLOBAL), rows) for i in range(8)]
        yield _case(f"8 images of 1 object, {rows} rows", apart)
        yield _case(f"8 images of 8 objects, {rows} rows", [context for context in apart for _ in range(8)])


def _case(
    name: str, context: list[tuple[int, int]], tokens: int = TOKENS, width: int = WIDTH, smoke: bool = False
) -> Case:
    plan = plan_groups(torch.tensor(context))
    projected = is_projected(plan, tokens, width, HEADS)
    queries = len(context) * tokens
    sizes = [(members * tokens, rows) for members, rows in plan.sizes]
    work = (projected_work if projected else folded_work)(sizes, plan.span, width, HEADS)
    used = sum(rows for _, rows in plan.sizes)
    return Case(
        "infuse",
        f"{name}, {'projected' if projected else 'folded'}",
        functools.partial(
            makers.infuse,
            objects=len(context),
            first=[first for first, _ in context],
            rows=[rows for _, rows in context],
            tokens=tokens,
            width=width,
            heads=HEADS,
        ),
        flops=sum(w.flops for w in work),
        # tokens and the result; the feature rows that a group has; weights and vectors
        moved=lambda dtype: (2 * queries + used + 4 * width + 4) * width * dtype.itemsize,
        smoke=smoke,
        rivals={"nn.MultiheadAttention": _multihead_attention},
    )


def _multihead_attention(arguments: Arguments) -> Rival:
    """PyTorch's own module, an object at a time as the reference calls it."""
    tokens, features, order, groups, ln_weight, ln_bias, in_weight, query_bias, out_weight, out_bias, *_ = arguments
    width = tokens.shape[2]
    attention = torch.nn.MultiheadAttention(width, HEADS, batch_first=True, device=tokens.device, dtype=tokens.dtype)
    with torch.no_grad():
        attention.in_proj_weight.copy_(in_weight)
        attention.in_proj_bias.copy_(torch.cat([query_bias, query_bias.new_zeros(2 * width)]))
        attention.out_proj.weight.copy_(out_weight)
        attention.out_proj.bias.copy_(out_bias)
    contexts: dict[int, tuple[int, int]] = {}
    for place, members, first, rows in groups.tolist():
        contexts |= dict.fromkeys(order[place : place + members].tolist(), (first, rows))

    def run() -> dict[int, torch.Tensor]:
        normed, mixed = torch.nn.functional.layer_norm(tokens, (width,), ln_weight, ln_bias), {}
        for i, (first, rows) in contexts.items():
            shared = features[first : first + rows]
            mixed[i] = tokens[i] + attention(normed[i], shared, shared, need_weights=False)[0]
        return mixed

    return Rival(run, lambda mixed: [torch.stack([mixed[i] for i in range(len(tokens))])])
