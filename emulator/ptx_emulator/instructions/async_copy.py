"""cp.async and its groups. PTX ISA, "Data Movement and Conversion Instructions: Asynchronous copy".

The source is read when the copy is issued; the target is written when the copy is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..faults import Fault, UnknownInstructionError
from ..opcodes import opcode
from ..operands import Operands, Run
from ..parser import Instruction
from ..scalar_types import UNSIGNED

if TYPE_CHECKING:
    from ..machine import Machine, Mask

_HINTS = "L2::64B L2::128B L2::256B L2::cache_hint"


@opcode("cp", f"async ca cg shared shared::cta global commit_group wait_group wait_all {_HINTS}")
def copy(ops: Operands, ins: Instruction) -> Run:
    if "async" not in ins.modifiers:
        raise UnknownInstructionError(ins)
    if "commit_group" in ins.modifiers:
        return lambda m, active: m.shared.commit_copies(m.lanes(active))
    if "wait_all" in ins.modifiers:
        return lambda m, active: m.shared.await_copies(m, m.lanes(active), 0, open_group=True)
    if "wait_group" in ins.modifiers:
        pending = int(str(ins.operands[0]), 0)
        return lambda m, active: m.shared.await_copies(m, m.lanes(active), pending)
    return _issue(ops, ins)


def _issue(ops: Operands, ins: Instruction) -> Run:
    """Copy `size` bytes, of which those past the optional source size are zeros."""
    target, source = (ops.locate(o, ins) for o in ins.operands[:2])
    size = int(str(ins.operands[2]), 0)
    if size not in (4, 8, 16) or ("cg" in ins.modifiers and size != 16):
        raise UnknownInstructionError(ins, "a size")
    given = ops.read(ins.operands[3], "u32", ins) if len(ins.operands) > 3 else None
    width = min(size, 8)

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.lanes(active)
        if not len(lanes):
            return
        taken = np.full(len(lanes), size) if given is None else m.taken(given(m), lanes).astype(np.int64)
        if (taken > size).any():
            raise Fault(f"a source larger than the copy; {m.where(ins, lanes[int(np.argmax(taken > size))])}")
        data = np.zeros((len(lanes), size // width), UNSIGNED[width])
        for amount in np.unique(taken[taken > 0]):
            some = taken == amount
            addresses = source(m, lanes)[some]
            if (addresses & (size - 1)).any():
                lane = lanes[some][int(np.argmax((addresses & (size - 1)) != 0))]
                raise Fault(f"a misaligned source of cp.async of {size} bytes; {m.where(ins, lane)}")
            if amount == size:
                loaded = m.memory.load(m, addresses, width, size // width, ins, lanes[some])
                data[some] = np.stack(loaded, 1)
            else:
                partial = data[some].view(np.uint8)
                for i in range(int(amount)):
                    partial[:, i] = m.memory.load(m, addresses + i, 1, 1, ins, lanes[some])[0]
                data[some] = partial.view(data.dtype)
        m.shared.begin_copy(m, target(m, lanes), data, size, ins, lanes)

    return run
