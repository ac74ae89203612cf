"""Barriers within a warp and fences. Branches, exits and barriers of a block are the scheduler's.

PTX ISA, "Parallel Synchronization and Communication Instructions: bar.warp.sync, membar, fence" and "Control Flow
Instructions".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..faults import UnknownInstructionError
from ..opcodes import opcode
from ..operands import Operands, Run
from ..parser import Instruction

if TYPE_CHECKING:
    from ..machine import Machine, Mask


def nothing(m: Machine, active: Mask | None) -> None:
    """Memory here is one; what fences order beyond that is in the README's list of what is not checked."""


@opcode("bar", "warp sync")
def barrier_of_a_warp(ops: Operands, ins: Instruction) -> Run:
    """`bar.warp.sync`; a warp's lanes run together anyway. It must be whole, as for all instructions of a warp."""

    def run(m: Machine, active: Mask | None) -> None:
        m.whole_warps(active, ins)

    return run


@opcode("membar", "cta gl sys gpu")
def memory_barrier(ops: Operands, ins: Instruction) -> Run:
    return nothing


@opcode("fence", "proxy async async::global shared shared::cta acq_rel sc cta gpu sys")
def fence(ops: Operands, ins: Instruction) -> Run:
    if "proxy" not in ins.modifiers:
        return nothing
    if "global" in ins.modifiers or "async::global" in ins.modifiers:
        raise UnknownInstructionError(ins, "a proxy")
    return lambda m, active: m.shared.fences.fence(m, m.lanes(active))


@opcode("griddepcontrol", "launch_dependents wait")
def grid_dependency(ops: Operands, ins: Instruction) -> Run:
    """Launches follow one another anyway."""
    return nothing
