"""What the lanes of a warp do together: shfl, vote, match, redux, activemask.

PTX ISA, "Data Movement and Conversion Instructions: shfl.sync" and "Parallel Synchronization and Communication
Instructions". A warp that has diverged is a fault, also where a member mask would allow it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..faults import Fault, UnknownInstructionError
from ..machine import WARP, Machine, Mask
from ..opcodes import kind_of, opcode
from ..operands import Operands, Run
from ..parser import Instruction
from ..scalar_types import Array

_LANE = np.arange(WARP)
_FULL = np.uint32(0xFFFFFFFF)


def _check_members(ops: Operands, ins: Instruction, index: int) -> Run:
    """The mask of members must name the warp's lanes, all of them."""
    members = ops.read(ins.operands[index], "b32", ins)

    def check(m: Machine, active: Mask | None) -> None:
        lanes = m.whole_warps(active, ins)
        if (m.taken(members(m), lanes) != _FULL).any():
            raise Fault(f"a member mask that leaves out lanes; {m.where(ins, lanes[0])}")

    return check


@opcode("shfl", "sync up down bfly idx")
def shuffle(ops: Operands, ins: Instruction) -> Run:
    """The value of another lane of the segment, or the own one where there is none; a predicate says which."""
    names = str(ins.operands[0]).split("|")
    write = ops.write(names[0], ins)
    write_found = ops.write(names[1], ins) if len(names) > 1 else None
    read, by, clamp = (ops.read(o, "b32", ins) for o in ins.operands[1:4])
    check = _check_members(ops, ins, 4)
    mode = next(m for m in ins.modifiers if m in ("up", "down", "bfly", "idx"))

    def run(m: Machine, active: Mask | None) -> None:
        check(m, active)
        value = np.broadcast_to(read(m), m.shape).reshape(-1, WARP)
        distance = np.broadcast_to(by(m).astype(np.int64) & 31, m.shape).reshape(-1, WARP)
        packed = np.broadcast_to(clamp(m).astype(np.int64), m.shape).reshape(-1, WARP)
        segment, bound = packed >> 8 & 31, packed & 31
        lowest, highest = _LANE & segment, _LANE & segment | bound & ~segment & 31
        if mode == "up":
            source = _LANE - distance
            found = source >= highest
        else:
            by_mode = {"down": _LANE + distance, "bfly": _LANE ^ distance, "idx": lowest | distance & ~segment & 31}
            source = by_mode[mode]
            found = source <= highest
        source = np.where(found, source, _LANE)
        write(m, np.take_along_axis(value, source, 1).reshape(-1), active)
        if write_found is not None:
            write_found(m, found.reshape(-1), active)

    return run


@opcode("vote", "sync all any uni ballot")
def vote(ops: Operands, ins: Instruction) -> Run:
    write = ops.write(ins.operands[0], ins)
    read = ops.read(ins.operands[1], "pred", ins)
    check = _check_members(ops, ins, 2)
    mode = next(m for m in ins.modifiers if m in ("all", "any", "uni", "ballot"))

    def run(m: Machine, active: Mask | None) -> None:
        check(m, active)
        votes = np.broadcast_to(read(m), m.shape).reshape(-1, WARP)
        if mode == "ballot":
            result: Array = (votes.astype(np.uint32) << _LANE.astype(np.uint32)).sum(1, dtype=np.uint32)
        elif mode == "uni":
            result = np.asarray(votes.all(1) | ~votes.any(1))
        else:
            result = np.asarray(votes.all(1) if mode == "all" else votes.any(1))
        write(m, np.repeat(result, WARP), active)

    return run


@opcode("match", "sync any all")
def match(ops: Operands, ins: Instruction) -> Run:
    """The lanes that hold the same value: all lanes or none for `.all`."""
    names = str(ins.operands[0]).split("|")
    writes = [ops.write(name, ins) for name in names]
    read = ops.read(ins.operands[1], kind_of(ins), ins)
    check = _check_members(ops, ins, 2)

    def run(m: Machine, active: Mask | None) -> None:
        check(m, active)
        value = np.broadcast_to(read(m), m.shape).reshape(-1, WARP)
        same = value[:, :, None] == value[:, None, :]
        if "all" in ins.modifiers:
            whole = np.repeat(same[:, 0].all(1), WARP)
            results: list[Array] = [np.where(whole, _FULL, np.uint32(0)), whole]
        else:
            bits = same.astype(np.uint32) << _LANE.astype(np.uint32)
            results = [bits.sum(2, dtype=np.uint32).reshape(-1)]
        for write, result in zip(writes, results, strict=False):
            write(m, result, active)

    return run


_REDUCTIONS: dict[str, Callable[..., Array]] = {
    "add": lambda x: x.sum(1, dtype=x.dtype),
    "min": lambda x: x.min(1),
    "max": lambda x: x.max(1),
    "and": lambda x: np.bitwise_and.reduce(x, 1),
    "or": lambda x: np.bitwise_or.reduce(x, 1),
    "xor": lambda x: np.bitwise_xor.reduce(x, 1),
}


@opcode("redux", "sync " + " ".join(_REDUCTIONS))
def reduce(ops: Operands, ins: Instruction) -> Run:
    kind = kind_of(ins)
    if kind == "f32":
        raise UnknownInstructionError(ins, "redux of floats")
    write = ops.write(ins.operands[0], ins)
    read = ops.read(ins.operands[1], kind, ins)
    check = _check_members(ops, ins, 2)
    function = next(_REDUCTIONS[m] for m in ins.modifiers if m in _REDUCTIONS)

    def run(m: Machine, active: Mask | None) -> None:
        check(m, active)
        value = np.broadcast_to(read(m), m.shape).reshape(-1, WARP)
        write(m, np.repeat(function(value), WARP), active)

    return run


@opcode("activemask")
def active_mask(ops: Operands, ins: Instruction) -> Run:
    write = ops.write(ins.operands[0], ins)

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.whole_warps(active, ins)
        write(m, np.full(m.shape, _FULL), active if lanes is not m.every else None)

    return run
