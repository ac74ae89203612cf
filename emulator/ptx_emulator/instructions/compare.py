"""setp and set. PTX ISA, "Comparison and Selection Instructions"."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..faults import UnknownInstructionError
from ..opcodes import opcode
from ..operands import Operands, Read, Run
from ..parser import Instruction
from ..scalar_types import DTYPES, Array, is_float, widen

if TYPE_CHECKING:
    from ..machine import Machine, Mask

_PLAIN: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_UNSIGNED_NAMES = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
_BOOLEAN = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
_MODIFIERS = " ".join([*_PLAIN, *_UNSIGNED_NAMES, *(f"{n}u" for n in _PLAIN), "num nan ftz and or xor"])


def _comparison(name: str, floats: bool) -> Callable[[Array, Array], Array]:
    """A comparison of floats is false where one is NaN; its form with a u is true there."""
    name = _UNSIGNED_NAMES.get(name, name)
    if name == "num":
        return lambda a, b: ~(np.isnan(a) | np.isnan(b))
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    if name.endswith("u"):
        inner = _PLAIN[name[:-1]]
        return lambda a, b: inner(a, b) | np.isnan(a) | np.isnan(b)
    if name == "ne" and floats:
        return lambda a, b: (a < b) | (a > b)
    return _PLAIN[name]


def _source(ops: Operands, ins: Instruction, index: int, kind: str) -> Read:
    if kind not in ("f16", "bf16"):
        return ops.read(ins.operands[index], kind, ins)
    bits = ops.read(ins.operands[index], "b16", ins)
    return lambda m: widen(bits(m), kind)


@opcode("setp", _MODIFIERS)
def set_predicate(ops: Operands, ins: Instruction) -> Run:
    """p|q = (a cmp b) op c, (not a cmp b) op c."""
    kind = ins.modifiers[-1]
    compare = _comparison(ins.modifiers[0], is_float(kind))
    a, b = (_source(ops, ins, i, kind) for i in (1, 2))
    combine = next((_BOOLEAN[n] for n in ins.modifiers if n in _BOOLEAN), None)
    if (combine is None) != (len(ins.operands) == 3):
        raise UnknownInstructionError(ins, "number of operands")
    names = str(ins.operands[0]).split("|")
    writes = [ops.write(name, ins) for name in names]
    if combine is None and len(names) == 1:
        (write,) = writes
        return lambda m, active: write(m, compare(a(m), b(m)), active)
    other = ops.read(ins.operands[3], "pred", ins) if combine is not None else None

    def run(m: Machine, active: Mask | None) -> None:
        result = compare(a(m), b(m))
        both = [result, ~result][: len(writes)]
        if combine is not None and other is not None:
            given = other(m)
            both = [combine(r, given) for r in both]
        for write, value in zip(writes, both, strict=True):
            write(m, value, active)

    return run


@opcode("set", _MODIFIERS)
def set_value(ops: Operands, ins: Instruction) -> Run:
    """All ones, or 1.0, where the comparison holds."""
    to, kind = [m for m in ins.modifiers if m in DTYPES]
    if any(n in _BOOLEAN for n in ins.modifiers) or to not in ("u32", "s32", "f32"):
        raise UnknownInstructionError(ins, "a form of set")
    compare = _comparison(ins.modifiers[0], is_float(kind))
    a, b = (_source(ops, ins, i, kind) for i in (1, 2))
    write = ops.write(ins.operands[0], ins)
    yes, no = (np.float32(1), np.float32(0)) if to == "f32" else (np.uint32(0xFFFFFFFF), np.uint32(0))
    return lambda m, active: write(m, np.where(compare(a(m), b(m)), yes, no), active)
