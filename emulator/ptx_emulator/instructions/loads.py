"""ld and st. PTX ISA, "Data Movement and Conversion Instructions: ld, ld.global.nc, st".

Cache operators and eviction hints change no value and are taken as they come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..faults import Fault, UnknownInstructionError
from ..opcodes import opcode
from ..operands import SHARED_WINDOW, Operands, Run
from ..parser import Instruction, Operand
from ..scalar_types import DTYPES, SIGNED, UNSIGNED, Array

if TYPE_CHECKING:
    from ..machine import Lanes, Machine, Mask

_HINTS = (
    "ca cg cs cv lu wb wt nc v2 v4 L1::evict_first L1::evict_last L1::evict_normal L1::no_allocate "
    "L2::evict_first L2::evict_last L2::cache_hint L2::64B L2::128B L2::256B"
)
_STRONG = "volatile relaxed acquire release weak cta gpu sys cluster"
_SPACES = "global shared shared::cta param const"


def _space(ins: Instruction) -> str:
    """ "global", "shared", "param" or, with none named, "generic"."""
    for modifier in ins.modifiers:
        if modifier in ("global", "param"):
            return modifier
        if modifier.startswith("shared"):
            return "shared"
    if "const" in ins.modifiers:
        raise UnknownInstructionError(ins, "constant memory")
    return "generic"


def is_strong(ins: Instruction) -> bool:
    return any(m in ("volatile", "relaxed", "acquire", "release") for m in ins.modifiers)


def _elements(operand: Operand) -> tuple[str, ...]:
    return operand if isinstance(operand, tuple) else (str(operand),)


@opcode("ld", f"{_HINTS} {_STRONG} {_SPACES}")
def load(ops: Operands, ins: Instruction) -> Run:
    kind = ins.modifiers[-1]
    dtype = DTYPES[kind]
    size = dtype.itemsize
    targets = _elements(ins.operands[0])
    space = _space(ins)
    if space == "param":
        return _load_parameter(ops, ins, targets, dtype)
    writes = [ops.write_lanes(target, ins) for target in targets]
    locate = ops.locate(ins.operands[1], ins)
    strong = is_strong(ins)
    # a register wider than the type is filled up by the sign of a signed type, else by zeros
    extended = SIGNED[size] if dtype.kind == "i" else UNSIGNED[size]

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.lanes(active)
        if not len(lanes):
            return
        addresses = locate(m, lanes)
        where = space
        if space == "generic":
            where, addresses = _resolve(m, addresses, lanes, ins)
        if where == "shared":
            values = m.shared.load(m, addresses, size, len(targets), ins, lanes)
        else:
            values = m.memory.load(m, addresses, size, len(targets), ins, lanes, strong)
        for write, value in zip(writes, values, strict=True):
            write(m, value.view(extended), lanes)

    return run


def _load_parameter(ops: Operands, ins: Instruction, targets: tuple[str, ...], dtype: np.dtype) -> Run:
    start, end = ops.parameter(ins.operands[1], dtype.itemsize * len(targets), ins)
    writes = [ops.write(target, ins) for target in targets]

    def run(m: Machine, active: Mask | None) -> None:
        values = np.frombuffer(m.parameters[start:end], dtype)
        for write, value in zip(writes, values, strict=True):
            write(m, np.asarray(value), active)

    return run


@opcode("st", f"{_HINTS} {_STRONG} {_SPACES}")
def store(ops: Operands, ins: Instruction) -> Run:
    size = DTYPES[ins.modifiers[-1]].itemsize
    space = _space(ins)
    if space == "param":
        raise UnknownInstructionError(ins, "a call's parameters")
    locate = ops.locate(ins.operands[0], ins)
    reads = [ops.read(source, f"b{8 * size}", ins) for source in _elements(ins.operands[1])]
    strong = is_strong(ins)

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.lanes(active)
        if not len(lanes):
            return
        addresses = locate(m, lanes)
        values = [m.taken(read(m), lanes) for read in reads]
        where = space
        if space == "generic":
            where, addresses = _resolve(m, addresses, lanes, ins)
        if where == "shared":
            m.shared.store(m, addresses, size, values, ins, lanes)
        else:
            m.memory.store(m, addresses, size, values, ins, lanes, strong)

    return run


def _resolve(m: Machine, addresses: Array, lanes: Lanes, ins: Instruction) -> tuple[str, Array]:
    """Where generic addresses lie: all lanes in one space."""
    shared = addresses >= SHARED_WINDOW
    if not shared.any():
        return "global", addresses
    if not shared.all():
        raise Fault(f"generic addresses of two state spaces at once; {m.where(ins, lanes[0])}")
    return "shared", addresses - SHARED_WINDOW
