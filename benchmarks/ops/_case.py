"""What a benchmark of an operation declares: `benchmarks/ops/<op>.py` has `def cases() -> Iterator[Case]`.

    from _case import Case, normal

    def cases() -> Iterator[Case]:
        yield Case("rope2d", "5 patches", _arguments(5), flops=..., moved=..., smoke=True)
        yield Case("rope2d", "982 patches", _arguments(982), flops=..., moved=...)

`benchmarks/ops_bench.py` measures them; `tests/test_benchmarks.py` runs every operation's smoke cases on the CPU, with
the kernels in Triton's interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
Arguments = tuple[Any, ...]
Rivals = Mapping[str, Callable[[], Any]]


def _no_rivals(arguments: Arguments) -> Rivals:
    return {}


@dataclass(frozen=True)
class Case:
    """One call of an operation.

    Attributes:
        op: name of the operation.
        name: the sizes, for people ("16 objects of 150 patches").
        arguments: makes the call's arguments on a device in a dtype, the same values each time; random, never zeros,
            and without padding, whose results are not specified.
        flops: floating-point operations that the call must do (a multiply-add is two).
        moved: bytes that the call must move, given the dtype: each input read once, each output written once.
        dtypes: float dtypes to measure; one entry for an operation on integers.
        smoke: small enough for Triton's interpreter (a second or two); not timed on a device.
        rivals: other code for the same work, by name, on the same arguments; what it returns is not checked, None
            apart. Imports what it needs itself and leaves out what is not installed.
    """

    op: str
    name: str
    arguments: Callable[[torch.device, torch.dtype], Arguments]
    flops: int
    moved: Callable[[torch.dtype], int]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    smoke: bool = False
    rivals: Callable[[Arguments], Rivals] = _no_rivals


def normal(shape: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Standard normal numbers from a seed of their own, alike on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def moved(*tensors: torch.Tensor) -> int:
    """Bytes of tensors that are read or written once."""
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class Check:
    """Error of a call: the largest difference from the definition in float64, of the worst of its results.

    Attributes:
        error: of the call; infinite for another shape, dtype or integer, and for NaN.
        limit: twice the definition's own error in the same dtype plus the operation's tolerance; integers: 0.
    """

    error: float
    limit: float

    @property
    def ok(self) -> bool:
        return self.error <= self.limit


def call(op: Any, run: Callable[..., Any], arguments: Arguments) -> list[torch.Tensor]:
    """The tensors that a call gives: its results, and the arguments that it writes to (of a copy of them)."""
    own = tuple(a.clone() if i in written(op) else a for i, a in enumerate(arguments))
    returned = run(*own)
    return [*tensors(returned), *(own[i] for i in written(op))]


def written(op: Any) -> set[int]:
    """Places of the arguments that the operation writes to."""
    names = [a.name for a in op.operator._schema.arguments]
    return {names.index(name) for name in op.mutates}


@dataclass(frozen=True)
class Expected:
    """What the definition gives: with every float in float64, and in the call's own dtype."""

    exact: list[torch.Tensor]
    plain: list[torch.Tensor]


def expected(op: Any, arguments: Arguments) -> Expected:
    """The tensors that a `call` of the definition gives."""
    exact = call(op, op.definition, tuple(_in_float64(a) for a in arguments))
    return Expected(exact, call(op, op.definition, arguments))


def check(op: Any, wanted: Expected, results: Iterable[torch.Tensor]) -> Check:
    """Judge the tensors of a `call`."""
    checks = [Check(0.0, 0.0)]
    for result, exact, own in zip(results, wanted.exact, wanted.plain, strict=True):
        if result.shape != own.shape or result.dtype != own.dtype:
            checks.append(Check(math.inf, 0.0))
        elif not result.is_floating_point():
            checks.append(Check(0.0 if torch.equal(result, own) else math.inf, 0.0))
        elif result.numel():
            limit = 2 * _difference(own, exact) + op.tolerance[result.dtype]
            checks.append(Check(_difference(result, exact), limit))
    return max(checks, key=lambda c: c.error - c.limit)


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a result: itself, or those of a tuple."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def _in_float64(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    largest = (a.double() - b.double()).abs().max().item()
    return math.inf if math.isnan(largest) else largest
