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


def _oracle(x: torch.Tensor, places: list[tuple[int, int]]) -> torch.Tensor:
    """(P, heads, head_dim) turned in complex128."""
    half = x.shape[2] // 2
    angles = torch.tensor([_angles(r, c, x.shape[2]) for r, c in places], dtype=torch.float64).reshape(-1, 1, half)
    points = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = points * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def _table(places: list[tuple[int, int]], head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    place = torch.tensor(places, dtype=torch.int64).reshape(-1, 2)
    return rope2d_table(place[:, 0], place[:, 1], head_dim)


PLACES = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), max_size=40)


@given(places=PLACES, heads=st.integers(1, 4), quarter=st.sampled_from([1, 2, 5, 18]))
def test_against_complex_numbers(places: list[tuple[int, int]], heads: int, quarter: int) -> None:
    generator = torch.Generator().manual_seed(len(places))
    q, k = (torch.randn(len(places), heads, 4 * quarter, generator=generator) for _ in range(2))
    for x, turned in zip((q, k), rope2d(q, k, *_table(places, 4 * quarter)), strict=True):
        assert turned.shape == x.shape
        # an angle of 120 in float32 is off by 120 * 2^-24
        torch.testing.assert_close(turned.double(), _oracle(x, places), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_precision(dtype: torch.dtype, generator: torch.Generator, numeric_bar: Callable[..., None]) -> None:
    places = [(r, c) for r in range(6) for c in range(5)]
    q, k = (torch.randn(30, 3, 72, generator=generator).to(dtype) for _ in range(2))
    cos, sin = _table(places, 72)
    for x, turned in zip((q, k), rope2d(q, k, cos, sin), strict=True):
        assert turned.dtype == dtype
        exact = _oracle(x, places)
        # computed in float32, so no worse than rounding the exact result once
        numeric_bar(rope2d, turned, exact, exact.to(dtype))


def test_table_of_the_released_head_size() -> None:
    cos, sin = _table([(3, 7), (0, 0)], 72)
    assert cos.shape == sin.shape == (2, 36)
    assert cos.dtype == sin.dtype == torch.float32
    expected = torch.tensor(_angles(3, 7, 72), dtype=torch.float64)
    torch.testing.assert_close(cos[0].double(), expected.cos(), rtol=0, atol=1e-6)
    torch.testing.assert_close(sin[0].double(), expected.sin(), rtol=0, atol=1e-6)
    assert cos[1].eq(1).all()
    assert sin[1].eq(0).all()


def test_turning_keeps_lengths_and_depends_on_distance_only(generator: torch.Generator) -> None:
    q, k = (torch.randn(1, 1, 16, generator=generator, dtype=torch.float64).float() for _ in range(2))

    def score(at: tuple[int, int], other: tuple[int, int]) -> float:
        turned_q, _ = rope2d(q, q, *_table([at], 16))
        _, turned_k = rope2d(k, k, *_table([other], 16))
        assert math.isclose(turned_q.norm().item(), q.norm().item(), rel_tol=1e-5)
        return (turned_q * turned_k).sum().item()

    assert math.isclose(score((2, 3), (7, 1)), score((12, 5), (17, 3)), abs_tol=1e-4)
    assert not math.isclose(score((2, 3), (7, 1)), score((2, 3), (1, 7)), abs_tol=1e-2)


def test_the_place_zero_changes_nothing(generator: torch.Generator) -> None:
    q, k = (torch.randn(1, 2, 8, generator=generator) for _ in range(2))
    turned_q, turned_k = rope2d(q, k, *_table([(0, 0)], 8))
    assert torch.equal(turned_q, q)
    assert torch.equal(turned_k, k)


def test_patches_do_not_reach_each_other(generator: torch.Generator) -> None:
    q, k = (torch.randn(4, 2, 8, generator=generator) for _ in range(2))
    table = _table([(0, 1), (2, 3), (4, 5), (6, 7)], 8)
    clean = rope2d(q, k, *table)
    q[2], k[2] = torch.nan, torch.nan
    for poisoned, expected in zip(rope2d(q, k, *table), clean, strict=True):
        assert torch.isnan(poisoned[2]).all()
        assert torch.equal(poisoned[[0, 1, 3]], expected[[0, 1, 3]])


def test_strided_arguments(generator: torch.Generator) -> None:
    """The encoder passes slices of one product."""
    qkv = torch.randn(5, 3, 2, 8, generator=generator)
    q, k, _ = qkv.unbind(1)
    table = _table([(i, 2 * i) for i in range(5)], 8)
    for a, b in zip(rope2d(q, k, *table), rope2d(q.contiguous(), k.contiguous(), *table), strict=True):
        assert torch.equal(a, b)


def test_nothing() -> None:
    q = torch.zeros(0, 2, 8)
    turned_q, turned_k = rope2d(q, q, *_table([], 8))
    assert turned_q.shape == turned_k.shape == (0, 2, 8)


def test_gradients_turn_back(generator: torch.Generator) -> None:
    q, k = (torch.randn(3, 1, 8, generator=generator, requires_grad=True) for _ in range(2))
    places = [(1, 2), (3, 4), (5, 6)]
    turned, _ = rope2d(q, k, *_table(places, 8))
    (gradient,) = torch.autograd.grad(turned, q, torch.ones_like(turned))
    backwards = _oracle(torch.ones(3, 1, 8), [(-r, -c) for r, c in places])
    torch.testing.assert_close(gradient.double(), backwards, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head_dim", [2, 6, 71])
def test_head_size_that_four_does_not_divide(head_dim: int) -> None:
    with pytest.raises(ValueError, match=f"^rope2d: expected a head size that is a multiple of 4, got {head_dim}$"):
        _table([(0, 0)], head_dim)


def test_errors() -> None:
    q = torch.zeros(3, 2, 8)
    cos, sin = torch.ones(3, 4), torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"^rope2d: expected k of shape \(3, 2, 8\), got \(3, 1, 8\)$"):
        rope2d(q, q[:, :1], cos, sin)
    with pytest.raises(ValueError, match=r"^rope2d: expected cos of shape \(3, 4\), got \(2, 4\)$"):
        rope2d(q, q, cos[:2], sin)
    with pytest.raises(ValueError, match=r"^rope2d: expected sin of shape \(3, 4\), got \(3, 8\)$"):
        rope2d(q, q, cos, torch.zeros(3, 8))
