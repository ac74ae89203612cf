"""int32 sums and products that wrap and then become an address of global memory.

A 32-bit `add`, `sub`, `mul.lo` or `mad.lo` whose result does not fit int32 is right only where the upper bits are not
wanted. What is computed from such a result carries a mark, lane by lane, up to a load or store that uses it: moves,
selections, conversions, sums, products and shifts to the left pass marks on; what keeps low bits only (`and`, `bfe`,
`rem`) does not. Marks are kept for registers from which an address can come, and for no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .opcodes import kind_of
from .operands import Operands, Run
from .parser import Address, Instruction, Kernel
from .scalar_types import SIGNED, Array

if TYPE_CHECKING:
    from .machine import Machine, Mask

_PASSES = frozenset(("mov", "selp", "cvt", "cvta", "add", "sub", "mul", "mad", "shl", "min", "max"))
_ACCESSES = frozenset(("ld", "st", "atom", "red", "cp"))
_EXACT: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "mad": lambda a, b, c: a * b + c,
    "shl": lambda a, by: a << np.clip(by, 0, 32),  # a product with a power of two
}


def watched(kernel: Kernel, targets: Callable[[Instruction], tuple[str, ...]]) -> frozenset[str]:
    """The registers from which an address of global memory can come."""
    found = {a.base for i in kernel.code if _is_access(i) for a in _addresses(i)} & kernel.registers.keys()
    sources: dict[str, set[str]] = {}
    for i in kernel.code:
        if i.opcode in _PASSES:
            for target in targets(i):
                sources.setdefault(target, set()).update(n for n in _sources(i) if n in kernel.registers)
    pending = list(found)
    while pending:
        new = sources.get(pending.pop(), set()) - found
        found |= new
        pending += new
    return frozenset(found)


def checking(ops: Operands, ins: Instruction, run: Run, names: frozenset[str], targets: tuple[str, ...]) -> Run:
    """`run`, with marks made, passed on and looked at."""
    if _is_access(ins):
        run = _looking(ins, run, [a.base for a in _addresses(ins) if a.base in names])
    own = [t for t in targets if t in names]
    if not own:
        return run
    sources = [n for n in _sources(ins) if n in names] if ins.opcode in _PASSES else []
    for target in own:
        run = _marking(run, target, sources, _wraps(ops, ins))
    return run


def _is_access(ins: Instruction) -> bool:
    if ins.opcode == "cp":
        return "global" in ins.modifiers
    return ins.opcode in _ACCESSES and not any(m.startswith(("shared", "param")) for m in ins.modifiers)


def _addresses(ins: Instruction) -> list[Address]:
    found = [o for o in ins.operands if isinstance(o, Address)]
    return found[1:] if ins.opcode == "cp" else found  # the first one of a copy is in shared memory


def _sources(ins: Instruction) -> list[str]:
    operands = ins.operands[1:3] if ins.opcode == "selp" else ins.operands[1:]
    return [n for o in operands if not isinstance(o, Address) for n in (o if isinstance(o, tuple) else (o,))]


def _wraps(ops: Operands, ins: Instruction) -> Callable[[Machine], Array] | None:
    """Where an instruction's 32-bit result does not fit int32."""
    if ins.opcode not in _EXACT or kind_of(ins) not in ("s32", "u32", "b32") or {"wide", "hi"} & set(ins.modifiers):
        return None
    reads = [ops.read(o, "s32", ins) for o in ins.operands[1:]]
    exact = _EXACT[ins.opcode]

    def wraps(m: Machine) -> Array:
        wide = exact(*(r(m).astype(SIGNED[8]) for r in reads))
        return np.broadcast_to(wide != wide.astype(np.int32), m.shape)

    return wraps


def _marking(run: Run, target: str, sources: list[str], wraps: Callable[[Machine], Array] | None) -> Run:
    def marking(m: Machine, active: Mask | None) -> None:
        mark = np.zeros(m.shape, bool)
        for name in sources:
            if name in m.wrapped:
                mark = mark | m.wrapped[name]
        if wraps is not None:
            mark = mark | wraps(m)
        run(m, active)
        if active is not None:
            mark = np.where(active, mark, m.wrapped.get(target, False))
        if mark.any():
            m.wrapped[target] = mark
        else:
            m.wrapped.pop(target, None)

    return marking


def _looking(ins: Instruction, run: Run, bases: list[str]) -> Run:
    def looking(m: Machine, active: Mask | None) -> None:
        for name in bases:
            mark = m.wrapped.get(name)
            if mark is not None and (used := mark if active is None else mark & active).any():
                warp = m.who(int(m.warp_of[int(np.argmax(used))]))
                m.findings.add("wrap", ins, f"the address in {name} of {warp} comes from an int32 result that wrapped")
        run(m, active)

    return looking
