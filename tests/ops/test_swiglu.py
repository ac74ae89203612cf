"""The definition of swiglu against transformers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pixelrefer_fast.ops import swiglu


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_against_qwen2(dtype: torch.dtype) -> None:
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

    mlp = Qwen2MLP(Qwen2Config(hidden_size=24, intermediate_size=40)).to(dtype)
    norm = Qwen2RMSNorm(24, 1e-6).to(dtype)
    x = torch.randn(5, 24).to(dtype)
    with torch.no_grad():
        norm.weight += 0.1 * torch.randn(24).to(dtype)
        weight = torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
        found = mlp.down_proj(swiglu(x, norm.weight, 1e-6, weight))
        wanted = mlp(norm(x))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8)}, r"expected x of shape \(any, any\), got \(8,\)"),
        ({"norm": torch.zeros(7)}, r"expected norm of shape \(8\), got \(7,\)"),
        ({"weight": torch.zeros(6, 7)}, r"expected weight of shape \(any, 8\), got \(6, 7\)"),
        ({"weight": torch.zeros(5, 8)}, "expected weight of as many rows of gate as of up, got 5 together"),
        ({"weight": torch.zeros(6, 8).half()}, "expected weight of torch.float32, got torch.float16"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(2, 8), "norm": torch.zeros(8), "eps": 1e-6, "weight": torch.zeros(6, 8)} | change
    with pytest.raises(ValueError, match=f"^swiglu: {message}$"):
        swiglu(*arguments.values())
