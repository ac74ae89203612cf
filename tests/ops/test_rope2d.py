"""rope2d against complex numbers: pair (i, i + d/2) is a point of the plane that turns by its angle."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.ops import rope2d
from pixelrefer_fast.ops.rope2d import rope2d_table

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _angles(row: int, column: int, head_dim: int) -> list[float]:
    """head_dim / 4 frequencies turn with the row, as many with the column (spec, shapes of the released models)."""
    frequencies = [10000 ** (-2 * i / (head_dim / 2)) for i in range(head_dim // 4)]
    return [row * f for f in frequencies] + [column * f for f in frequencies]


def _oracle(qkv: torch.Tensor, bias: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """(P, 3, heads, head_dim) float64: the bias added, queries and keys turned in complex128."""
    x = qkv.double() + bias.double()
    half = x.shape[3] // 2
    angles = torch.tensor([_angles(r, c, x.shape[3]) for r, c in places], dtype=torch.float64).reshape(-1, 1, 1, half)
    points = torch.complex(x[:, :2, :, :half], x[:, :2, :, half:])
    turned = points * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([torch.cat([turned.real, turned.imag], dim=3), x[:, 2:]], dim=1)


def _arguments(places: list[tuple[int, int]], head_dim: int) -> tuple[torch.Tensor, ...]:
    """rows, columns, cos and sin."""
    rows, columns = torch.tensor(places, dtype=torch.int32).reshape(-1, 2).unbind(1)
    largest = max((max(p) for p in places), default=0)
    return rows, columns, *rope2d_table(largest + 1, head_dim)


def _random(patches: int, heads: int, head_dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(patches, 3, heads, head_dim, generator=generator)
    return qkv, torch.randn(3, heads, head_dim, generator=generator)


PLACES = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), max_size=40)


@given(places=PLACES, heads=st.integers(1, 4), quarter=st.sampled_from([1, 2, 5, 18]))
def test_against_complex_numbers(places: list[tuple[int, int]], heads: int, quarter: int) -> None:
    qkv, bias = _random(len(places), heads, 4 * quarter, seed=len(places))
    expected = _oracle(qkv, bias, places)
    assert rope2d(qkv, bias, *_arguments(places, 4 * quarter)) is None
    # an angle of 120 in float32 is off by 120 * 2^-24
    torch.testing.assert_close(qkv.double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, numeric_bar: Callable[..., None]) -> None:
    places = [(r, c) for r in range(6) for c in range(5)]
    qkv, bias = (x.to(dtype) for x in _random(30, 3, 72))
    exact = _oracle(qkv, bias, places)
    rope2d(qkv, bias, *_arguments(places, 72))
    assert qkv.dtype == dtype
    # computed in float32, bias included, so no worse than rounding the exact result once
    numeric_bar(rope2d, qkv[:, :2], exact[:, :2], exact[:, :2].to(dtype))
    assert torch.equal(qkv[:, 2], exact[:, 2].to(dtype))


def test_table_of_the_released_head_size() -> None:
    cos, sin = rope2d_table(8, 72)
    assert cos.shape == sin.shape == (8, 18)
    assert cos.dtype == sin.dtype == torch.float32
    expected = torch.tensor([_angles(g, 0, 72)[:18] for g in range(8)], dtype=torch.float64)
    torch.testing.assert_close(cos.double(), expected.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin.double(), expected.sin(), rtol=0, atol=1e-6)
    assert cos[0].eq(1).all()
    assert sin[0].eq(0).all()


def test_turning_keeps_lengths_and_depends_on_distance_only() -> None:
    qkv, bias = _random(1, 1, 16)

    def turned(at: tuple[int, int]) -> torch.Tensor:
        x = qkv.clone()
        rope2d(x, bias, *_arguments([at], 16))
        plain = qkv + bias
        torch.testing.assert_close(x[:, :2].norm(dim=3), plain[:, :2].norm(dim=3))
        return x

    def score(query_at: tuple[int, int], key_at: tuple[int, int]) -> float:
        return (turned(query_at)[0, 0] * turned(key_at)[0, 1]).sum().item()

    assert math.isclose(score((2, 3), (7, 1)), score((12, 5), (17, 3)), abs_tol=1e-4)
    assert not math.isclose(score((2, 3), (7, 1)), score((2, 3), (1, 7)), abs_tol=1e-2)


def test_the_place_zero_only_adds_the_bias() -> None:
    qkv, bias = _random(1, 2, 8)
    expected = qkv + bias
    rope2d(qkv, bias, *_arguments([(0, 0)], 8))
    assert torch.equal(qkv, expected)


def test_patches_do_not_reach_each_other() -> None:
    qkv, bias = _random(4, 2, 8)
    poisoned = qkv.clone()
    poisoned[2] = torch.nan
    arguments = _arguments([(0, 1), (2, 3), (4, 5), (6, 7)], 8)
    rope2d(qkv, bias, *arguments)
    rope2d(poisoned, bias, *arguments)
    assert torch.isnan(poisoned[2]).all()
    assert torch.equal(poisoned[[0, 1, 3]], qkv[[0, 1, 3]])


def test_the_larger_part_of_a_table_is_not_looked_at() -> None:
    """One table serves all grids: what its other rows hold changes nothing."""
    qkv, bias = _random(2, 1, 8)
    rows, columns, cos, sin = _arguments([(1, 2), (2, 0)], 8)
    other = qkv.clone()
    rope2d(qkv, bias, rows, columns, cos, sin)
    nothing = torch.full((5, 2), torch.nan)
    rope2d(other, bias, rows, columns, torch.cat([cos, nothing]), torch.cat([sin, nothing]))
    assert torch.equal(other, qkv)


def test_strided_argument() -> None:
    qkv, bias = _random(5, 2, 8)
    wide = torch.full((5, 3, 4, 8), torch.nan)
    wide[:, :, 1:3] = qkv
    arguments = _arguments([(i, 2 * i) for i in range(5)], 8)
    rope2d(qkv, bias, *arguments)
    rope2d(wide[:, :, 1:3], bias, *arguments)
    assert torch.equal(wide[:, :, 1:3], qkv)
    assert wide[:, :, [0, 3]].isnan().all()


def test_nothing() -> None:
    qkv, bias = _random(0, 2, 8)
    rope2d(qkv, bias, *_arguments([], 8))
    assert qkv.shape == (0, 3, 2, 8)


def test_gradients_turn_back() -> None:
    product, bias = (x.requires_grad_() for x in _random(3, 1, 8))
    places = [(1, 2), (3, 4), (5, 6)]
    qkv = product * 1  # written to in place, which a leaf forbids
    rope2d(qkv, bias, *_arguments(places, 8))
    gradients = torch.autograd.grad(qkv.sum(), (product, bias))
    backwards = _oracle(torch.ones(3, 3, 1, 8), torch.zeros(3, 1, 8), [(-r, -c) for r, c in places])
    torch.testing.assert_close(gradients[0].double(), backwards, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradients[1].double(), backwards.sum(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("head_dim", [2, 6, 71])
def test_head_size_that_four_does_not_divide(head_dim: int) -> None:
    message = f"^rope2d: expected a head size that is a multiple of 4, got {head_dim}$"
    with pytest.raises(ValueError, match=message):
        rope2d_table(1, head_dim)
    with pytest.raises(ValueError, match=message):
        rope2d(*_random(1, 1, head_dim), *_arguments([(0, 0)], 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qkv": torch.zeros(3, 2, 2, 8)}, r"expected qkv of shape \(any, 3, any, any\), got \(3, 2, 2, 8\)"),
        ({"bias": torch.zeros(3, 8)}, r"expected bias of shape \(3, 2, 8\), got \(3, 8\)"),
        ({"bias": torch.zeros(3, 2, 8).half()}, "expected bias of torch.float32, got torch.float16"),
        ({"rows": torch.zeros(2, dtype=torch.int32)}, r"expected rows of shape \(3\), got \(2,\)"),
        ({"columns": torch.zeros(3)}, "expected columns of torch.int32, got torch.float32"),
        ({"cos": torch.zeros(5, 4)}, r"expected cos of shape \(any, 2\), got \(5, 4\)"),
        ({"sin": torch.zeros(4, 2)}, r"expected sin of shape \(5, 2\), got \(4, 2\)"),
        ({"sin": torch.zeros(5, 2).half()}, "expected sin of torch.float32 or torch.float64, got torch.float16"),
        ({"cos": torch.zeros(0, 2), "sin": torch.zeros(0, 2)}, "expected a table of at least one place, got none"),
        ({"rows": torch.tensor([0, 5, 1]).int()}, "expected rows from 0 to 4, got 0 to 5"),
        ({"columns": torch.tensor([0, -1, 4]).int()}, "expected columns from 0 to 4, got -1 to 4"),
    ],
)
def test_errors(change: dict[str, torch.Tensor], message: str) -> None:
    qkv, bias = _random(3, 2, 8)
    rows = torch.arange(3, dtype=torch.int32)
    cos, sin = rope2d_table(5, 8)
    arguments = {"qkv": qkv, "bias": bias, "rows": rows, "columns": rows, "cos": cos, "sin": sin} | change
    before = arguments["qkv"].clone()
    with pytest.raises(ValueError, match=f"^rope2d: {message}$"):
        rope2d(*arguments.values())
    assert torch.equal(arguments["qkv"], before)
