"""What a benchmark of an operation declares: `benchmarks/ops/<op>.py` has `def cases() -> Iterator[Case]`.

    from pixelrefer_fast.bench.run.cases import Case, normal

    def cases() -> Iterator[Case]:
        yield Case("rope2d", "5 patches", _arguments(5), flops=..., moved=..., smoke=True)
        yield Case("rope2d", "982 patches", _arguments(982), flops=..., moved=...)

`benchmarks/ops_bench.py` measures them (`bench.run.ops`); `tests/benchmarks/test_op_benchmarks.py` runs every
operation's smoke cases on the CPU, with the kernels in Triton's interpreter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Rival:
    """Other code for the same work, on arguments that it was made for.

    Attributes:
        run: does it.
        results: of what `run` gives, the tensors that the operation gives, None for one that the rival does not make;
            without it the rival's results are not checked.
        partial: which part of the operation it does, where that is not all.
    """

    run: Callable[[], Any]
    results: Callable[[Any], Sequence[torch.Tensor | None]] | None = None
    partial: str = ""


Rivals = Mapping[str, Callable[[Arguments], Rival]]


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
        rivals: other code for the same work, by name: what makes it for given arguments. That imports what it needs
            itself, and raises where something is not installed.
        owner: what computes it, with what is asked of an operation here; None: the operation of that name.
    """

    op: str
    name: str
    arguments: Callable[[torch.device, torch.dtype], Arguments]
    flops: int
    moved: Callable[[torch.dtype], int]
    dtypes: tuple[torch.dtype, ...] = FLOATS
    smoke: bool = False
    rivals: Rivals = field(default_factory=dict)
    owner: Any = None

    def operation(self) -> Any:
        """What computes the case."""
        from pixelrefer_fast.ops import registry

        return registry()[self.op] if self.owner is None else self.owner


def normal(shape: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Standard normal numbers from a seed of their own, alike on every device."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device, dtype)


def moved(*tensors: torch.Tensor) -> int:
    """Bytes of tensors that are read or written once."""
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class CallCheck:
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
    if not op.mutates:
        return set()
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


def check(op: Any, wanted: Expected, results: Iterable[torch.Tensor | None]) -> CallCheck:
    """Judge the tensors of a `call`, or of a rival: None where it makes none."""
    checks = []
    for result, exact, own in zip(results, wanted.exact, wanted.plain, strict=True):
        if result is None:
            continue
        if result.shape != own.shape or result.dtype != own.dtype:
            checks.append(CallCheck(math.inf, 0.0))
        elif not result.is_floating_point():
            checks.append(CallCheck(0.0 if torch.equal(result, own) else math.inf, 0.0))
        elif result.numel():
            limit = 2 * _difference(own, exact) + op.tolerance[result.dtype]
            checks.append(CallCheck(_difference(result, exact), limit))
    # one that is too large before all others, however small another's limit makes it look
    return max(checks, key=lambda c: (not c.ok, c.error), default=CallCheck(0.0, 0.0))


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a result: itself, or those of a tuple."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def _in_float64(value: Any) -> Any:
    if isinstance(value, list):
        return [_in_float64(item) for item in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    largest = (a.double() - b.double()).abs().max().item()
    return math.inf if math.isnan(largest) else largest
