"""One step of cross-attention that takes context features into the pooled tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op
from pixelrefer_fast.ops.add_norm import KERNEL_DTYPES, KERNEL_WIDTH

LN_EPS = 1e-5
# the machine that the planner has in mind: one H200, bfloat16, rates measured on it
FLOPS_A_SECOND = 790e12
BYTES_A_SECOND = 4.3e12
BYTES = 2
LAUNCH_SECONDS = 2.5e-6  # what a launch takes whatever it does


class Groups(NamedTuple):
    """Objects by the context that they share.

    Attributes:
        order: (M,) int32, the objects sorted by group.
        groups: (G, 4) int32, for each group its first place in `order`, members, first feature row, feature rows.
        max_members: most members of a group, 0 without groups.
        max_rows: most feature rows of a group, 0 without groups.
        first_row, span: all groups' rows lie in the `span` feature rows from this one on.
        sizes: (members, feature rows) of each group: what a planner asks without reading a device.
    """

    order: torch.Tensor
    groups: torch.Tensor
    max_members: int
    max_rows: int
    first_row: int
    span: int
    sizes: tuple[tuple[int, int], ...]


def plan_groups(context: torch.Tensor) -> Groups:
    """Group objects by context: groups by first appearance, within one the objects in their own order.

    Args:
        context: (M, 2) in host memory, (first row, number of rows) of each object's view in the packed features.

    Returns:
        Groups of host tensors.
    """
    check_shape("infuse", "context", context, None, 2)
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (start, length) in enumerate(context.tolist()):
        members[start, length].append(i)
    order = [i for own in members.values() for i in own]
    table: list[tuple[int, int, int, int]] = []
    place = 0
    for (start, length), own in members.items():
        table.append((place, len(own), start, length))
        place += len(own)
    first_row = min((start for start, _ in members), default=0)
    return Groups(
        torch.tensor(order, dtype=torch.int32),
        torch.tensor(table, dtype=torch.int32).reshape(-1, 4),
        max((len(own) for own in members.values()), default=0),
        max((length for _, length in members), default=0),
        first_row,
        max((start + length for start, length in members), default=0) - first_row,
        tuple((len(own), length) for (_, length), own in members.items()),
    )


class LaunchCost(NamedTuple):
    """What one launch computes and moves."""

    flops: int
    moved: int  # bytes to and from device memory

    @property
    def seconds(self) -> float:
        """At least so long on the machine that the planner has in mind."""
        return LAUNCH_SECONDS + max(self.flops / FLOPS_A_SECOND, self.moved / BYTES_A_SECOND)


def projected_work(groups: list[tuple[int, int]], span: int, width: int, heads: int) -> list[LaunchCost]:
    """What the launches of a step cost that projects keys and values once for a group.

    Args:
        groups: (queries, feature rows) of each group; queries = members times tokens.
        span: feature rows from the first to the last that a group has, of which all are projected.
        width, heads: D and H.

    Returns:
        The LayerNorm and the query product, the product with W_k and W_v, the attention, the output product.
    """
    queries = sum(count for count, _ in groups)
    pairs = sum(count * length for count, length in groups)
    return [
        LaunchCost(2 * queries * width**2, BYTES * (3 * queries * width + width**2)),
        LaunchCost(4 * span * width**2, BYTES * (3 * span * width + 2 * width**2)),
        LaunchCost(4 * pairs * width, BYTES * 2 * (queries + span) * width),
        LaunchCost(2 * queries * width**2, BYTES * (3 * queries * width + width**2)),
    ]


def folded_work(groups: list[tuple[int, int]], span: int, width: int, heads: int) -> list[LaunchCost]:
    """What the launches of a step cost that folds W_k into the queries and applies W_v to the weighted sum.

    Args:
        groups, span, width, heads: as of `projected_work`.

    Returns:
        The LayerNorm and the products with W_q and W_k, the scores, the weighted sum and W_v, the output product.
    """
    used = sum(length for _, length in groups)
    queries = sum(count for count, _ in groups)
    pairs = heads * sum(count * length for count, length in groups)
    # the parts in which the weighted sum comes are not charged: they are read at once, from the L2 cache
    return [
        LaunchCost(4 * queries * width**2, BYTES * ((2 + heads) * queries * width + 2 * width**2)),
        LaunchCost(2 * pairs * width, BYTES * (heads * queries + used) * width + 4 * pairs),
        LaunchCost(2 * pairs * width + 2 * queries * width**2, BYTES * width * (used + width) + 4 * pairs),
        LaunchCost(2 * queries * width**2, BYTES * (3 * queries * width + width**2)),
    ]


def is_projected(groups: Groups, n: int, width: int, heads: int) -> bool:
    """Whether projecting keys and values costs less than folding their weights, for all groups of a call together.

    A roofline estimate and no measurement: each launch takes its 2.5 microseconds and the longer of its FLOPs at
    790 TFLOP/s and its bytes at 4.3 TB/s (an H200, bfloat16).

    Args:
        groups: as `plan_groups` gives them; only their sizes and their span are looked at.
        n: tokens an object.
        width, heads: D and H.
    """
    sizes = [(members * n, rows) for members, rows in groups.sizes]
    projected, folded = (work(sizes, groups.span, width, heads) for work in (projected_work, folded_work))
    return sum(w.seconds for w in projected) < sum(w.seconds for w in folded)


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for objects, tokens, width, heads, context, projected in (
        (3, 4, 32, 2, [(0, 9), (9, 30), (0, 9)], True),
        (3, 4, 32, 2, [(0, 9), (9, 30), (0, 9)], False),
        (1, 1, 64, 8, [(2, 1)], False),
        (5, 8, 48, 8, [(3, 16)] * 5, True),
        (0, 4, 16, 4, [], False),
    ):
        rows = max((start + length for start, length in context), default=1)
        plan = plan_groups(torch.tensor(context, dtype=torch.int64).reshape(-1, 2))

        def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype)

        yield (
            random(objects, tokens, width),
            random(rows, width),
            plan.order,
            plan.groups,
            random(width, scale=0.1) + 1,
            random(width, scale=0.1),
            random(3 * width, width, scale=width**-0.5),
            random(width, scale=0.1),
            random(width, width, scale=width**-0.5),
            random(width, scale=0.1),
            heads,
            plan.max_members,
            plan.max_rows,
            plan.first_row,
            plan.span,
            projected,
        )


@register_op(
    source="reference pixelreferlite/model/region_encoder.py fusion_image_mask_embedding; paper algorithm 1",
    tolerance={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
    static=("heads",),
)
def infuse(
    tokens: torch.Tensor,
    features: torch.Tensor,
    order: torch.Tensor,
    groups: torch.Tensor,
    ln_weight: torch.Tensor,
    ln_bias: torch.Tensor,
    in_weight: torch.Tensor,
    query_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    heads: int,
    max_members: int,
    max_rows: int,
    first_row: int,
    span: int,
    projected: bool,
) -> torch.Tensor:
    """T + MultiheadAttention(LayerNorm(T), F, F), one step of the infusion.

    The weights of a softmax sum to one, so a key bias cancels and a value bias adds W_o b_v: the caller has added that
    to `out_bias`. Keys and values need not be projected either: scores = (q W_k) Fᵀ and output = W_v (p F), which
    costs less for few queries. Both forms are the same but for rounding.

    Args:
        tokens: (M, n, D) pooled tokens.
        features: (F, D) packed features of all views; rows of no group reach no result.
        order: (M,) int32, the objects sorted by group, as `plan_groups` gives it.
        groups: (G, 4) int32, for each group its first place in `order`, members, first feature row, feature rows.
            One without rows is padding, as its members are, whose tokens may become anything.
        ln_weight, ln_bias: (D,) of the LayerNorm (eps 1e-5).
        in_weight: (3 D, D) for query, key, value, as in PyTorch's MultiheadAttention.
        query_bias: (D,).
        out_weight, out_bias: (D, D), (D,); out_bias = b_o + W_o b_v.
        heads: number of heads; D / heads may be any size.
        max_members, max_rows: no group has more members or feature rows.
        first_row, span: all groups' rows are among the `span` from this one on, which the kernels may read.
        projected: project keys and values once for a group, or fold their weights.

    Returns:
        (M, n, D) tokens in their dtype.

    Raises:
        ValueError: shapes or dtypes that do not fit, a group outside the span or the order, or above a maximum.
    """
    _, n, width = tokens.shape
    queries = F.linear(F.layer_norm(tokens, (width,), ln_weight, ln_bias, LN_EPS), in_weight[:width], query_bias)
    attend = _projected if projected else _folded
    mixed = torch.empty_like(tokens)
    for place, members, start, length in _checked_groups(groups, order, first_row, span, max_members, max_rows):
        if not members * length:
            continue
        own = order[place : place + members].long()
        per_head = queries[own].reshape(-1, heads, width // heads).transpose(0, 1)  # (H, members n, d)
        attended = attend(per_head, features[start : start + length], *in_weight[width:].chunk(2))
        mixed[own] = attended.transpose(0, 1).reshape(members, n, width)
    return tokens + F.linear(mixed, out_weight, out_bias)


def _projected(
    queries: torch.Tensor, shared: torch.Tensor, key_weight: torch.Tensor, value_weight: torch.Tensor
) -> torch.Tensor:
    """Attention of (H, queries, d) with features (L, D) projected to keys and values."""
    key, value = (
        F.linear(shared, weight).unflatten(1, (len(queries), -1)).transpose(0, 1)
        for weight in (key_weight, value_weight)
    )
    return F.scaled_dot_product_attention(queries[None], key[None], value[None])[0]


def _folded(
    queries: torch.Tensor, shared: torch.Tensor, key_weight: torch.Tensor, value_weight: torch.Tensor
) -> torch.Tensor:
    """Attention of (H, queries, d) with features (L, D) that are key and value at once."""
    heads, _, head_dim = queries.shape
    folded = queries @ key_weight.unflatten(0, (heads, head_dim))  # (H, queries, D)
    weights = (folded @ shared.T * head_dim**-0.5).softmax(-1, dtype=torch.float32).to(shared.dtype)
    summed = weights @ shared  # (H, queries, D)
    return summed @ value_weight.unflatten(0, (heads, head_dim)).transpose(1, 2)


@infuse.check
def _check(
    tokens: torch.Tensor,
    features: torch.Tensor,
    order: torch.Tensor,
    groups: torch.Tensor,
    ln_weight: torch.Tensor,
    ln_bias: torch.Tensor,
    in_weight: torch.Tensor,
    query_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    heads: int,
    max_members: int,
    max_rows: int,
    first_row: int,
    span: int,
) -> None:
    """Shapes and dtypes: nothing that would read a tensor."""
    name = "infuse"
    check_shape(name, "tokens", tokens, None, None, None)
    width = tokens.shape[2]
    check_shape(name, "features", features, None, width)
    check_shape(name, "order", order, len(tokens))
    check_shape(name, "groups", groups, None, 4)
    check_shape(name, "in_weight", in_weight, 3 * width, width)
    check_shape(name, "out_weight", out_weight, width, width)
    vectors = {"ln_weight": ln_weight, "ln_bias": ln_bias, "query_bias": query_bias, "out_bias": out_bias}
    for label, vector in vectors.items():
        check_shape(name, label, vector, width)
    floats = {"features": features, "in_weight": in_weight, "out_weight": out_weight, **vectors}
    for label, tensor in floats.items():
        check_dtype(name, label, tensor, tokens.dtype)
    for label, integers in (("order", order), ("groups", groups)):
        check_dtype(name, label, integers, torch.int32)
    check_device(name, tokens.device, order=order, groups=groups, **floats)
    for label, count in (
        ("heads", heads),
        ("max_members", max_members),
        ("max_rows", max_rows),
        ("first_row", first_row),
        ("span", span),
    ):
        check_count(name, label, count)
    if first_row + span > len(features):
        raise ValueError(f"{name}: expected a span within {len(features)} features, got {span} from {first_row}")
    if heads < 1 or width % heads:
        raise ValueError(f"{name}: expected a width that {heads} heads divide, got {width}")


def _checked_groups(
    groups: torch.Tensor, order: torch.Tensor, first_row: int, span: int, max_members: int, max_rows: int
) -> list[list[int]]:
    """The groups as lists, each within the span, all together every place of the order."""
    table: list[list[int]] = groups.tolist()
    next_place = 0
    for i, (place, members, start, length) in enumerate(table):
        if place != next_place or not 0 <= members <= max_members:
            raise ValueError(
                f"infuse: group {i}: expected 0 to {max_members} members from place {next_place}, "
                f"got {members} from {place}"
            )
        outside = start < first_row or start + length > first_row + span
        if not 0 <= length <= max_rows or (length and outside):
            raise ValueError(
                f"infuse: group {i}: expected 0 to {max_rows} rows within {span} from {first_row}, "
                f"got {length} rows from {start}"
            )
        next_place += members
    if next_place != len(order) or sorted(order.tolist()) != list(range(len(order))):
        raise ValueError(
            f"infuse: expected groups and an order of all {len(order)} objects, got {next_place} in groups"
        )
    return table


@infuse.fake
def _fake(tokens: torch.Tensor) -> torch.Tensor:
    return tokens.new_empty(tokens.shape)


def _accepts(tokens: torch.Tensor) -> Reason:
    if tokens.dtype not in KERNEL_DTYPES:
        return f"tokens are {tokens.dtype}; the kernels take float32, float16 and bfloat16"
    if tokens.shape[-1] > KERNEL_WIDTH:
        return f"tokens are {tokens.shape[-1]} wide; the kernels take up to {KERNEL_WIDTH}"
    return None


infuse.kernel(accepts=_accepts)
