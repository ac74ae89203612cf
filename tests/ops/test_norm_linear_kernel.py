"""The Triton kernel of norm_linear against its definition in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_place import KERNEL_DTYPES
from plain_memory import plain_memory

from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.ops import BackendError, norm_linear

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),  # NumPy's, in the interpreter
]


def _arguments(rows: int, width: int, out: int, biased: bool, dtype: torch.dtype, device: torch.device) -> tuple:
    generator = torch.Generator().manual_seed(rows + width)
    x = 3 * torch.randn(rows, width, generator=generator)
    norm = 1 + 0.2 * torch.randn(width, generator=generator)
    weight = torch.randn(out, width, generator=generator) * width**-0.5
    bias = torch.randn(out, generator=generator)
    x, norm, weight, bias = (t.to(device, dtype) for t in (x, norm, weight, bias))
    return x, norm, 1e-6, weight, bias if biased else None


# one row, a tile that is not full, tiles of 16, 32 and 64 rows, and more rows than one tile
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "width", "out", "biased"),
    [(1, 64, 40, True), (5, 128, 32, False), (20, 130, 33, True), (40, 72, 1, False), (70, 200, 31, True)],
)
def test_against_float64(
    rows: int,
    width: int,
    out: int,
    biased: bool,
    dtype: torch.dtype,
    kernel_device: torch.device,
    numeric_bar: Callable[..., None],
) -> None:
    arguments = _arguments(rows, width, out, biased, dtype, kernel_device)
    exact = norm_linear(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    found, plain = (norm_linear(*arguments, backend=backend) for backend in ("triton", "torch"))
    numeric_bar(norm_linear, found, exact, plain)


@pytest.mark.parametrize("dtype", [torch.float16], ids=str)
def test_large_numbers_do_not_overflow(dtype: torch.dtype, kernel_device: torch.device) -> None:
    """Rows whose squares float16 does not hold."""
    x, *rest = _arguments(3, 64, 16, True, dtype, kernel_device)
    wide = x * 3000, *rest
    exact = norm_linear(*(a.double() if isinstance(a, torch.Tensor) else a for a in wide))
    largest = exact.abs().max().item()
    found = norm_linear(*wide, backend="triton").double()
    torch.testing.assert_close(found, exact, rtol=0, atol=largest * 4 * torch.finfo(dtype).eps)


def test_a_poisoned_row_reaches_no_other(kernel_device: torch.device) -> None:
    arguments = _arguments(5, 72, 24, True, torch.float32, kernel_device)
    clean = norm_linear(*arguments, backend="triton")
    arguments[0][1, 3] = torch.nan
    out = norm_linear(*arguments, backend="triton")
    assert out[1].isnan().all()
    out[1] = clean[1]
    assert torch.equal(out, clean)


@pytest.mark.parametrize(("rows", "out"), [(0, 8), (3, 0)])
def test_nothing(rows: int, out: int, kernel_device: torch.device) -> None:
    arguments = _arguments(rows, 16, out, True, torch.float32, kernel_device)
    assert norm_linear(*arguments, backend="triton").shape == (rows, out)


@pytest.mark.parametrize("biased", [False, True])
def test_one_launch(biased: bool, kernel_device: torch.device) -> None:
    arguments = _arguments(4, 72, 24, biased, torch.float32, kernel_device)
    with torch.inference_mode(), plain_memory(), counting(kernel_device.type) as counts:
        norm_linear(*arguments, backend="triton")
    assert counts.launches == {"norm_linear.product_float32": 1}
    assert counts.waits == {}
    assert counts.moved == 4 * (4 * 72 + 72 + 24 * 72 + 24 * biased + 4 * 24)


def test_declines_what_it_cannot_compute(kernel_device: torch.device) -> None:
    double = _arguments(2, 8, 4, True, torch.float64, kernel_device)
    with pytest.raises(BackendError, match=r"x is torch\.float64; the kernel takes float32, float16 and bfloat16"):
        norm_linear(*double, backend="triton")
