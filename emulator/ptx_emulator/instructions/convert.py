"""cvt. PTX ISA, "Data Movement and Conversion Instructions: cvt"."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..faults import UnknownInstructionError
from ..opcodes import opcode
from ..operands import Operands, Read, Run
from ..parser import Instruction
from ..scalar_types import DTYPES, SIGNED, UNSIGNED, Array, float32_to_tf32, is_float, narrow, packed, widen
from .arithmetic import flush

_TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


@opcode("cvt", "rn rz rna rni rzi rmi rpi ftz sat relu")
def convert(ops: Operands, ins: Instruction) -> Run:
    kinds = [m for m in ins.modifiers if m in DTYPES]
    if len(kinds) != 2 or "relu" in ins.modifiers:
        raise UnknownInstructionError(ins, "a form of cvt")
    to, source = kinds
    write = ops.write(ins.operands[0], ins)
    if to in ("f16x2", "bf16x2"):
        if source != "f32" or "rn" not in ins.modifiers:
            raise UnknownInstructionError(ins, "a form of cvt")
        upper, lower = (ops.read(o, "f32", ins) for o in ins.operands[1:3])
        half = to[:-2]
        return lambda m, active: write(m, packed(narrow(lower(m), half), narrow(upper(m), half)), active)
    read = _source(ops, ins, source)
    function = _conversion(ins, to, source, ops)
    return lambda m, active: write(m, function(read(m)), active)


def _source(ops: Operands, ins: Instruction, kind: str) -> Read:
    """A source register may be wider than its type, and is cut then."""
    if kind not in ("f16", "bf16"):
        return ops.read(ins.operands[1], kind, ins)
    bits = ops.read(ins.operands[1], "b16", ins)
    return lambda m: widen(bits(m), kind)


def _conversion(ins: Instruction, to: str, source: str, ops: Operands) -> Callable[[Array], Array]:
    modifiers = ins.modifiers
    integral = next((_TO_INTEGER[m] for m in modifiers if m in _TO_INTEGER), None)
    ftz = "ftz" in modifiers
    if is_float(source) and not is_float(to):
        if integral is None:
            raise UnknownInstructionError(ins, "no rounding to an integer")
        return _to_integer(DTYPES[to], integral, ftz)
    if is_float(source):
        return _between_floats(ins, to, source, integral, ftz)
    if is_float(to):
        if "rn" not in modifiers:
            raise UnknownInstructionError(ins, "a rounding")
        if to in ("f16", "bf16"):
            return _integer_to_half(to)
        return lambda x: x.astype(DTYPES[to])
    if "sat" in modifiers:
        return _saturated(DTYPES[to])
    # the destination register may be wider than the type: extended by the sign of a signed type
    width = ops.kernel.registers[str(ins.operands[0])].itemsize
    dtype = DTYPES[to]
    wide = (SIGNED if dtype.kind == "i" else UNSIGNED)[max(width, dtype.itemsize)]
    return lambda x: x.astype(dtype).astype(wide)


def _between_floats(
    ins: Instruction, to: str, source: str, integral: Callable[[Array], Array] | None, ftz: bool
) -> Callable[[Array], Array]:
    if "sat" in ins.modifiers or "rz" in ins.modifiers:
        raise UnknownInstructionError(ins, "a form of cvt")
    if to == "tf32":
        if "rna" not in ins.modifiers:
            raise UnknownInstructionError(ins, "a rounding")
        return float32_to_tf32
    if to in ("f16", "bf16"):
        if source == "f64":  # once, not by way of float32
            if to == "bf16":
                raise UnknownInstructionError(ins, "a form of cvt")
            return lambda x: np.where(np.isnan(x), np.uint16(0x7FFF), x.astype(np.float16).view(np.uint16))
        return lambda x: narrow(x if integral is None else integral(x), to)
    dtype = DTYPES[to]

    def function(x: Array) -> Array:
        x = flush(x) if ftz and x.dtype == np.float32 else x
        x = integral(x) if integral is not None else x
        x = x.astype(dtype)
        return flush(x) if ftz and x.dtype == np.float32 else x

    return function


def _to_integer(dtype: np.dtype, integral: Callable[[Array], Array], ftz: bool) -> Callable[[Array], Array]:
    """Rounded and kept within the type's range; NaN gives 0, or the highest bit alone in 64 bits."""
    limits = np.iinfo(dtype)
    lowest, above = float(limits.min), float(limits.max) + (1 if limits.bits < 64 else 0)
    nan = 0 if limits.bits < 64 else (limits.min if limits.min < 0 else 1 << 63)

    def function(x: Array) -> Array:
        x = integral(flush(x) if ftz else x).astype(np.float64)
        inside = (x >= lowest) & (x < above)
        result = np.where(inside, x, 0).astype(dtype)
        result = np.where(x >= above, dtype.type(limits.max), result)
        result = np.where(x < lowest, dtype.type(limits.min), result)
        return np.where(np.isnan(x), dtype.type(nan), result)

    return function


def _integer_to_half(to: str) -> Callable[[Array], Array]:
    def function(x: Array) -> Array:
        wide = x.astype(np.float64)
        if to == "f16":
            return wide.astype(np.float16).view(np.uint16)
        near = wide.astype(np.float32)
        # rounded to odd, so that rounding it again is right
        towards = np.where(wide > near, np.float32(np.inf), np.float32(-np.inf))
        even = (near.view(np.uint32) & np.uint32(1)) == 0
        return narrow(np.where((near != wide) & even, np.nextafter(near, towards), near), to)

    return function


def _saturated(dtype: np.dtype) -> Callable[[Array], Array]:
    limits = np.iinfo(dtype)

    def function(x: Array) -> Array:
        of = np.iinfo(x.dtype)
        return np.clip(x, max(limits.min, of.min), min(limits.max, of.max)).astype(dtype)

    return function
