"""infuse at the released models' sizes: 32 tokens an object, width 1152, 8 heads; views of 16x16 and 24x24 patches."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from _case import Arguments, Case, Rivals, normal

from pixelrefer_fast.ops.infuse import Groups, folded_work, is_projected, plan_groups, projected_work

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
    attention = sum(w.flops for w in (projected_work if projected else folded_work)(sizes, width, HEADS))
    used = sum(rows for _, rows in plan.sizes)
    return Case(
        "infuse",
        f"{name}, {'projected' if projected else 'folded'}",
        functools.partial(_arguments, plan, max(first + rows for first, rows in context), tokens, width, projected),
        # beside the attention the query and the output product, the residual sum and the LayerNorm
        flops=attention + 4 * queries * width**2 + 9 * queries * width,
        # tokens, normed and both results; the feature rows that a group has; weights and vectors
        moved=lambda dtype: (4 * queries + used + 4 * width + 4) * width * dtype.itemsize,
        smoke=smoke,
        rivals=_rivals,
    )


def _arguments(
    plan: Groups, rows: int, tokens: int, width: int, projected: bool, device: torch.device, dtype: torch.dtype
) -> Arguments:
    draw = functools.partial(normal, device=device, dtype=dtype)
    objects = len(plan.order)
    return (
        draw((objects, tokens, width), 0),
        draw((objects, tokens, width), 1),
        draw((rows, width), 2),
        plan.order.to(device),
        plan.groups.to(device),
        draw((3 * width, width), 3) * width**-0.5,
        draw((width,), 4) * 0.1,
        draw((width, width), 5) * width**-0.5,
        draw((width,), 6) * 0.1,
        draw((width,), 7) * 0.1 + 1,
        draw((width,), 8) * 0.1,
        HEADS,
        plan.max_members,
        plan.max_rows,
        projected,
    )


def _rivals(arguments: Arguments) -> Rivals:
    """PyTorch's own module, an object at a time as the reference calls it."""
    tokens, normed, features, order, groups, in_weight, query_bias, out_weight, out_bias, *_ = arguments
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

    def run() -> None:
        for i, (first, rows) in contexts.items():
            shared = features[first : first + rows]
            tokens[i] + attention(normed[i], shared, shared, need_weights=False)[0]

    return {"nn.MultiheadAttention": run}
