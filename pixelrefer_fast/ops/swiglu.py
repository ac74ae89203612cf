"""The beginning of a gated MLP, for a few rows: RMSNorm, the products of gate and up, SiLU of one times the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for rows, width, inner in ((5, 48, 40), (1, 1, 1), (17, 72, 33), (3, 64, 64), (0, 16, 8)):
        x = torch.randn(rows, width, generator=generator).to(dtype)
        norm = (1 + 0.1 * torch.randn(width, generator=generator)).to(dtype)
        weight = (torch.randn(2 * inner, width, generator=generator) * width**-0.5).to(dtype)
        yield x, norm, 1e-6, weight


@register_op(
    source="transformers models/qwen2/modeling_qwen2.py Qwen2RMSNorm, Qwen2MLP",
    tolerance={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
)
def swiglu(x: torch.Tensor, norm: torch.Tensor, eps: float, weight: torch.Tensor) -> torch.Tensor:
    """silu(n gateᵀ) * (n upᵀ) of n = RMSNorm(x).

    Args:
        x: (R, C), any float dtype. Made for the few rows of a decoding step: a kernel reads the weights once for 64.
        norm: (C,) same dtype, the norm's weight.
        eps: added to the mean square.
        weight: (2I, C) same dtype: the rows of gate, then those of up.

    Returns:
        (R, I).

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    gate, up = F.linear(torch.rms_norm(x, (x.shape[1],), norm, eps), weight).chunk(2, -1)
    return F.silu(gate) * up


@swiglu.check
def _check(x: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor) -> None:
    check_shape("swiglu", "x", x, None, None)
    check_shape("swiglu", "norm", norm, x.shape[1])
    check_shape("swiglu", "weight", weight, None, x.shape[1])
    if len(weight) % 2:
        raise ValueError(f"swiglu: expected weight of as many rows of gate as of up, got {len(weight)} together")
    for name, tensor in (("norm", norm), ("weight", weight)):
        check_dtype("swiglu", name, tensor, x.dtype)
    check_device("swiglu", x.device, norm=norm, weight=weight)


@swiglu.fake
def _fake(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(len(x), len(weight) // 2)


def _accepts(x: torch.Tensor) -> Reason:
    return None if x.dtype in KERNEL_DTYPES else f"x is {x.dtype}; the kernel takes float32, float16 and bfloat16"


swiglu.kernel(accepts=_accepts)
