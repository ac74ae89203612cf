"""The Triton kernel of rope2d against its definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_place import KERNEL_DTYPES

from pixelrefer_fast.device.launches import Launch, listen
from pixelrefer_fast.ops import BackendError, rope2d
from pixelrefer_fast.ops.rope2d import rope2d_table

pytestmark = pytest.mark.kernel

PLACES = 40


def _arguments(device: torch.device, dtype: torch.dtype, patches: int, heads: int, head_dim: int) -> list[torch.Tensor]:
    """qkv, bias, rows, columns, cos and sin."""
    generator = torch.Generator().manual_seed(patches)
    qkv = torch.randn(patches, 3, heads, head_dim, generator=generator)
    bias = torch.randn(3, heads, head_dim, generator=generator)
    rows, columns = torch.randint(0, PLACES, (2, patches), generator=generator, dtype=torch.int32)
    floats = (x.to(device, dtype) for x in (qkv, bias))
    return [*floats, rows.to(device), columns.to(device), *rope2d_table(PLACES, head_dim, device)]


def _definition(arguments: list[torch.Tensor]) -> torch.Tensor:
    qkv = arguments[0].clone()
    rope2d(qkv, *arguments[1:], backend="torch")
    return qkv


def _exact(arguments: list[torch.Tensor]) -> torch.Tensor:
    """In float64, from the same float32 table."""
    return _definition([x.double() if x.is_floating_point() else x for x in arguments])


@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("patches", [1, 7, 33])
@pytest.mark.parametrize("head_dim", [4, 12, 16, 24, 64, 72])
def test_against_the_definition(
    dtype: torch.dtype,
    patches: int,
    head_dim: int,
    kernel_device: torch.device,
    numeric_bar: Callable[..., None],
) -> None:
    arguments = _arguments(kernel_device, dtype, patches, 3, head_dim)
    exact, plain = _exact(arguments), _definition(arguments)
    assert rope2d(*arguments, backend="triton") is None
    numeric_bar(rope2d, arguments[0], exact, plain)


@pytest.mark.parametrize("heads", [1, 2, 5, 16])
def test_heads_at_the_released_head_size(
    heads: int, kernel_device: torch.device, numeric_bar: Callable[..., None]
) -> None:
    arguments = _arguments(kernel_device, torch.float16, 5, heads, 72)
    exact, plain = _exact(arguments), _definition(arguments)
    rope2d(*arguments, backend="triton")
    numeric_bar(rope2d, arguments[0], exact, plain)


def test_rows_of_a_wider_tensor(kernel_device: torch.device) -> None:
    """Only what belongs to the argument is written."""
    arguments = _arguments(kernel_device, torch.float32, 5, 2, 16)
    expected = _definition(arguments)
    wide = torch.full((7, 4, 2, 16), torch.nan, device=kernel_device)
    part = wide[1:6, 1:]
    part.copy_(arguments[0])
    rope2d(part, *arguments[1:], backend="triton")
    torch.testing.assert_close(part, expected, rtol=0, atol=1e-6)
    assert wide[[0, 6]].isnan().all()
    assert wide[:, 0].isnan().all()


def test_patches_do_not_reach_each_other(kernel_device: torch.device) -> None:
    arguments = _arguments(kernel_device, torch.float32, 9, 2, 16)
    expected = _definition(arguments)
    arguments[0][4] = torch.nan
    rope2d(*arguments, backend="triton")
    others = [i for i in range(9) if i != 4]
    assert arguments[0][4].isnan().all()
    torch.testing.assert_close(arguments[0][others], expected[others], rtol=0, atol=1e-6)


def test_a_place_outside_the_table_is_taken_to_its_end(kernel_device: torch.device) -> None:
    arguments = _arguments(kernel_device, torch.float32, 4, 1, 8)
    wild = torch.tensor([-1, PLACES, 2**31 - 1, -(2**31)], dtype=torch.int32, device=kernel_device)
    inside = torch.tensor([0, PLACES - 1, PLACES - 1, 0], dtype=torch.int32, device=kernel_device)
    for i in (2, 3):
        expected = _definition([*arguments[:i], inside, *arguments[i + 1 :]])
        qkv = arguments[0].clone()
        rope2d(qkv, *arguments[1:i], wild, *arguments[i + 1 :], backend="triton")
        torch.testing.assert_close(qkv, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("patches", [0, 1, 50])
def test_one_launch(patches: int, kernel_device: torch.device) -> None:
    launches: list[Launch] = []
    arguments = _arguments(kernel_device, torch.float16, patches, 2, 16)
    with listen(launches.append):
        rope2d(*arguments, backend="triton")
    assert [x.kernel for x in launches] == ["rope2d.rope2d"] * min(patches, 1)
    if patches:
        # per element: a sum, and for queries and keys two products and a sum
        assert launches[0].flops == patches * 2 * 16 * (4 + 4 + 1)
        assert launches[0].moved == 2 * 2 * arguments[0].numel() + 2 * 4 * patches


def test_declines(kernel_device: torch.device) -> None:
    arguments = _arguments(kernel_device, torch.float32, 3, 2, 8)
    apart = torch.zeros(3, 3, 4, 8, device=kernel_device)[:, :, 1:3]
    with pytest.raises(BackendError, match=r"dimensions 1 to 3 of qkv are not contiguous \(strides \(96, 32, 8, 1\)\)"):
        rope2d(apart, *arguments[1:], backend="triton")
    double = [x.double() if x.is_floating_point() else x for x in arguments]
    with pytest.raises(BackendError, match=r"not torch\.float64 with torch\.float64"):
        rope2d(*double, backend="triton")
    with pytest.raises(ValueError, match=r"^rope2d: expected bias of shape \(3, 2, 8\), got \(2, 2, 8\)$"):
        rope2d(arguments[0], arguments[1][:2], *arguments[2:], backend="triton")
