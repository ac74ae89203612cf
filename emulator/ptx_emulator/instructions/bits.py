"""Logic, shifts and bit fields. PTX ISA, "Logic and Shift Instructions" and "Integer Arithmetic Instructions"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..faults import UnknownInstructionError
from ..opcodes import kind_of, opcode
from ..operands import Operands, Run
from ..parser import Instruction
from ..scalar_types import DTYPES, Array, as_kind
from .arithmetic import apply

if TYPE_CHECKING:
    from ..machine import Machine, Mask


@opcode("and or xor")
def logic(ops: Operands, ins: Instruction) -> Run:
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[ins.opcode]
    return apply(ops, ins, kind_of(ins), function)


@opcode("not")
def invert(ops: Operands, ins: Instruction) -> Run:
    return apply(ops, ins, kind_of(ins), np.invert)


@opcode("lop3")
def lop3(ops: Operands, ins: Instruction) -> Run:
    """Any function of three bits: bit 4 a + 2 b + c of the table."""
    write = ops.write(ins.operands[0], ins)
    reads = [ops.read(o, "b32", ins) for o in ins.operands[1:4]]
    table = int(str(ins.operands[4]), 0)

    def run(m: Machine, active: Mask | None) -> None:
        a, b, c = (r(m) for r in reads)
        result = np.zeros(m.shape, np.uint32)
        for i in range(8):
            if table >> i & 1:
                result = result | (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        write(m, result, active)

    return run


@opcode("shl shr")
def shift(ops: Operands, ins: Instruction) -> Run:
    """A distance beyond the width counts as the width: zeros, or the sign for signed numbers moved right."""
    kind = kind_of(ins)
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize
    write = ops.write(ins.operands[0], ins)
    read, by = ops.read(ins.operands[1], kind, ins), ops.read(ins.operands[2], "u32", ins)
    move = np.left_shift if ins.opcode == "shl" else np.right_shift
    keeps_sign = dtype.kind == "i" and ins.opcode == "shr"

    def run(m: Machine, active: Mask | None) -> None:
        distance = by(m)
        if distance.ndim == 0 and distance < bits:
            return write(m, move(read(m), dtype.type(distance)), active)
        moved = move(read(m), np.minimum(distance, bits - 1).astype(dtype))
        write(m, moved if keeps_sign else np.where(distance >= bits, dtype.type(0), moved), active)

    return run


@opcode("shf", "l r wrap clamp")
def funnel(ops: Operands, ins: Instruction) -> Run:
    """Shift of 64 bits, of which 32 are kept."""
    if kind_of(ins) != "b32":
        raise UnknownInstructionError(ins, "a type of shf")
    write = ops.write(ins.operands[0], ins)
    low, high, by = (ops.read(o, "b32", ins) for o in ins.operands[1:4])
    left, wrap = "l" in ins.modifiers, "wrap" in ins.modifiers

    def run(m: Machine, active: Mask | None) -> None:
        both = low(m).astype(np.uint64) | high(m).astype(np.uint64) << np.uint64(32)
        distance = (by(m) & np.uint32(31) if wrap else np.minimum(by(m), np.uint32(32))).astype(np.uint64)
        moved = both << distance >> np.uint64(32) if left else both >> distance
        write(m, moved.astype(np.uint32), active)

    return run


@opcode("bfe")
def extract(ops: Operands, ins: Instruction) -> Run:
    """Bits `position` to `position + length`, extended by zeros or by the field's highest bit."""
    kind = kind_of(ins)
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize
    write = ops.write(ins.operands[0], ins)
    read = ops.read(ins.operands[1], kind, ins)
    position, length = (ops.read(o, "u32", ins) for o in ins.operands[2:4])

    def run(m: Machine, active: Mask | None) -> None:
        start, count = (x(m).astype(np.int64) & 0xFF for x in (position, length))
        value = read(m)
        # to the top, where the sign is taken, and down again
        end = np.minimum(start + count, bits)
        empty = (count == 0) | (start >= bits)
        up = np.clip(bits - end, 0, bits - 1).astype(dtype)
        down = np.clip(bits - np.maximum(end - start, 1), 0, bits - 1).astype(dtype)
        field = value << up >> down
        past = value >> dtype.type(bits - 1) if dtype.kind == "i" else dtype.type(0)
        write(m, np.where(empty, np.where(count == 0, dtype.type(0), past), field), active)

    return run


@opcode("bfi")
def insert(ops: Operands, ins: Instruction) -> Run:
    kind = kind_of(ins)
    dtype = DTYPES[kind]
    bits = 8 * dtype.itemsize
    write = ops.write(ins.operands[0], ins)
    field, base = (ops.read(o, kind, ins) for o in ins.operands[1:3])
    position, length = (ops.read(o, "u32", ins) for o in ins.operands[3:5])

    def run(m: Machine, active: Mask | None) -> None:
        start, count = (x(m).astype(np.uint64) & np.uint64(0xFF) for x in (position, length))
        one = np.uint64(1)
        ones = np.where(count >= bits, ~np.uint64(0), (one << np.minimum(count, np.uint64(63))) - one)
        at = np.minimum(start, np.uint64(63))
        mask = np.where(start >= bits, np.uint64(0), ones << at)
        both = field(m).astype(np.uint64) << at & mask | base(m).astype(np.uint64) & ~mask
        write(m, both.astype(dtype), active)

    return run


@opcode("brev")
def reverse(ops: Operands, ins: Instruction) -> Run:
    bits = 8 * DTYPES[kind_of(ins)].itemsize

    def function(x: Array) -> Array:
        result = np.zeros_like(x)
        for i in range(bits):
            result |= (x >> x.dtype.type(i) & x.dtype.type(1)) << x.dtype.type(bits - 1 - i)
        return result

    return apply(ops, ins, kind_of(ins), function)


def _leading_zeros(x: Array) -> Array:
    bits = 8 * x.dtype.itemsize
    filled = x.copy()
    distance = 1
    while distance < bits:
        filled |= filled >> x.dtype.type(distance)
        distance *= 2
    return (bits - np.bitwise_count(filled)).astype(np.uint32)


@opcode("popc")
def ones(ops: Operands, ins: Instruction) -> Run:
    return apply(ops, ins, kind_of(ins), lambda x: np.bitwise_count(x).astype(np.uint32))


@opcode("clz")
def leading_zeros(ops: Operands, ins: Instruction) -> Run:
    return apply(ops, ins, kind_of(ins), _leading_zeros)


@opcode("bfind", "shiftamt")
def find(ops: Operands, ins: Instruction) -> Run:
    """The highest bit that is not the sign's, or with .shiftamt its distance from the top; all ones for none."""
    kind = kind_of(ins)
    bits = 8 * DTYPES[kind].itemsize
    unsigned = DTYPES[f"u{bits}"]

    def function(x: Array) -> Array:
        magnitude = as_kind(np.where(x < 0, ~x, x), unsigned) if x.dtype.kind == "i" else x
        zeros = _leading_zeros(magnitude)
        place = zeros if "shiftamt" in ins.modifiers else np.uint32(bits - 1) - zeros
        return np.where(zeros == bits, np.uint32(0xFFFFFFFF), place)

    return apply(ops, ins, kind, function)


@opcode("prmt")
def permute(ops: Operands, ins: Instruction) -> Run:
    """Four bytes chosen among the eight of b:a; bit 3 of a selector repeats the byte's sign."""
    if ins.modifiers != ("b32",):
        raise UnknownInstructionError(ins, "a mode of prmt")
    write = ops.write(ins.operands[0], ins)
    low, high, selectors = (ops.read(o, "b32", ins) for o in ins.operands[1:4])

    def run(m: Machine, active: Mask | None) -> None:
        both = low(m).astype(np.uint64) | high(m).astype(np.uint64) << np.uint64(32)
        chosen = selectors(m).astype(np.uint64)
        result: Array = np.zeros((), np.uint64)
        for i in range(4):
            selector = chosen >> np.uint64(4 * i) & np.uint64(15)
            byte = both >> (selector & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
            sign = np.where(byte >> np.uint64(7), np.uint64(0xFF), np.uint64(0))
            result = result | np.where(selector & np.uint64(8), sign, byte) << np.uint64(8 * i)
        write(m, result.astype(np.uint32), active)

    return run
