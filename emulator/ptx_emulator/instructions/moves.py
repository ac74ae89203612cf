"""mov, selp, slct, cvta. PTX ISA, "Data Movement and Conversion Instructions" and "Comparison and Selection"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..faults import UnknownInstructionError
from ..opcodes import kind_of, opcode
from ..operands import SHARED_WINDOW, Operands, Run
from ..parser import Instruction
from ..scalar_types import DTYPES, UNSIGNED

if TYPE_CHECKING:
    from ..machine import Machine, Mask


@opcode("mov")
def move(ops: Operands, ins: Instruction) -> Run:
    kind = kind_of(ins)
    target, source = ins.operands
    if isinstance(target, tuple):
        return _unpack(ops, ins, target)
    write = ops.write(target, ins)
    if isinstance(source, tuple):
        return _pack(ops, ins, source)
    read = ops.read(source, kind, ins)
    return lambda m, active: write(m, read(m), active)


def _unpack(ops: Operands, ins: Instruction, targets: tuple[str, ...]) -> Run:
    """The first element is the lowest bits."""
    whole = UNSIGNED[DTYPES[kind_of(ins)].itemsize]
    part = UNSIGNED[whole.itemsize // len(targets)]
    read = ops.read(ins.operands[1], f"b{8 * whole.itemsize}", ins)
    writes = [ops.write(target, ins) for target in targets]

    def run(m: Machine, active: Mask | None) -> None:
        value = read(m)
        for i, write in enumerate(writes):
            write(m, (value >> whole.type(8 * part.itemsize * i)).astype(part), active)

    return run


def _pack(ops: Operands, ins: Instruction, sources: tuple[str, ...]) -> Run:
    whole = UNSIGNED[DTYPES[kind_of(ins)].itemsize]
    bits = 8 * whole.itemsize // len(sources)
    reads = [ops.read(source, f"b{bits}", ins) for source in sources]
    write = ops.write(ins.operands[0], ins)

    def run(m: Machine, active: Mask | None) -> None:
        value = whole.type(0)
        for i, read in enumerate(reads):
            value = value | read(m).astype(whole) << whole.type(bits * i)
        write(m, value, active)

    return run


def _bits(ins: Instruction) -> str:
    return f"b{8 * DTYPES[kind_of(ins)].itemsize}"


@opcode("selp")
def select(ops: Operands, ins: Instruction) -> Run:
    write = ops.write(ins.operands[0], ins)
    yes, no = (ops.read(o, _bits(ins), ins) for o in ins.operands[1:3])
    condition = ops.read(ins.operands[3], "pred", ins)
    return lambda m, active: write(m, np.where(condition(m), yes(m), no(m)), active)


@opcode("slct", "ftz")
def select_by_sign(ops: Operands, ins: Instruction) -> Run:
    kinds = [m for m in ins.modifiers if m in DTYPES]
    bits = f"b{8 * DTYPES[kinds[0]].itemsize}"
    write = ops.write(ins.operands[0], ins)
    yes, no = (ops.read(o, bits, ins) for o in ins.operands[1:3])
    sign = ops.read(ins.operands[3], kinds[1], ins)
    return lambda m, active: write(m, np.where(sign(m) >= 0, yes(m), no(m)), active)


@opcode("cvta", "to global shared local param const")
def convert_address(ops: Operands, ins: Instruction) -> Run:
    """Generic addresses are those of global memory; shared memory lies in a window above them."""
    kind = kind_of(ins)
    write = ops.write(ins.operands[0], ins)
    if "global" in ins.modifiers:
        read = ops.read(ins.operands[1], kind, ins)
        return lambda m, active: write(m, read(m), active)
    if "shared" not in ins.modifiers or kind != "u64":
        raise UnknownInstructionError(ins, "a state space")
    read, window = ops.read(ins.operands[1], kind, ins), np.uint64(SHARED_WINDOW)
    if "to" in ins.modifiers:
        return lambda m, active: write(m, read(m) - window, active)
    return lambda m, active: write(m, read(m) + window, active)
