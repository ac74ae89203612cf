"""Attention within each sequence of a packed batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, pairwise

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_offsets, check_shape
from pixelrefer_fast.ops._registry import register_op


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for lengths, heads, head_dim in (([5, 1, 0, 9], 2, 16), ([17], 3, 72), ([6, 6, 6, 2], 1, 8), ([], 2, 8)):
        total = sum(lengths)
        q, k, v = (torch.randn(total, heads, head_dim, generator=generator).to(dtype) for _ in range(3))
        yield q, k, v, torch.tensor([0, *lengths]).cumsum(0)


@register_op(
    source="reference model/damovl_encoder/modeling_damovl_encoder.py VisionFlashAttention2",
    tolerance={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    samples=_samples,
)
def varlen_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """softmax(q kᵀ / sqrt(head_dim)) v, block-diagonal: a patch attends within its own sequence only.

    Args:
        q, k, v: (P, heads, head_dim), packed sequences.
        cu_seqlens: (V + 1,) integers in host memory: sequence i is cu_seqlens[i]:cu_seqlens[i + 1].

    Returns:
        (P, heads, head_dim). No mask over the whole packing is ever built: neighbours of equal length run as one
        batch, so 20 frames of a video cost memory for the scores of none (a fused kernel) or one layer's frames.
    """
    check_shape("varlen_attention", "q", q, None, None, None)
    check_shape("varlen_attention", "k", k, *q.shape)
    check_shape("varlen_attention", "v", v, *q.shape)
    bounds = check_offsets("varlen_attention", "cu_seqlens", cu_seqlens, len(q))
    out = torch.empty_like(q)
    lengths = [b - a for a, b in pairwise(bounds)]
    start = 0
    for length, run in groupby(lengths):
        count = len(list(run))
        stop = start + count * length
        if stop > start:
            # (count, heads, length, head_dim), as scaled_dot_product_attention wants it
            block = [x[start:stop].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v)]
            out[start:stop] = F.scaled_dot_product_attention(*block).transpose(1, 2).flatten(0, 1)
        start = stop
    return out
