"""From the text of operands to functions that read and write them for all lanes at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .faults import Fault, UnknownInstructionError
from .options import Numerics
from .parser import Address, Instruction, Kernel, Operand
from .scalar_types import DTYPES, SIGNED, UNSIGNED, Array, as_kind, resized

if TYPE_CHECKING:
    from .machine import Lanes, Machine, Mask

Read = Callable[["Machine"], Array]
Write = Callable[["Machine", Array, "Mask | None"], None]
WriteLanes = Callable[["Machine", Array, "Lanes"], None]
Locate = Callable[["Machine", "Lanes"], Array]
Run = Callable[["Machine", "Mask | None"], None]

SHARED_WINDOW = 1 << 48  # where a block's shared memory lies among generic addresses


class Operands:
    """Reads and writes of one kernel's operands."""

    def __init__(self, kernel: Kernel, numerics: Numerics) -> None:
        self.kernel = kernel
        self.numerics = numerics
        self.slots = {name: i for i, name in enumerate(kernel.registers)}
        self.kinds = list(kernel.registers.values())

    def slot(self, name: Operand, instruction: Instruction) -> int:
        """The index of a register."""
        if not isinstance(name, str) or name not in self.slots:
            raise UnknownInstructionError(instruction, f"{name} is no register")
        return self.slots[name]

    def read(self, operand: Operand, kind: str, instruction: Instruction) -> Read:
        """A function that gives an operand as the type `kind`: an array of all lanes, or of no dimension."""
        dtype = DTYPES[kind]
        if not isinstance(operand, str):
            raise UnknownInstructionError(instruction, f"{operand} is no value")
        if operand in self.slots:
            return self._read_register(self.slots[operand], dtype, instruction)
        if operand.startswith("!") and operand[1:] in self.slots:
            inner = self._read_register(self.slots[operand[1:]], dtype, instruction)
            return lambda m: ~inner(m)
        if operand in self.kernel.shared:
            offset = np.asarray(dtype.type(self.kernel.shared[operand]))
            return lambda m: offset
        if operand.startswith("%"):
            if dtype.itemsize == 4:
                return lambda m: as_kind(m.specials[operand], dtype)
            return lambda m: m.specials[operand].astype(dtype)
        constant = np.asarray(literal(operand, dtype, instruction))
        return lambda m: constant

    def _read_register(self, slot: int, dtype: np.dtype, instruction: Instruction) -> Read:
        held = self.kinds[slot]
        if held.itemsize == dtype.itemsize:

            def same(m: Machine) -> Array:
                value = m.registers[slot]
                return value if value.dtype is dtype else value.view(dtype)

            return same
        if held.itemsize < dtype.itemsize or "b" in (held.kind, dtype.kind):
            raise UnknownInstructionError(instruction, f"a register of {held} read as {dtype}")
        wide, cut = UNSIGNED[held.itemsize], UNSIGNED[dtype.itemsize]
        return lambda m: as_kind(as_kind(m.registers[slot], wide).astype(cut), dtype)

    def write(self, operand: Operand, instruction: Instruction) -> Write:
        """A function that sets a register of the lanes of a mask; an integer is extended or cut to its width."""
        if operand == "_":
            return lambda m, value, active: None
        slot = self.slot(operand, instruction)
        held = self.kernel.registers[str(operand)]
        predicate, width = held.kind == "b", held.itemsize

        def write(m: Machine, value: Array, active: Mask | None) -> None:
            if not predicate and value.dtype.itemsize != width:
                value = resized(value, width)
            if active is None:
                m.registers[slot] = value if value.shape == m.shape else np.broadcast_to(value, m.shape)
            else:
                m.registers[slot] = np.where(active, value, as_kind(m.registers[slot], value.dtype))

        return write

    def write_lanes(self, operand: Operand, instruction: Instruction) -> WriteLanes:
        """A function that sets a register of some lanes, given their values only."""
        if operand == "_":
            return lambda m, value, lanes: None
        slot = self.slot(operand, instruction)
        width = self.kernel.registers[str(operand)].itemsize

        def write(m: Machine, value: Array, lanes: Lanes) -> None:
            if value.dtype.itemsize != width:
                value = resized(value, width)
            if lanes is m.every:
                m.registers[slot] = value
            else:
                whole = as_kind(m.registers[slot], value.dtype).copy()
                whole[lanes] = value
                m.registers[slot] = whole

        return write

    def locate(self, operand: Operand, instruction: Instruction) -> Locate:
        """A function that gives the addresses of some lanes, in int64."""
        if not isinstance(operand, Address):
            raise UnknownInstructionError(instruction, f"{operand} is no address")
        offset = operand.offset
        if operand.base in self.kernel.shared or not operand.base:
            fixed = self.kernel.shared.get(operand.base, 0) + offset
            return lambda m, lanes: np.full(len(lanes), fixed, np.int64)
        slot = self.slot(operand.base, instruction)
        width = self.kernel.registers[operand.base].itemsize
        dtype = SIGNED[8] if width == 8 else UNSIGNED[4]

        def locate(m: Machine, lanes: Lanes) -> Array:
            value = m.taken(as_kind(m.registers[slot], dtype), lanes).astype(np.int64, copy=False)
            return value + offset if offset else value

        return locate

    def parameter(self, operand: Operand, size: int, instruction: Instruction) -> tuple[int, int]:
        """Where `size` bytes of a parameter lie in the parameter space."""
        if not isinstance(operand, Address) or operand.base not in self.kernel.parameters:
            raise UnknownInstructionError(instruction, f"{operand} is no parameter")
        parameter = self.kernel.parameters[operand.base]
        if not 0 <= operand.offset <= parameter.size - size:
            raise Fault(
                f"{size} bytes beyond a parameter's {parameter.size}; PTX line {instruction.line}: {instruction.text}"
            )
        start = parameter.offset + operand.offset
        return start, start + size


def literal(text: str, dtype: np.dtype, instruction: Instruction) -> np.generic:
    """A constant (PTX ISA, "Constants"): bits of a float, an integer that is cut to its width, a truth value."""
    text = text.removesuffix("U")
    try:
        if text[:2] in ("0f", "0F"):
            return np.uint32(int(text[2:], 16)).view(dtype)
        if text[:2] in ("0d", "0D"):
            return np.uint64(int(text[2:], 16)).view(dtype)
        value = int(text, 0)
    except ValueError:
        raise UnknownInstructionError(instruction, f"{text} is no constant") from None
    if dtype.kind == "b":
        return np.bool_(value != 0)
    width = dtype.itemsize
    return np.array([value & ((1 << 8 * width) - 1)], UNSIGNED[width]).view(dtype)[0]
