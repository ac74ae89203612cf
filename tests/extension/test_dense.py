"""What the extension computes between the encoder's products on a CPU: near enough, row by row, and by default."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from pixelrefer_fast.ops import add_norm, linear_gelu, registry, rope2d
from pixelrefer_fast.ops.extension import load as extension
from pixelrefer_fast.ops.rope2d import rope2d_table

NAMES = ("add_norm", "linear_gelu", "rope2d")


@pytest.fixture(scope="module", autouse=True)
def _loaded() -> None:
    reason = extension.reason("cpu")
    if reason is not None:
        assert not any(map(shutil.which, ("c++", "g++", "clang++"))), reason
        pytest.skip(f"no C++ compiler, and so no extension: {reason}")


def _arguments(name: str, rows: int, width: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(rows + width)

    def draw(*shape: int) -> torch.Tensor:
        return 3 * torch.randn(shape, generator=generator)

    if name == "add_norm":
        return draw(rows, width), draw(rows, width), draw(width), draw(width), 1e-6
    if name == "linear_gelu":
        return draw(rows, 24), draw(width, 24) / 5, draw(width)
    size = 4 * min(width, 128)
    places = torch.randint(0, 7, (2, rows), generator=generator, dtype=torch.int32)
    return draw(rows, 3, 2, size), draw(3, 2, size), *places, *rope2d_table(7, size)


def _results(name: str, arguments: tuple[Any, ...], backend: str) -> list[torch.Tensor]:
    own = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    returned = registry()[name](*own, backend=backend)
    return [own[0]] if returned is None else [returned] if isinstance(returned, torch.Tensor) else list(returned)


def _cases() -> Iterator[tuple[str, int, int]]:
    for name in NAMES:
        for rows, width in ((1, 1), (3, 15), (2, 16), (5, 17), (4, 40), (33, 160)):
            yield name, rows, width


@pytest.mark.parametrize(("name", "rows", "width"), list(_cases()))
def test_as_near_as_torch(name: str, rows: int, width: int) -> None:
    arguments = _arguments(name, rows, width)
    wide = tuple(a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in arguments)
    oracle = _results(name, wide, "torch")
    own, given = _results(name, arguments, "torch"), _results(name, arguments, "cuda")
    for exact, theirs, ours in zip(oracle, own, given, strict=True):
        assert (ours - exact).abs().max() <= 2 * (theirs - exact).abs().max() + registry()[name].tolerance[
            torch.float32
        ]


@pytest.mark.parametrize("name", ["add_norm", "rope2d"])
def test_a_row_does_not_know_its_neighbours(name: str) -> None:
    arguments = _arguments(name, 9, 44)
    whole = _results(name, arguments, "cuda")
    for first, last in ((0, 1), (4, 9), (8, 9)):
        part = tuple(a[first:last] if isinstance(a, torch.Tensor) and len(a) == 9 else a for a in arguments)
        for alone, among in zip(_results(name, part, "cuda"), whole, strict=True):
            assert torch.equal(alone, among[first:last])


def test_nor_does_one_of_gelu() -> None:
    x, bias = 3 * torch.randn(9, 37, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 37)
    whole, alone = x.clone(), x[4:5].clone()
    for own in (whole, alone):
        torch.ops.pixelrefer_fast.bias_gelu_(own, bias)
    assert torch.equal(whole[4:5], alone)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_runs_by_default(name: str) -> None:
    before = registry()[name].fallbacks()
    arguments = _arguments(name, 5, 20)
    pairs = zip(_results(name, arguments, "auto"), _results(name, arguments, "cuda"), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert registry()[name].fallbacks() == before


def test_gelu_of_everything() -> None:
    x = torch.cat([torch.linspace(-30, 30, 6001), torch.tensor([0.0, -0.0, 1e-38, -1e-38, 1e38, -1e38])])[:, None]
    given = linear_gelu(x, torch.ones(1, 1), torch.zeros(1), backend="cuda")
    wanted = torch.nn.functional.gelu(x.double(), approximate="tanh")
    assert ((given - wanted).abs() <= 1e-6 * x.double().abs().clamp(max=10) + 1e-37 + 1e-6 * wanted.abs()).all()
    odd = torch.tensor([[float("nan")], [float("inf")], [float("-inf")]])
    assert linear_gelu(odd, torch.ones(1, 1), torch.zeros(1), backend="cuda").isfinite().sum() == 0


def test_what_it_declines() -> None:
    x, delta, weight, bias, eps = _arguments("add_norm", 4, 6)
    with pytest.raises(ValueError, match=r"declines: it computes float32, not torch\.float16$"):
        add_norm(x.half(), delta.half(), weight.half(), bias.half(), eps, backend="cuda")
    with pytest.raises(ValueError, match=r"declines: there is no norm to fuse$"):
        add_norm(x, delta, None, None, eps, backend="cuda")
    with pytest.raises(ValueError, match=r"declines: an argument is not contiguous \(strides \(1, 4\)\)$"):
        add_norm(x, delta.t().contiguous().t(), weight, bias, eps, backend="cuda")
    qkv, place = torch.zeros(1, 3, 1, 516), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"declines: it takes head sizes up to 512, not 516$"):
        rope2d(qkv, qkv[0], place, place, *rope2d_table(1, 516), backend="cuda")
    product, weight, bias = _arguments("linear_gelu", 2, 3)
    with pytest.raises(ValueError, match="declines: an argument needs a gradient"):
        linear_gelu(product, weight.requires_grad_(), bias, backend="cuda")


def test_a_place_outside_the_table_changes_nothing() -> None:
    qkv, bias, rows, columns, cos, sin = _arguments("rope2d", 4, 3)
    columns[2] = 7
    before = qkv.clone()
    with pytest.raises(ValueError, match=r"^rope2d: expected columns from 0 to 6, got "):
        rope2d(qkv, bias, rows, columns, cos, sin)
    assert torch.equal(qkv, before)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("bias_gelu_", [(2, 3), (4,)], r"expected bias of shape \(3,\), got \(4,\)"),
        ("add_norm_out", [(2, 3), (2, 4), (3,), (3,), 1e-6, (2, 3), (2, 3)], r"expected delta of shape \(2, 3\)"),
        ("rope2d_", [(2, 3, 1, 6), (3, 1, 6), (2,), (2,), (4, 1), (4, 1)], "expected heads of a multiple of 4"),
    ],
)
def test_arguments_are_checked(name: str, arguments: list[Any], message: str) -> None:
    given = [torch.zeros(a) if isinstance(a, tuple) else a for a in arguments]
    with pytest.raises(RuntimeError, match=f"^{name}: {message}"):
        getattr(torch.ops.pixelrefer_fast, name)(*given)


def test_out_variants_are_operators() -> None:
    operators = torch.ops.pixelrefer_fast
    x, delta, weight, bias, eps = _arguments("add_norm", 4, 6)
    outputs = torch.empty_like(x), torch.empty_like(x)
    torch.library.opcheck(operators.add_norm_out.default, (x, delta, weight, bias, eps, *outputs))
    torch.library.opcheck(operators.bias_gelu_.default, (x, bias))
    torch.library.opcheck(operators.rope2d_.default, _arguments("rope2d", 3, 2))
