"""The Triton provider of add_norm against a LayerNorm in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kernel_place import KERNEL_DTYPES
from plain_memory import plain_memory

from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.ops import add_norm

pytestmark = pytest.mark.kernel


def _arguments(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows + width)
    x, delta = (torch.randn(rows, width, generator=generator) for _ in range(2))
    weight, bias = (0.2 * torch.randn(width, generator=generator) for _ in range(2))
    return tuple(t.to(device, dtype) for t in (x + 3, delta, 1 + weight, bias))


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 64), (3, 72), (2, 255), (2, 257), (3, 1152), (1, 8192)])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_against_float64(
    rows: int, width: int, dtype: torch.dtype, eps: float, kernel_device: torch.device, numeric_bar: Callable[..., None]
) -> None:
    x, delta, weight, bias = _arguments(rows, width, dtype, kernel_device)
    summed, normed = add_norm(x, delta, weight, bias, eps, backend="triton")
    assert normed.dtype == dtype
    assert torch.equal(summed, x + delta)
    exact = F.layer_norm(summed.double(), (width,), weight.double(), bias.double(), eps)
    numeric_bar(add_norm, normed, exact, F.layer_norm(summed, (width,), weight, bias, eps))


def test_the_rounded_sum_is_normed(kernel_device: torch.device) -> None:
    """What float16 loses in the sum the norm does not see."""
    x = (4096 + 4 * torch.arange(72.0) % 24)[None].to(kernel_device, torch.float16)
    delta = torch.linspace(-0.9, 1.9, 72, device=kernel_device).to(torch.float16)[None]
    one, zero = torch.ones_like(x[0]), torch.zeros_like(x[0])
    summed, normed = add_norm(x, delta, one, zero, 1e-5, backend="triton")
    assert torch.equal(summed, x)
    torch.testing.assert_close(normed, F.layer_norm(x, (72,)), rtol=0, atol=2e-3)


def test_without_a_norm(kernel_device: torch.device) -> None:
    x, delta, _, _ = _arguments(5, 72, torch.float32, kernel_device)
    summed, normed = add_norm(x, delta, None, None, 1e-5, backend="triton")
    assert torch.equal(summed, x + delta)
    assert normed.shape == (0,)


@pytest.mark.parametrize(("rows", "width"), [(0, 16), (3, 0)])
def test_nothing(rows: int, width: int, kernel_device: torch.device) -> None:
    arguments = _arguments(rows, width, torch.float32, kernel_device)
    for out in add_norm(*arguments, 1e-5, backend="triton"):
        assert out.shape == (rows, width)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy's, in the interpreter
def test_a_poisoned_row_reaches_no_other(kernel_device: torch.device) -> None:
    x, delta, weight, bias = _arguments(4, 72, torch.float32, kernel_device)
    clean = add_norm(x, delta, weight, bias, 1e-5, backend="triton")
    x[1, 5] = torch.nan
    delta[2, 6] = torch.inf
    rest = [0, 3]
    for out, expected in zip(add_norm(x, delta, weight, bias, 1e-5, backend="triton"), clean, strict=True):
        assert torch.equal(out[rest], expected[rest])
    _, normed = add_norm(x, delta, weight, bias, 1e-5, backend="triton")
    assert torch.isnan(normed[1:3]).all()


def test_rows_that_are_not_contiguous(kernel_device: torch.device) -> None:
    x, delta, weight, bias = _arguments(4, 72, torch.float32, kernel_device)
    expected = add_norm(x, delta, weight, bias, 1e-5, backend="triton")
    apart = [torch.stack([t, torch.full_like(t, torch.nan)], -1)[..., 0] for t in (x, delta, weight, bias)]
    for out, wanted in zip(add_norm(*apart, 1e-5, backend="triton"), expected, strict=True):
        assert torch.equal(out, wanted)


def test_one_launch(kernel_device: torch.device) -> None:
    arguments = _arguments(4, 72, torch.float32, kernel_device)
    with torch.inference_mode(), plain_memory(), counting(kernel_device.type) as counts:
        add_norm(*arguments, 1e-5, backend="triton")
    assert counts.launches == {"add_norm.rows": 1}
    assert counts.waits == {}
    assert counts.moved == 4 * (4 * 4 * 72 + 2 * 72)


def test_declines_what_it_cannot_compute(kernel_device: torch.device) -> None:
    double = torch.zeros(2, 8, device=kernel_device, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"x is torch\.float64; the kernel takes float32, float16 and bfloat16"):
        add_norm(double, double, None, None, 1e-5, backend="triton")
    wide = torch.zeros(1, 8193, device=kernel_device)
    with pytest.raises(ValueError, match="x is 8193 wide; the kernel takes up to 8192"):
        add_norm(wide, wide, None, None, 1e-5, backend="triton")
    grad = torch.zeros(2, 8, device=kernel_device, requires_grad=True)
    with pytest.raises(ValueError, match="an argument needs a gradient"):
        add_norm(grad, grad, None, None, 1e-5, backend="triton")
