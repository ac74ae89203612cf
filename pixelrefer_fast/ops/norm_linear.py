"""RMSNorm and the product after it, for a few rows: queries, keys and values of a decoding step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from pixelrefer_fast.ops._check import check_device, check_dtype, check_shape
from pixelrefer_fast.ops._registry import Reason, register_op

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _samples(generator: torch.Generator, dtype: torch.dtype) -> Iterator[tuple]:
    for rows, width, out, biased in ((5, 48, 40, True), (1, 1, 1, False), (17, 72, 33, True), (0, 16, 8, True)):
        x = torch.randn(rows, width, generator=generator).to(dtype)
        norm = (1 + 0.1 * torch.randn(width, generator=generator)).to(dtype)
        weight = (torch.randn(out, width, generator=generator) * width**-0.5).to(dtype)
        bias = torch.randn(out, generator=generator).to(dtype)
        yield x, norm, 1e-6, weight, bias if biased else None


@register_op(
    source="transformers models/qwen2/modeling_qwen2.py Qwen2RMSNorm, Qwen2Attention",
    tolerance={torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2},
    samples=_samples,
)
def norm_linear(
    x: torch.Tensor, norm: torch.Tensor, eps: float, weight: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """n weightᵀ + bias of n = RMSNorm(x).

    Args:
        x: (R, C), any float dtype. Made for the few rows of a decoding step: a kernel reads the weights once for 64.
        norm: (C,) same dtype, the norm's weight.
        eps: added to the mean square.
        weight: (O, C) same dtype.
        bias: (O,) same dtype, or None.

    Returns:
        (R, O).

    Raises:
        ValueError: for shapes or dtypes that do not fit.
    """
    return F.linear(torch.rms_norm(x, (x.shape[1],), norm, eps), weight, bias)


@norm_linear.check
def _check(x: torch.Tensor, norm: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    check_shape("norm_linear", "x", x, None, None)
    check_shape("norm_linear", "norm", norm, x.shape[1])
    check_shape("norm_linear", "weight", weight, None, x.shape[1])
    parts = {"norm": norm, "weight": weight}
    if bias is not None:
        check_shape("norm_linear", "bias", bias, len(weight))
        parts["bias"] = bias
    for name, tensor in parts.items():
        check_dtype("norm_linear", name, tensor, x.dtype)
    check_device("norm_linear", x.device, **parts)


@norm_linear.fake
def _fake(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(len(x), len(weight))


def _accepts(x: torch.Tensor) -> Reason:
    return None if x.dtype in KERNEL_DTYPES else f"x is {x.dtype}; the kernel takes float32, float16 and bfloat16"


norm_linear.kernel(accepts=_accepts)
