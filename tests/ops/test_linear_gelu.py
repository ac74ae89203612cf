"""The definition of linear_gelu, and the vendor's product with GELU at its end, which has to show what it computes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pixelrefer_fast.ops import BackendError, linear_gelu
from pixelrefer_fast.ops import linear_gelu as op
from pixelrefer_fast.ops.linear_gelu import _found, epilogue_is_right

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    _found.clear()
    yield
    _found.clear()


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The provider is asked about tensors of the CPU, as a GPU's are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (provider,) = op._providers
    monkeypatch.setattr(provider, "devices", ("cpu",))


@pytest.fixture
def tanh(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """torch's function as CUDA has it: the sizes that it was called with."""
    calls: list[torch.Size] = []

    def activated(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, use_gelu: bool) -> torch.Tensor:
        assert use_gelu
        calls.append(x.shape)
        wide = torch.addmm(bias.float(), x.float(), weight.float())  # rounded once, at the end
        return F.gelu(wide, approximate="tanh").to(x.dtype)

    monkeypatch.setattr(torch, "_addmm_activation", activated)
    return calls


def _arguments(dtype: torch.dtype = torch.float32, rows: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias = (torch.randn(shape, generator=generator) for shape in ((rows, 24), (40, 24), (40,)))
    return x.to(dtype), (weight * 24**-0.5).to(dtype), bias.to(dtype)


def test_against_transformers() -> None:
    from transformers.activations import ACT2FN

    x, weight, bias = _arguments()
    wanted = ACT2FN["gelu_pytorch_tanh"](x @ weight.T + bias)
    torch.testing.assert_close(linear_gelu(x, weight, bias), wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_erf_form_is_noticed(dtype: torch.dtype, on_cpu: None) -> None:
    """torch's own function on a CPU is the other form of GELU."""
    reason = epilogue_is_right(CPU, dtype)
    assert reason is not None
    assert reason.startswith("its GELU is off by ")
    with pytest.raises(BackendError, match="'cublaslt' was asked for but declines: its GELU is off by"):
        linear_gelu(*_arguments(dtype), backend="cublaslt")
    assert torch.equal(linear_gelu(*_arguments(dtype)), linear_gelu(*_arguments(dtype), backend="torch"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_tanh_form_is_used_once_it_was_tried(dtype: torch.dtype, on_cpu: None, tanh: list[torch.Size]) -> None:
    found = linear_gelu(*_arguments(dtype))
    wide = linear_gelu(*(t.double() for t in _arguments(dtype)), backend="torch")
    own = linear_gelu(*_arguments(dtype), backend="torch")
    assert (found - wide).abs().max() <= 2 * (own - wide).abs().max() + op.tolerance[dtype]
    linear_gelu(*_arguments(dtype, rows=3))
    assert tanh == [(64, 48), (7, 24), (3, 24)]


def test_an_epilogue_that_forgets_the_bias_or_turns_the_weight_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_bias(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, use_gelu: bool) -> torch.Tensor:
        return F.gelu(x @ weight, approximate="tanh")

    def turned(bias: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, use_gelu: bool) -> torch.Tensor:
        return F.gelu(F.linear(x, weight.flip(1).T, bias), approximate="tanh")

    for wrong in (without_bias, turned):
        _found.clear()
        monkeypatch.setattr(torch, "_addmm_activation", wrong)
        assert epilogue_is_right(CPU, torch.float32) is not None


def test_declines(on_cpu: None, tanh: list[torch.Size]) -> None:
    with pytest.raises(BackendError, match=r"it computes float32, float16 and bfloat16, not torch\.float64"):
        linear_gelu(*_arguments(torch.float64), backend="cublaslt")
    with torch.autocast("cpu"), pytest.raises(BackendError, match="autocast chooses the dtype of a product"):
        linear_gelu(*_arguments(), backend="cublaslt")

    class Quantized(torch.Tensor):
        pass

    x, weight, bias = _arguments()
    with pytest.raises(BackendError, match="an argument is no plain tensor"):
        linear_gelu(x, weight.as_subclass(Quantized), bias, backend="cublaslt")
    with pytest.raises(BackendError, match="an argument needs a gradient"):
        linear_gelu(x, weight.requires_grad_(), bias, backend="cublaslt")
    assert not tanh


def test_nothing_is_tried_within_a_capture(monkeypatch: pytest.MonkeyPatch, tanh: list[torch.Size]) -> None:
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert epilogue_is_right(torch.device("cuda"), torch.bfloat16) == "it was not tried before a capture"
    assert not tanh
    assert not _found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(8)}, r"expected x of shape \(any, any\), got \(8,\)"),
        ({"weight": torch.zeros(6, 7)}, r"expected weight of shape \(any, 8\), got \(6, 7\)"),
        ({"bias": torch.zeros(5)}, r"expected bias of shape \(6\), got \(5,\)"),
        ({"bias": torch.zeros(6).half()}, "expected bias of torch.float32, got torch.float16"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    arguments = {"x": torch.zeros(2, 8), "weight": torch.zeros(6, 8), "bias": torch.zeros(6)} | change
    with pytest.raises(ValueError, match=f"^linear_gelu: {message}$"):
        linear_gelu(*arguments.values())
