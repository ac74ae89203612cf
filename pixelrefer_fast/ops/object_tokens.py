"""Selected features and their context to object tokens: pooling, infusion and projection as one operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

from pixelrefer_fast.device.stages import stage
from pixelrefer_fast.ops._check import check_count, check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import register_op
from pixelrefer_fast.ops.infuse import infuse, plan_groups
from pixelrefer_fast.ops.object_pool import object_pool

STEP_TENSORS, STEP_NUMBERS = 8, 5  # that a step of infusion has in `steps` and in `step_sizes`


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    heads = 8
    for sample, (pooling, projected) in enumerate(
        zip(object_pool.samples(generator, dtype), (True, False, True, False), strict=True)
    ):
        (rows, width), (marks, n) = pooling[0].shape, pooling[5].shape

        def random(*shape: int, scale: float = 0.1) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype)

        halves = (0, rows // 2), (rows // 2, rows - rows // 2)
        steps, step_sizes = [], []
        for context in ([halves[i % 2] for i in range(marks)], [(0, rows)] * marks):
            groups = plan_groups(torch.tensor(context, dtype=torch.int64).reshape(-1, 2))
            steps += [groups.order, groups.groups, random(width) + 1, random(width)]
            steps += [random(3 * width, width, scale=width**-0.5), random(width)]
            steps += [random(width, width, scale=width**-0.5), random(width)]
            step_sizes += [groups.max_members, groups.max_rows, groups.first_row, groups.span, int(projected)]
        out = 12 + sample
        projection = [random(out, width, scale=width**-0.5), random(out), random(out, out, scale=0.3), random(out)]
        own = sum(min(count, n) for count in pooling[4].diff().tolist())
        yield *pooling[:8], steps, step_sizes, projection, *pooling[8:], heads, None
        yield *pooling[:8], [], [], projection, *pooling[8:], heads, own


@register_op(
    source="reference model/region_encoder.py MaskExtractor; paper section 4.2.1 (eq. 4 to 6) and algorithm 1",
    tolerance={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
    parts=(object_pool, infuse),
)
def object_tokens(
    features: torch.Tensor,
    index: torch.Tensor,
    weights: torch.Tensor,
    positions: torch.Tensor,
    offsets: torch.Tensor,
    starts: torch.Tensor,
    pos_weight: torch.Tensor,
    pos_bias: torch.Tensor,
    steps: Sequence[torch.Tensor],
    step_sizes: Sequence[int],
    projection: Sequence[torch.Tensor],
    iterations: int,
    max_patches: int,
    heads: int,
    tokens: int | None,
    *,
    backend: str = "torch",
) -> torch.Tensor:
    """Pool each object's selected patches, infuse the pooled tokens with context, project them to the LLM's width.

    Each part is a stage of its own for those who listen (`device.stages`).

    Args:
        features: (F, D) packed features of all views.
        index, weights, positions, offsets, starts, pos_weight, pos_bias, iterations, max_patches: as of `object_pool`.
        steps: of each step of infusion, in order, `infuse`'s order, groups, ln_weight, ln_bias, in_weight, query_bias,
            out_weight and out_bias. Lite has two steps, Full none.
        step_sizes: of each step its max_members, max_rows, first_row, span and projected (0 or 1).
        projection: (E, D), (E,), (C, E), (C,): weight and bias before and after the GELU.
        heads: of the infusion.
        tokens: T, how many tokens the objects have that stand for something: of each its patches, n at the most. Those
            of the result behind them may be anything. None: every object has n.

    Returns:
        (T, C) tokens in the features' dtype, one object after the other; T = M n without `tokens`.

    Raises:
        ValueError: shapes or dtypes that do not fit, and what `object_pool` and `infuse` refuse.
    """
    pooled = _pooled(
        features,
        index,
        weights,
        positions,
        offsets,
        starts,
        pos_weight,
        pos_bias,
        iterations,
        max_patches,
        backend=backend,
    )
    if steps:
        pooled = _infused(pooled, features, steps, step_sizes, heads, backend=backend)
    return _projected(pooled, offsets, projection, tokens)


_pooled = stage("pooling")(object_pool)


@stage("infusion")
def _infused(
    tokens: torch.Tensor,
    features: torch.Tensor,
    steps: Sequence[torch.Tensor],
    step_sizes: Sequence[int],
    heads: int,
    *,
    backend: str,
) -> torch.Tensor:
    """(M, n, D) tokens after all steps."""
    for step in range(len(step_sizes) // STEP_NUMBERS):
        own = steps[step * STEP_TENSORS : (step + 1) * STEP_TENSORS]
        *sizes, projected = step_sizes[step * STEP_NUMBERS : (step + 1) * STEP_NUMBERS]
        tokens = infuse(tokens, features, *own, heads, *sizes, bool(projected), backend=backend)
    return tokens


@stage("projector")
def _projected(
    pooled: torch.Tensor, offsets: torch.Tensor, projection: Sequence[torch.Tensor], tokens: int | None
) -> torch.Tensor:
    """(M, n, D) tokens to (T, C)."""
    into, into_bias, out, out_bias = projection
    rows = pooled.flatten(0, 1) if tokens is None else _packed(pooled, offsets, tokens)
    return F.linear(F.gelu(F.linear(rows, into, into_bias)), out, out_bias)


def _packed(pooled: torch.Tensor, offsets: torch.Tensor, tokens: int) -> torch.Tensor:
    """(T, D) tokens that stand for something, of (M, n, D)."""
    # made of what lies on the device: an upload could not be captured. Of padded objects there are fewer tokens than
    # the host knows of
    marks, n = pooled.shape[:2]
    own = offsets.diff().clamp(max=n)  # tokens of each object
    ends = own.cumsum(0)
    place = torch.arange(tokens, device=pooled.device)
    mark = torch.searchsorted(ends, place, right=True).clamp(max=marks - 1)
    rank = (place - (ends - own)[mark]).clamp(max=n - 1)
    return pooled[mark, rank]


@object_tokens.check
def _check(
    features: torch.Tensor,
    starts: torch.Tensor,
    steps: Sequence[torch.Tensor],
    step_sizes: Sequence[int],
    projection: Sequence[torch.Tensor],
    tokens: int | None,
) -> None:
    """What the parts do not check."""
    name = "object_tokens"
    count = len(step_sizes) // STEP_NUMBERS
    if (len(steps), len(step_sizes)) != (STEP_TENSORS * count, STEP_NUMBERS * count):
        raise ValueError(
            f"{name}: expected {STEP_TENSORS} steps and {STEP_NUMBERS} step_sizes for each step of infusion, "
            f"got {len(steps)} and {len(step_sizes)}"
        )
    if len(projection) != 4:
        raise ValueError(f"{name}: expected projection, 4 tensors, got {len(projection)}")
    check_shape(name, "features", features, None, None)
    check_shape(name, "starts", starts, None, None)
    names = [f"projection[{i}]" for i in range(4)]
    into, _, out, _ = projection
    check_shape(name, names[0], into, None, features.shape[1])
    check_shape(name, names[1], projection[1], len(into))
    check_shape(name, names[2], out, None, len(into))
    check_shape(name, names[3], projection[3], len(out))
    for label, tensor in zip(names, projection, strict=True):
        check_dtype(name, label, tensor, features.dtype)
    check_device(name, features.device, **dict(zip(names, projection, strict=True)))
    if tokens is not None:
        check_count(name, "tokens", tokens, starts.numel())


@object_tokens.fake
def _fake(
    features: torch.Tensor, starts: torch.Tensor, projection: Sequence[torch.Tensor], tokens: int | None
) -> torch.Tensor:
    rows = starts.shape[0] * starts.shape[1] if tokens is None else tokens
    return features.new_empty(rows, projection[2].shape[0])
