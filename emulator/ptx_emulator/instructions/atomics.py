"""atom and red, lane by lane. PTX ISA, "Parallel Synchronization and Communication Instructions"."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..faults import UnknownInstructionError
from ..opcodes import opcode
from ..operands import SHARED_WINDOW, Operands, Run
from ..parser import Instruction
from ..scalar_types import DTYPES, as_kind

if TYPE_CHECKING:
    from ..machine import Machine, Mask

_OPERATIONS: dict[str, Callable[..., np.generic]] = {
    "add": lambda old, b: old + b,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "exch": lambda old, b: b,
    "cas": lambda old, b, c: c if old == b else old,
    "inc": lambda old, b: old.dtype.type(0) if old >= b else old + old.dtype.type(1),
    "dec": lambda old, b: b if old == 0 or old > b else old - old.dtype.type(1),
}


@opcode(
    "atom red", " ".join(_OPERATIONS) + " global shared shared::cta relaxed acquire release acq_rel cta gpu sys noftz"
)
def atomic(ops: Operands, ins: Instruction) -> Run:
    """Lanes take their turn in order; each is given what was there before it."""
    kind = ins.modifiers[-1]
    dtype = DTYPES[kind]
    if kind in ("f16", "bf16", "f16x2", "bf16x2"):
        raise UnknownInstructionError(ins, "atomics of 16-bit floats")
    function = next(_OPERATIONS[m] for m in ins.modifiers if m in _OPERATIONS)
    returns = ins.opcode == "atom"
    operands = ins.operands[1:] if returns else ins.operands
    write = ops.write_lanes(ins.operands[0], ins) if returns else None
    locate = ops.locate(operands[0], ins)
    reads = [ops.read(o, kind, ins) for o in operands[1:]]
    in_shared = any(m.startswith("shared") for m in ins.modifiers)
    acquires = bool({"acquire", "acq_rel"} & set(ins.modifiers))
    releases = bool({"release", "acq_rel"} & set(ins.modifiers))

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.lanes(active)
        addresses = locate(m, lanes)
        values = [m.taken(read(m), lanes) for read in reads]
        before = np.zeros(len(lanes), dtype)
        for i, lane in enumerate(lanes):
            address = int(addresses[i])
            if in_shared or address >= SHARED_WINDOW:
                offset = address % SHARED_WINDOW
                space, at = m.shared.update(m, offset, dtype.itemsize, ins, int(lane))
            else:
                space, at = m.memory.update(m, address, dtype.itemsize, ins, int(lane))
                if acquires:
                    m.memory.handover.acquire(m, address, int(lane))
                if releases:
                    m.memory.handover.release(m, address, int(lane))
            cell = as_kind(space, dtype)
            before[i] = cell[at]
            cell[at] = function(before[i], *(value[i] for value in values))
        if write is not None:
            write(m, before, lanes)

    return run
