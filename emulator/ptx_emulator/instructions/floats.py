"""fma, and the functions that PTX defines by their largest error.

PTX ISA, "Floating Point Instructions". An approximate function gives the nearest float32 of its exact value, or the
one at an edge of the documented error: both are results that a device may give.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..opcodes import kind_of, opcode
from ..operands import Operands, Run
from ..options import Numerics
from ..parser import Instruction
from ..scalar_types import Array
from .arithmetic import apply


def fused(a: Array, b: Array, c: Array) -> Array:
    """a b + c, rounded once, in float32 or float64."""
    return _fused32(a, b, c) if a.dtype == np.float32 else _fused64(a, b, c)


def _fused32(a: Array, b: Array, c: Array) -> Array:
    product = a.astype(np.float64) * b.astype(np.float64)  # exact: 48 bits
    addend = c.astype(np.float64)
    total = np.asarray(product + addend)
    result = total.astype(np.float32)
    # the sum was rounded to 53 bits: to round it again is wrong where it then lies half-way, or below normal numbers
    doubtful = (total.view(np.uint64) & np.uint64(0x1FFFFFFF)) == np.uint64(0x10000000)
    doubtful |= np.abs(result) < np.finfo(np.float32).tiny
    if doubtful.any():
        result = np.where(doubtful, _odd(product, addend, total).astype(np.float32), result)
    return result


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded sum and its error (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _odd(a: Array, b: Array, total: Array) -> Array:
    """a + b rounded to odd: what a second rounding to fewer bits then makes of it is right."""
    error = _two_sum(a, b)[1]
    even = (total.view(np.uint64) & np.uint64(1)) == 0
    towards = np.where(error > 0, np.inf, -np.inf)
    move = even & (error != 0) & np.isfinite(total)
    return np.where(move, np.nextafter(total, towards), total)


def _fused64(a: Array, b: Array, c: Array) -> Array:
    """Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd"."""
    a, b, c = np.broadcast_arrays(a, b, c)
    high, low = _two_product(a, b)
    sum_high, sum_low = _two_sum(c, low)
    top, rest = _two_sum(high, sum_high)
    odd = _odd(sum_low, rest, sum_low + rest)
    plain = a * b + c
    exact = top + odd
    # splitting overflows near the largest numbers: there, and at infinities, the product is taken as it comes
    return np.where(np.isfinite(exact), exact, plain)


def _two_product(a: Array, b: Array) -> tuple[Array, Array]:
    """The rounded product and its error (Veltkamp, Dekker)."""

    def split(x: Array) -> tuple[Array, Array]:
        scaled = x * 134217729.0  # 2^27 + 1
        high = scaled - (scaled - x)
        return high, x - high

    product = a * b
    (a1, a0), (b1, b0) = split(a), split(b)
    return product, ((a1 * b1 - product) + a1 * b0 + a0 * b1) + a0 * b0


@opcode("fma", "rn ftz")
def fma(ops: Operands, ins: Instruction) -> Run:
    kind = kind_of(ins)
    if ops.numerics.fusion == "never":
        if kind in ("f32", "f64"):
            return apply(ops, ins, kind, lambda a, b, c: a * b + c)
        from ..scalar_types import narrow, widen

        base = kind.removesuffix("x2")
        return apply(ops, ins, kind, lambda a, b, c: widen(narrow(a * b, base), base) + c)
    # a product of two 16-bit floats is exact in float32; their sum is rounded there as by fma
    if kind in ("f32", "f64"):
        return apply(ops, ins, kind, fused)
    return apply(ops, ins, kind, _fused_to_odd)


def _fused_to_odd(a: Array, b: Array, c: Array) -> Array:
    """For 16-bit floats: a b + c in float32, rounded to odd, so that the caller rounds it rightly to 16 bits."""
    product = a.astype(np.float64) * b.astype(np.float64)
    total = _odd(product, c.astype(np.float64), np.asarray(product + c.astype(np.float64)))
    near = total.astype(np.float32)
    inexact = near.astype(np.float64) != total
    even = (near.view(np.uint32) & np.uint32(1)) == 0
    towards = np.where(total > near.astype(np.float64), np.float32(np.inf), np.float32(-np.inf))
    return np.where(inexact & even & np.isfinite(near), np.nextafter(near, towards), near)


def at_the_edge(numerics: Numerics, relative: float, absolute: float = 0.0) -> Callable[[Array], Array]:
    """From the exact value in float64 to the float32 that a function of this largest error gives."""
    side = numerics.approximate
    if not side:
        return lambda exact: exact.astype(np.float32)

    def move(exact: Array) -> Array:
        off = side * np.maximum(np.abs(exact) * relative, absolute)
        moved = (exact + off).astype(np.float32)
        # rounding must not carry it past the edge
        past = np.abs(moved.astype(np.float64) - exact) > np.abs(off)
        moved = np.where(past, np.nextafter(moved, exact.astype(np.float32)), moved)
        return np.where(np.isfinite(exact) & (exact != 0), moved, exact.astype(np.float32))

    return move


def _approximate(
    forms: str, function: Callable[[Array], Array], relative: float, absolute: float = 0.0, kinds: str = "f32"
) -> None:
    """Register a function of one argument: its name and rounding, and the types that the PTX ISA has it in.

    Its `.rn` form, and that in float64, is rounded to the nearest.
    """
    name, roundings = forms.split(maxsplit=1)

    @opcode(name, f"{roundings} ftz")
    def translate(ops: Operands, ins: Instruction) -> Run:
        kind = kind_of(ins)
        if kind not in kinds.split():
            raise KeyError(kind)
        if kind == "f64" or "rn" in ins.modifiers:
            return apply(ops, ins, kind, lambda x: function(x.astype(np.float64)).astype(x.dtype))
        edge = at_the_edge(ops.numerics, relative, absolute)

        def value(x: Array) -> Array:
            exact = np.asarray(function(x.astype(np.float64)))
            return np.where(x == 0, exact.astype(np.float32), edge(exact))  # of zero each gives what it should

        return apply(ops, ins, kind, value)


# largest errors as documented under each instruction's name
_HALVES = "f32 f16 f16x2 bf16 bf16x2"
_approximate("ex2 approx", np.exp2, 2.0**-22, kinds=_HALVES)
_approximate("rcp approx rn", lambda x: 1 / x, 2.0**-23, kinds="f32 f64")
_approximate("sqrt approx rn", np.sqrt, 2.0**-23, kinds="f32 f64")
_approximate("rsqrt approx", lambda x: 1 / np.sqrt(x), 2.0**-22.9, kinds="f32 f64")
_approximate("lg2 approx", np.log2, 2.0**-22, 2.0**-22)
_approximate("sin approx", np.sin, 0.0, 2.0**-20.5)
_approximate("cos approx", np.cos, 0.0, 2.0**-20.5)
_approximate("tanh approx", np.tanh, 2.0**-11, kinds=_HALVES)
