"""Rotary position in two dimensions for packed patches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from pixelrefer_fast.ops._check import check_shape
from pixelrefer_fast.ops._registry import register_op

THETA = 10000.0


def rope2d_table(rows: torch.Tensor, columns: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every patch's angles, shared by all layers of a pass.

    Args:
        rows, columns: (P,) integers, the patch's place in its own grid.
        head_dim: size of an attention head, a multiple of 4.

    Returns:
        (P, head_dim / 2) float32 each. The first half of the angles turns with the row, the second with the column.
    """
    if head_dim % 4:
        raise ValueError(f"rope2d: expected a head size that is a multiple of 4, got {head_dim}")
    exponents = torch.arange(0, head_dim // 2, 2, dtype=torch.float32, device=rows.device) / (head_dim // 2)
    frequencies = 1.0 / THETA**exponents
    angles = torch.cat([rows[:, None] * frequencies, columns[:, None] * frequencies], dim=1)
    return angles.cos(), angles.sin()


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for patches, heads, head_dim in ((7, 2, 16), (33, 3, 72), (1, 1, 4), (0, 2, 8)):
        q, k = (torch.randn(patches, heads, head_dim, generator=generator).to(dtype) for _ in range(2))
        place = torch.randint(0, 40, (2, patches), generator=generator)
        yield q, k, *rope2d_table(place[0], place[1], head_dim)


@register_op(
    source="reference model/damovl_encoder/modeling_damovl_encoder.py apply_rotary_pos_emb_vision",
    tolerance={torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3},
    samples=_samples,
)
def rope2d(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn queries and keys by their patch's row and column; computed in float32.

    Args:
        q, k: (P, heads, head_dim), any float dtype.
        cos, sin: (P, head_dim / 2) float32 from `rope2d_table`.

    Returns:
        q and k turned, in their own dtype. Element i is paired with element i + head_dim / 2.
    """
    check_shape("rope2d", "q", q, None, None, None)
    check_shape("rope2d", "k", k, *q.shape)
    check_shape("rope2d", "cos", cos, q.shape[0], q.shape[2] // 2)
    check_shape("rope2d", "sin", sin, q.shape[0], q.shape[2] // 2)
    return _turn(q, cos, sin), _turn(k, cos, sin)


def _turn(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    turned = [torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(second * cos, first, sin)]
    return torch.cat(turned, dim=-1).to(x.dtype)
