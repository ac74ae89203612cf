"""ldmatrix, stmatrix and mma.sync. PTX ISA, "Warp Level Matrix Instructions"."""

from __future__ import annotations

import re

import numpy as np

from ..faults import UnknownInstructionError
from ..fragments import MATRIX8, MMA
from ..machine import WARP, Machine, Mask
from ..opcodes import opcode
from ..operands import Operands, Run
from ..parser import Instruction
from ..scalar_types import DTYPES, UNSIGNED, Array, as_kind, halves, packed, widen
from ..tensor_core import multiply


def _matrices(ins: Instruction, registers: tuple[str, ...]) -> int:
    count = {"x1": 1, "x2": 2, "x4": 4}[next(m for m in ins.modifiers if m[0] == "x")]
    if len(registers) != count or "b16" not in ins.modifiers or "m8n8" not in ins.modifiers:
        raise UnknownInstructionError(ins, "a form of it")
    return count


@opcode("ldmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def load_matrix(ops: Operands, ins: Instruction) -> Run:
    """Lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i."""
    targets = ins.operands[0]
    assert isinstance(targets, tuple)
    count = _matrices(ins, targets)
    locate = ops.locate(ins.operands[1], ins)
    writes = [ops.write_lanes(t, ins) for t in targets]
    transposed = "trans" in ins.modifiers

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.whole_warps(active, ins)
        givers = lanes.reshape(-1, WARP)[:, : 8 * count].reshape(-1)
        addresses = locate(m, givers)
        at = m.shared.locate(m, addresses, 16, ins, givers)
        if m.observer is not None:
            m.observer.access("shared", "matrix", ins, addresses, 16, givers)
        m.shared.note_read(m, at, 16, ins, givers)
        rows = m.shared.bytes.view(np.uint16)[(at // 2)[:, None] + np.arange(8)].reshape(-1, count, 8, 8)
        if transposed:
            rows = rows.swapaxes(2, 3)
        for i, write in enumerate(writes):
            held = MATRIX8.distribute(rows[:, i]).reshape(-1, 2)
            write(m, packed(held[:, 0], held[:, 1]), lanes)

    return run


@opcode("stmatrix", "sync aligned m8n8 x1 x2 x4 trans shared shared::cta")
def store_matrix(ops: Operands, ins: Instruction) -> Run:
    sources = ins.operands[1]
    assert isinstance(sources, tuple)
    count = _matrices(ins, sources)
    locate = ops.locate(ins.operands[0], ins)
    reads = [ops.read(s, "b32", ins) for s in sources]
    transposed = "trans" in ins.modifiers

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.whole_warps(active, ins)
        givers = lanes.reshape(-1, WARP)[:, : 8 * count].reshape(-1)
        matrices = []
        for read in reads:
            held = np.stack(halves(m.taken(read(m), lanes)), -1).reshape(-1, WARP, 2)
            matrix = MATRIX8.assemble(held)
            matrices.append(matrix.swapaxes(1, 2) if transposed else matrix)
        rows = np.ascontiguousarray(np.stack(matrices, 1)).reshape(-1, 8).view(np.uint64)
        m.shared.store(m, locate(m, givers), 8, [rows[:, 0], rows[:, 1]], ins, givers, kind="matrix")

    return run


def elements(registers: list[Array], kind: str, lanes: int) -> Array:
    """Registers of some lanes as elements [n, lanes, elements] in float64, each in the order of its bits."""
    two = DTYPES[kind].itemsize == 2
    columns = [half for register in registers for half in halves(register)] if two else registers
    held = widen(np.stack(columns, -1), kind)
    return held.astype(np.float64, copy=False).reshape(-1, lanes, len(columns))


@opcode("mma", "sync aligned row col m16n8k4 m16n8k8 m16n8k16 m8n8k4")
def multiply_accumulate(ops: Operands, ins: Instruction) -> Run:
    """D = A B + C; A by rows, B by columns."""
    shape = next(m for m in ins.modifiers if re.fullmatch(r"m\d+n\d+k\d+", m))
    result, kind, other, accumulator = ins.modifiers[-4:]
    held = {"f64": "f64"}.get(kind, "f32")
    if kind != other or (result, accumulator) != (held, held) or ins.modifiers[3:5] != ("row", "col"):
        raise UnknownInstructionError(ins, "its types or layouts")
    if (shape, kind) not in MMA:
        raise UnknownInstructionError(ins, "its shape")
    fragments, dtype = MMA[shape, kind], DTYPES[held]
    operands = [o if isinstance(o, tuple) else (str(o),) for o in ins.operands]
    writes = [ops.write_lanes(name, ins) for name in operands[0]]
    word = "b64" if kind == "f64" else "b32"
    a, b = ([ops.read(name, word, ins) for name in names] for names in operands[1:3])
    c = [ops.read(name, held, ins) for name in operands[3]]
    each = 2 if DTYPES[kind].itemsize == 2 else 1
    for reads, layout in ((a, fragments.a), (b, fragments.b)):
        if len(reads) * each != layout.row.shape[1]:
            raise UnknownInstructionError(ins, "number of registers")

    def run(m: Machine, active: Mask | None) -> None:
        lanes = m.whole_warps(active, ins)
        left = fragments.a.assemble(elements([m.taken(r(m), lanes) for r in a], kind, WARP))
        right = fragments.b.assemble(elements([m.taken(r(m), lanes) for r in b], kind, WARP))
        added = fragments.c.assemble(elements([m.taken(r(m), lanes) for r in c], held, WARP))
        product = multiply(left, right, added, kind, ops.numerics).astype(dtype)
        out = fragments.c.distribute(product).reshape(len(lanes), -1)
        for i, write in enumerate(writes):
            write(m, as_kind(np.ascontiguousarray(out[:, i]), UNSIGNED[dtype.itemsize]), lanes)

    return run
