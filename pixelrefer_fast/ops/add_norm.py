"""Residual sum and the LayerNorm that follows it, in one pass over the rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNEL_WIDTH = 8192  # a row stays in one program's registers


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for rows, width, norm in ((5, 48, True), (1, 1, True), (7, 72, False), (3, 64, True), (0, 16, True)):
        x, delta = (torch.randn(rows, width, generator=generator).to(dtype) for _ in range(2))
        weight = (1 + 0.1 * torch.randn(width, generator=generator)).to(dtype)
        bias = (0.1 * torch.randn(width, generator=generator)).to(dtype)
        yield (x, delta, weight, bias, 1e-5) if norm else (x, delta, None, None, 1e-6)


@register_op(
    source="SigLIP's encoder layer (LayerNorm eps 1e-6); reference pixelreferlite/model/region_encoder.py (1e-5)",
    tolerance={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
)
def add_norm(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + delta and LayerNorm(x + delta).

    Args:
        x, delta: (R, D) of one float dtype.
        weight, bias: (D,) of the LayerNorm, or both None for the sum alone.
        eps: added to the variance.

    Returns:
        The sum, (R, D), rounded to the dtype before it is normalised, and its LayerNorm, (R, D), which is computed in
        float32 for 16-bit rows; an empty (0,) tensor without weight.

    Raises:
        ValueError: shapes or dtypes that do not fit, or a weight without a bias.
    """
    summed = x + delta
    if weight is None:
        return summed, x.new_empty(0)
    return summed, F.layer_norm(summed, (x.shape[1],), weight, bias, eps)


@add_norm.check
def _check(x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> None:
    name = "add_norm"
    check_shape(name, "x", x, None, None)
    check_shape(name, "delta", delta, *x.shape)
    check_dtype(name, "delta", delta, x.dtype)
    if (weight is None) != (bias is None):
        raise ValueError(
            f"{name}: expected weight and bias or neither, got only {'bias' if weight is None else 'weight'}"
        )
    for label, vector in (("weight", weight), ("bias", bias)):
        if vector is not None:
            check_shape(name, label, vector, x.shape[1])
            check_dtype(name, label, vector, x.dtype)
    check_device(name, x.device, delta=delta, weight=weight, bias=bias)


def _accepts(x: torch.Tensor) -> Reason:
    if x.dtype not in KERNEL_DTYPES:
        return f"x is {x.dtype}; the kernel takes float32, float16 and bfloat16"
    if x.shape[1] > KERNEL_WIDTH:
        return f"x is {x.shape[1]} wide; the kernel takes up to {KERNEL_WIDTH}"
    return None


add_norm.kernel(accepts=_accepts)
