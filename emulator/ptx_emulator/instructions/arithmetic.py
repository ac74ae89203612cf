"""Integer and floating-point arithmetic that rounds once: add, sub, mul, mad, div, rem, min, max, neg, abs, sad.

PTX ISA, "Integer Arithmetic Instructions", "Floating Point Instructions" and "Half Precision Floating Point
Instructions". Integers wrap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..faults import UnknownInstructionError
from ..opcodes import kind_of, opcode
from ..operands import Operands, Run
from ..parser import Instruction
from ..scalar_types import (
    CANONICAL_NAN,
    DTYPES,
    SIGNED,
    UNSIGNED,
    Array,
    halves,
    is_float,
    is_signed,
    narrow,
    packed,
    widen,
)

if TYPE_CHECKING:
    from ..machine import Machine, Mask

Function = Callable[..., Array]


def apply(ops: Operands, ins: Instruction, kind: str, function: Function) -> Run:
    """d = function(a, b, ...) on values of one type; 16-bit floats are widened to float32 and rounded."""
    if kind in ("f16x2", "bf16x2"):
        return _apply_to_halves(ops, ins, kind[:-2], function)
    write = ops.write(ins.operands[0], ins)
    if kind in ("f16", "bf16"):
        bits = [ops.read(o, "b16", ins) for o in ins.operands[1:]]
        return lambda m, active: write(m, narrow(function(*(widen(b(m), kind) for b in bits)), kind), active)
    reads = [ops.read(o, kind, ins) for o in ins.operands[1:]]
    if kind == "f32" and "ftz" in ins.modifiers:
        return lambda m, active: write(m, flush(function(*(flush(r(m)) for r in reads))), active)
    if len(reads) == 1:
        (only,) = reads
        return lambda m, active: write(m, function(only(m)), active)
    if len(reads) == 2:
        left, right = reads
        return lambda m, active: write(m, function(left(m), right(m)), active)
    return lambda m, active: write(m, function(*(r(m) for r in reads)), active)


def _apply_to_halves(ops: Operands, ins: Instruction, kind: str, function: Function) -> Run:
    write = ops.write(ins.operands[0], ins)
    reads = [ops.read(o, "b32", ins) for o in ins.operands[1:]]

    def run(m: Machine, active: Mask | None) -> None:
        low, high = zip(*(halves(r(m)) for r in reads), strict=True)
        results = [narrow(function(*(widen(x, kind) for x in part)), kind) for part in (low, high)]
        write(m, packed(*results), active)

    return run


def flush(value: Array) -> Array:
    """Subnormal float32 as zeros of their sign (`.ftz`)."""
    small = np.abs(value) < np.finfo(np.float32).tiny
    return np.where(small, np.copysign(np.float32(0), value), value)


@opcode("add sub", "rn ftz")
def add(ops: Operands, ins: Instruction) -> Run:
    return apply(ops, ins, kind_of(ins), np.add if ins.opcode == "add" else np.subtract)


@opcode("neg", "ftz")
def neg(ops: Operands, ins: Instruction) -> Run:
    return apply(ops, ins, kind_of(ins), np.negative)


@opcode("abs", "ftz")
def absolute(ops: Operands, ins: Instruction) -> Run:
    return apply(ops, ins, kind_of(ins), np.abs)


@opcode("sad")
def sad(ops: Operands, ins: Instruction) -> Run:
    """c + |a - b|."""
    return apply(ops, ins, kind_of(ins), lambda a, b, c: c + np.where(a < b, b - a, a - b))


@opcode("min max", "ftz NaN relu")
def extremum(ops: Operands, ins: Instruction) -> Run:
    """Of floats: a NaN gives the other operand, or with .NaN the canonical NaN, as two NaN do; -0 is less than +0."""
    kind, lowest = kind_of(ins), ins.opcode == "min"
    if is_float(kind):
        if "relu" in ins.modifiers:
            raise UnknownInstructionError(ins, "modifier .relu of floats")
        chooses: dict[tuple[bool, bool], Function] = {
            (True, True): np.minimum,
            (True, False): np.maximum,
            (False, True): np.fmin,
            (False, False): np.fmax,
        }
        choose = chooses["NaN" in ins.modifiers, lowest]

        def function(a: Array, b: Array) -> Array:
            result = choose(a, b)
            if (zero := (a == 0) & (b == 0)).any():
                first, second = (np.signbit(x) for x in (a, b))
                minus = first | second if lowest else first & second
                signed = np.copysign(np.zeros((), result.dtype), np.where(minus, -1, 1).astype(result.dtype))
                result = np.where(zero, signed, result)
            # of 16 bits the caller makes it canonical, of 64 the payload is kept
            return np.where(np.isnan(result), CANONICAL_NAN, result) if kind == "f32" else result

        return apply(ops, ins, kind, function)
    whole = np.minimum if lowest else np.maximum
    if "relu" in ins.modifiers:
        return apply(ops, ins, kind, lambda a, b: np.maximum(whole(a, b), a.dtype.type(0)))
    return apply(ops, ins, kind, whole)


def _wide(kind: str) -> np.dtype:
    size = 2 * DTYPES[kind].itemsize
    if size > 8:
        raise KeyError(kind)
    return SIGNED[size] if is_signed(kind) else UNSIGNED[size]


def high_product(a: Array, b: Array) -> Array:
    """Upper half of the product of two integers of a type."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        wide = (SIGNED if a.dtype.kind == "i" else UNSIGNED)[a.dtype.itemsize * 2]
        return (a.astype(wide) * b.astype(wide) >> wide.type(bits)).astype(a.dtype)
    # 32-bit digits: (a1 2^32 + a0) (b1 2^32 + b0)
    x, y, low, half = a.view(np.uint64), b.view(np.uint64), np.uint64(0xFFFFFFFF), np.uint64(32)
    x0, x1, y0, y1 = x & low, x >> half, y & low, y >> half
    middle = x1 * y0 + (x0 * y0 >> half)
    other = x0 * y1 + (middle & low)
    high = x1 * y1 + (middle >> half) + (other >> half)
    if a.dtype.kind == "u":
        return high
    # as signed numbers each negative one is 2^64 less
    high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(np.int64)


@opcode("mul", "lo hi wide rn ftz")
def mul(ops: Operands, ins: Instruction) -> Run:
    kind = kind_of(ins)
    if "wide" in ins.modifiers:
        wide = _wide(kind)
        return apply(ops, ins, kind, lambda a, b: a.astype(wide) * b.astype(wide))
    if "hi" in ins.modifiers:
        return apply(ops, ins, kind, high_product)
    if not is_float(kind) and "lo" not in ins.modifiers:
        raise UnknownInstructionError(ins, "neither .lo, .hi nor .wide")
    return apply(ops, ins, kind, np.multiply)


@opcode("mad", "lo hi wide")
def mad(ops: Operands, ins: Instruction) -> Run:
    kind = kind_of(ins)
    if is_float(kind):
        raise UnknownInstructionError(ins, "mad of floats")
    if "wide" not in ins.modifiers:
        product = high_product if "hi" in ins.modifiers else np.multiply
        return apply(ops, ins, kind, lambda a, b, c: product(a, b) + c)
    wide = _wide(kind)
    write = ops.write(ins.operands[0], ins)
    a, b = (ops.read(o, kind, ins) for o in ins.operands[1:3])
    c = ops.read(ins.operands[3], ("s" if is_signed(kind) else "u") + str(8 * wide.itemsize), ins)
    return lambda m, active: write(m, a(m).astype(wide) * b(m).astype(wide) + c(m), active)


def _quotient(a: Array, b: Array) -> Array:
    """Truncated; a quotient by zero has no defined value: all bits set."""
    zero = b == 0
    divisor = np.where(zero, b.dtype.type(1), b)
    quotient = a // divisor
    if a.dtype.kind == "i":
        quotient = quotient + ((a % divisor != 0) & ((a < 0) != (divisor < 0)))
    return np.where(zero, np.array(-1).astype(a.dtype), quotient)


def _remainder(a: Array, b: Array) -> Array:
    zero = b == 0
    return np.where(zero, np.array(-1).astype(a.dtype), np.fmod(a, np.where(zero, b.dtype.type(1), b)))


@opcode("div", "rn full approx ftz")
def div(ops: Operands, ins: Instruction) -> Run:
    kind = kind_of(ins)
    if not is_float(kind):
        return apply(ops, ins, kind, _quotient)
    if "rn" in ins.modifiers:
        return apply(ops, ins, kind, np.divide)
    from .floats import at_the_edge  # of what div.full and div.approx may give: 2 ulp ("div")

    edge = at_the_edge(ops.numerics, 2 * 2.0**-23)
    return apply(ops, ins, kind, lambda a, b: edge(a.astype(np.float64) / b.astype(np.float64)))


@opcode("rem")
def rem(ops: Operands, ins: Instruction) -> Run:
    return apply(ops, ins, kind_of(ins), _remainder)
