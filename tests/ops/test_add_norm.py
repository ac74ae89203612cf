"""add_norm against a LayerNorm in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import add_norm

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _arguments(rows: int, width: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    x, delta = (torch.randn(rows, width, generator=generator).to(dtype) for _ in range(2))
    weight = (1 + 0.2 * torch.randn(width, generator=generator)).to(dtype)
    return x, delta, weight, (0.2 * torch.randn(width, generator=generator)).to(dtype)


@given(rows=st.integers(0, 9), width=st.integers(3, 80), eps=st.sampled_from([1e-6, 1e-5, 1e-2]))
def test_the_formula(rows: int, width: int, eps: float) -> None:
    x, delta, weight, bias = _arguments(rows, width, seed=width)
    summed, normed = add_norm(x, delta, weight, bias, eps, backend="torch")
    assert torch.equal(summed, x + delta)
    values = (x + delta).double()
    centred = values - values.mean(1, keepdim=True)
    exact = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * weight + bias
    torch.testing.assert_close(normed.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_sum_is_rounded_before_the_norm(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    x, delta, weight, bias = _arguments(16, 96, dtype)
    summed, normed = add_norm(x, delta * 1e-3, weight, bias, 1e-6, backend="torch")
    assert summed.dtype == normed.dtype == dtype
    assert torch.equal(summed, x + delta * 1e-3)
    exact = F.layer_norm(summed.double(), (96,), weight.double(), bias.double(), 1e-6)
    plain = F.layer_norm(summed, (96,), weight, bias, 1e-6)
    numeric_bar(add_norm, normed, exact, plain)


def test_without_a_norm() -> None:
    x, delta, _, _ = _arguments(5, 8, torch.float16)
    summed, normed = add_norm(x, delta, None, None, 1e-5, backend="torch")
    assert torch.equal(summed, x + delta)
    assert normed.shape == (0,)
    assert normed.dtype == torch.float16


def test_arguments_are_left_alone() -> None:
    x, delta, weight, bias = _arguments(4, 8)
    before = [t.clone() for t in (x, delta, weight, bias)]
    add_norm(x, delta, weight, bias, 1e-5, backend="torch")
    assert all(torch.equal(a, b) for a, b in zip((x, delta, weight, bias), before, strict=True))


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.kernel)])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3)}, r"expected x of shape \(any, any\), got \(3,\)"),
        ({"delta": torch.zeros(3, 9)}, r"expected delta of shape \(4, 8\), got \(3, 9\)"),
        ({"delta": torch.zeros(4, 8).half()}, "expected delta of torch.float32, got torch.float16"),
        ({"weight": torch.zeros(9)}, r"expected weight of shape \(8\), got \(9,\)"),
        ({"bias": torch.zeros(9)}, r"expected bias of shape \(8\), got \(9,\)"),
        ({"bias": torch.zeros(8).double()}, "expected bias of torch.float32, got torch.float64"),
        ({"bias": None}, "expected weight and bias or neither, got only weight"),
        ({"weight": None}, "expected weight and bias or neither, got only bias"),
    ],
)
def test_errors(change: dict, message: str, backend: str, kernel_device: torch.device) -> None:
    x, delta, weight, bias = _arguments(4, 8)
    given = {"x": x, "delta": delta, "weight": weight, "bias": bias, **change}
    arguments = [None if t is None else t.to(kernel_device) for t in given.values()]
    with pytest.raises(ValueError, match=f"^add_norm: {message}$"):
        add_norm(*arguments, 1e-5, backend=backend)
