"""Cross-attention that takes context features into the pooled tokens."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_shape
from pixelrefer_fast.ops._registry import register_op

LN_EPS = 1e-5


def projected_flops(queries: int, length: int, width: int, heads: int) -> int:
    """Multiply-adds times two of keys and values projected once, then attention, for a group that shares features."""
    return 4 * length * width * width + 4 * queries * length * width


def folded_flops(queries: int, length: int, width: int, heads: int) -> int:
    """The same with W_k folded into the queries and W_v applied after the weighted sum of the features."""
    return 4 * queries * width * width + 4 * queries * length * width * heads


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for objects, tokens, width, heads, context in (
        (3, 4, 32, 2, [(0, 9), (9, 30), (0, 9)]),
        (1, 1, 64, 8, [(2, 1)]),
        (5, 8, 48, 8, [(0, 16)] * 5),
        (0, 4, 16, 4, []),
    ):
        rows = max((start + length for start, length in context), default=1)

        def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
            return (torch.randn(*shape, generator=generator) * scale).to(dtype)

        yield (
            random(objects, tokens, width),
            random(rows, width),
            torch.tensor(context, dtype=torch.int64).reshape(-1, 2),
            random(3 * width, width, scale=width**-0.5),
            random(3 * width, scale=0.1),
            random(width, width, scale=width**-0.5),
            random(width, scale=0.1),
            random(width, scale=0.1) + 1,
            random(width, scale=0.1),
            heads,
        )


@register_op(
    source="reference pixelreferlite/model/region_encoder.py fusion_image_mask_embedding; paper algorithm 1",
    tolerance={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
)
def infuse(
    tokens: torch.Tensor,
    features: torch.Tensor,
    context: torch.Tensor,
    in_weight: torch.Tensor,
    in_bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
    ln_weight: torch.Tensor,
    ln_bias: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """T + MultiheadAttention(LayerNorm(T), F, F): one step of the infusion, keys and values un-normalised.

    Objects with the same context are one group. Keys and values need not be projected: scores = (q W_k) Fᵀ and
    output = W_v (p F), where the key bias cancels in the softmax and the value bias adds once. That costs less for
    few queries; projecting them once costs less for many. Each group takes the cheaper by its FLOPs.

    Args:
        tokens: (M, n, D) pooled tokens.
        features: (P, D) packed features of all views.
        context: (M, 2) int64 in host memory, (first row, number of rows) of each object's view in `features`.
        in_weight, in_bias: (3 D, D), (3 D,) for query, key, value, as in PyTorch's MultiheadAttention.
        out_weight, out_bias: (D, D), (D,).
        ln_weight, ln_bias: (D,) of the LayerNorm before the attention (eps 1e-5).
        heads: number of heads; D / heads may be any size.

    Returns:
        (M, n, D) in the tokens' dtype.

    Raises:
        ValueError: shapes that do not fit, a context outside the features or without a row.
    """
    name = "infuse"
    check_shape(name, "tokens", tokens, None, None, None)
    objects, count, width = tokens.shape
    check_shape(name, "features", features, None, width)
    check_shape(name, "context", context, objects, 2)
    check_shape(name, "in_weight", in_weight, 3 * width, width)
    check_shape(name, "in_bias", in_bias, 3 * width)
    check_shape(name, "out_weight", out_weight, width, width)
    check_shape(name, "out_bias", out_bias, width)
    check_shape(name, "ln_weight", ln_weight, width)
    check_shape(name, "ln_bias", ln_bias, width)
    if width % heads:
        raise ValueError(f"{name}: expected a width that {heads} heads divide, got {width}")

    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (start, length) in enumerate(context.tolist()):
        if length < 1 or start < 0 or start + length > len(features):
            raise ValueError(
                f"{name}: object {i}: expected a context within {len(features)} rows, got {length} rows from {start}"
            )
        groups[start, length].append(i)

    normed = F.layer_norm(tokens, (width,), ln_weight, ln_bias, LN_EPS)
    query_weight, key_weight, value_weight = in_weight.chunk(3)
    query_bias, key_bias, value_bias = in_bias.chunk(3)
    queries = F.linear(normed, query_weight, query_bias)
    mixed = torch.empty_like(tokens)
    for (start, length), members in groups.items():
        shared = features[start : start + length]
        own = queries[members].reshape(-1, heads, width // heads).transpose(0, 1)  # (heads, queries, head_dim)
        if projected_flops(own.shape[1], length, width, heads) <= folded_flops(own.shape[1], length, width, heads):
            key = F.linear(shared, key_weight, key_bias).unflatten(1, (heads, -1)).transpose(0, 1)
            value = F.linear(shared, value_weight, value_bias).unflatten(1, (heads, -1)).transpose(0, 1)
            attended = F.scaled_dot_product_attention(own[None], key[None], value[None])[0]
        else:
            attended = _folded(own, shared, key_weight, value_weight, value_bias)
        mixed[members] = attended.transpose(0, 1).reshape(len(members), count, width)
    return tokens + F.linear(mixed, out_weight, out_bias)


def _folded(
    queries: torch.Tensor,
    shared: torch.Tensor,
    key_weight: torch.Tensor,
    value_weight: torch.Tensor,
    value_bias: torch.Tensor,
) -> torch.Tensor:
    """Attention of (heads, queries, head_dim) with features (L, D) that are key and value at once."""
    heads, _, head_dim = queries.shape
    folded = queries @ key_weight.unflatten(0, (heads, head_dim))  # (heads, queries, D)
    weights = (folded @ shared.T * head_dim**-0.5).softmax(-1, dtype=torch.float32).to(shared.dtype)
    summed = weights @ shared  # (heads, queries, D)
    values = summed @ value_weight.unflatten(0, (heads, head_dim)).transpose(1, 2)
    return values + value_bias.unflatten(0, (heads, 1, head_dim))
