"""The definition of norm_linear against transformers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from pixelrefer_fast.ops import norm_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_against_qwen2(dtype: torch.dtype, biased: bool) -> None:
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    linear, norm = nn.Linear(24, 40, bias=biased).to(dtype), Qwen2RMSNorm(24, 1e-6).to(dtype)
    x = torch.randn(5, 24).to(dtype)
    with torch.no_grad():
        norm.weight += 0.1 * torch.randn(24).to(dtype)
        found = norm_linear(x, norm.weight, 1e-6, linear.weight, linear.bias)
        wanted = linear(norm(x))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8)}, r"expected x of shape \(any, any\), got \(8,\)"),
        ({"norm": torch.zeros(7)}, r"expected norm of shape \(8\), got \(7,\)"),
        ({"weight": torch.zeros(6, 7)}, r"expected weight of shape \(any, 8\), got \(6, 7\)"),
        ({"bias": torch.zeros(5)}, r"expected bias of shape \(6\), got \(5,\)"),
        ({"bias": torch.zeros(6).half()}, "expected bias of torch.float32, got torch.float16"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {
        "x": torch.zeros(2, 8),
        "norm": torch.zeros(8),
        "eps": 1e-6,
        "weight": torch.zeros(6, 8),
        "bias": torch.zeros(6),
    } | change
    with pytest.raises(ValueError, match=f"^norm_linear: {message}$"):
        norm_linear(*arguments.values())
