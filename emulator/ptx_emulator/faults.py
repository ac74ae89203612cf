"""What the emulator says of a kernel: faults, which end a launch, and findings, which are collected."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .parser import Instruction


class Fault(Exception):
    """A kernel did what no device allows: it left its memory, diverged where a warp must not, never met a barrier."""


class UnknownInstructionError(Fault):
    """An opcode, or a form of one, that the emulator does not implement. It never guesses."""

    def __init__(self, instruction: Instruction, why: str = "") -> None:
        super().__init__(f"unknown instruction at PTX line {instruction.line}: {instruction.text}{why and f' ({why})'}")


class FindingsError(Fault):
    """Findings of a launch whose options say that they raise."""


@dataclass(frozen=True)
class Finding:
    """Something that a device would let pass, with results that are not defined.

    Attributes:
        kind: "race", "unwritten", "in flight", "proxy", "wgmma", "wrap": what kind of check found it.
        text: what happened: which warps of which blocks, and what they did.
        line: of the PTX.
        source: "file.py:line:column" where the compiler said so, else "".
        instruction: its text.
    """

    kind: str
    text: str
    line: int
    source: str
    instruction: str

    def __str__(self) -> str:
        at = f"{self.source}, " if self.source else ""
        return f"{self.kind}: {self.text}; {at}PTX line {self.line}: {self.instruction}"


@dataclass
class Findings:
    """The first finding of each kind at each line of a launch."""

    found: dict[tuple[str, int], Finding] = field(default_factory=dict)

    def add(self, kind: str, instruction: Instruction, text: str) -> None:
        key = kind, instruction.line
        if key not in self.found:
            self.found[key] = Finding(kind, text, instruction.line, instruction.source, instruction.text)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.found.values())

    def __len__(self) -> int:
        return len(self.found)
