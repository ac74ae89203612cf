"""The table of opcodes: each names the modifiers that it takes and the function that translates it."""

from __future__ import annotations

from collections.abc import Callable

from .faults import UnknownInstructionError
from .operands import Operands, Run
from .parser import Instruction
from .scalar_types import DTYPES

Translate = Callable[[Operands, Instruction], Run]

_TABLE: dict[str, tuple[frozenset[str], Translate]] = {}


def opcode(names: str, modifiers: str = "") -> Callable[[Translate], Translate]:
    """Register a translation for opcodes; types need not be listed among the modifiers."""

    def register(translate: Translate) -> Translate:
        for name in names.split():
            _TABLE[name] = frozenset(modifiers.split()), translate
        return translate

    return register


def translate(operands: Operands, instruction: Instruction) -> Run:
    """What an instruction does, as a function of a machine and a mask of lanes (None: all).

    Raises:
        UnknownInstructionError: its opcode, a modifier or an operand is not known.
    """
    if instruction.opcode not in _TABLE:
        raise UnknownInstructionError(instruction)
    known, build = _TABLE[instruction.opcode]
    for modifier in instruction.modifiers:
        if modifier not in known and modifier not in DTYPES:
            raise UnknownInstructionError(instruction, f"modifier .{modifier}")
    try:
        return build(operands, instruction)
    except (IndexError, StopIteration, KeyError):
        raise UnknownInstructionError(instruction, "operands or types") from None


def kind_of(instruction: Instruction, which: int = -1) -> str:
    """A type among the modifiers: the last, or the `which`th."""
    kinds = [m for m in instruction.modifiers if m in DTYPES]
    return kinds[which]
