"""What the assembler made of a kernel: its instructions with their scoreboards, and its loops.

Instructions are read as `nvdisasm -c -hex -ndf` writes them (without its analysis of data flow, which takes a third of
its time). NVIDIA does not document the control bits; these are the ones that Jia et al. found ("Dissecting the NVIDIA
Volta GPU Architecture via Microbenchmarking", 2018, section 2.1), which sm_80 to sm_120 still have: of an instruction's
128 bits 110 to 112 name the scoreboard that its result sets (7 for none), 116 to 121 those that it waits for.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NONE = 7  # no scoreboard

_LABEL = re.compile(r"^(\.L\w+):")
_LINE = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(\{?.*?)\s*;?\s*\}?\s*/\* 0x[0-9a-f]{16} \*/")
_CONTROL = re.compile(r"^\s*/\* 0x([0-9a-f]{16}) \*/")
_TARGET = re.compile(r"`\((\.L\w+)\)")
_MATRIX = re.compile(r"^[A-Z]*MMA$")
_SCALAR = re.compile(r"^[DF]FMA2?$")


@dataclass(frozen=True)
class Instruction:
    """One line of a listing.

    Attributes:
        text: as it stands there, with its predicate.
        waits: bit i: it waits for scoreboard i.
        sets: the scoreboard that its result sets when it is there, `NONE` for none.
    """

    text: str
    waits: int = 0
    sets: int = NONE

    @property
    def predicated(self) -> bool:
        return self.text.startswith("@")

    @property
    def opcode(self) -> str:
        """With its modifiers, as `LDG.E.128`."""
        words = self.text.split()
        return words[self.predicated] if len(words) > self.predicated else ""

    @property
    def name(self) -> str:
        """Without them, as `LDG`."""
        return self.opcode.split(".")[0]

    @property
    def bytes(self) -> int:
        """That a load or copy moves for a lane."""
        modifiers = self.opcode.split(".")[1:]
        return next((int(size) // 8 for size in ("128", "64") if size in modifiers), 4)

    @property
    def matrix(self) -> bool:
        """Whether tensor cores multiply."""
        return _MATRIX.match(self.name) is not None

    @property
    def scalar(self) -> bool:
        """Whether it multiplies and adds numbers of 32 or 64 bits."""
        return _SCALAR.match(self.name) is not None


@dataclass(frozen=True)
class Loop:
    """A loop's instructions in the order in which they lie.

    Attributes:
        body: all of them.
        own: which of them lie in no loop within this one.
        innermost: all do.
    """

    body: tuple[Instruction, ...]
    own: tuple[bool, ...]

    @property
    def innermost(self) -> bool:
        return all(self.own)


def disassemble(cubin: bytes) -> str:
    """The listing of an assembled kernel, by the tool that Triton ships."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [tool, "-c", "-hex", "-ndf", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    """Instructions, and of each label which one stands behind it."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(found)
        elif control := _CONTROL.match(line):
            bits = int(control[1], 16)  # 64 to 127
            found[-1] = Instruction(found[-1].text, bits >> 52 & 0x3F, bits >> 46 & 7)
        elif instruction := _LINE.search(line):
            found.append(Instruction(instruction[1].lstrip("{ ")))
    return found, labels


def loops(listing: str) -> list[Loop]:
    """Every loop that moves or multiplies anything, by where it begins. One that spins until a barrier opens is none,
    and a branch back to code that something else reaches too is none."""
    instructions, labels = parse(listing)
    starts, after = _blocks(instructions, labels)
    bounds = [*starts, len(instructions)]
    found: dict[int, set[int]] = {}
    above = _dominators(after)
    before: list[list[int]] = [[] for _ in starts]
    for block, following in enumerate(after):
        for target in following:
            before[target].append(block)
    for block, following in enumerate(after):
        for head in following:
            if above[block] >> head & 1:
                found.setdefault(head, {head}).update(_reaching(block, head, before))
    bodies = {
        head: {i for b in blocks for i in range(bounds[b], bounds[b + 1])} for head, blocks in sorted(found.items())
    }
    bodies = {head: body for head, body in bodies.items() if any(_works(instructions[i]) for i in body)}
    made = []
    for body in bodies.values():
        within = set().union(*(other for other in bodies.values() if other < body))
        made.append(Loop(tuple(instructions[i] for i in sorted(body)), tuple(i not in within for i in sorted(body))))
    return made


def _works(instruction: Instruction) -> bool:
    return instruction.matrix or instruction.scalar or instruction.name in ("LDG", "LDGSTS", "LDS", "STS", "STG")


def _blocks(instructions: Sequence[Instruction], labels: dict[str, int]) -> tuple[list[int], list[list[int]]]:
    """Where straight pieces begin, and of each the pieces that may follow it."""
    targets = {i: t for i, x in enumerate(instructions) if (t := _target(x, labels)) is not None}
    ends = {i for i, x in enumerate(instructions) if i in targets or x.name in ("EXIT", "RET", "BRX", "JMX")}
    starts = sorted({0, *targets.values(), *(i + 1 for i in ends)} & set(range(len(instructions))))
    number = {start: block for block, start in enumerate(starts)}
    after = []
    for block, following in enumerate([*starts[1:], len(instructions)]):
        last = following - 1
        out = {number[targets[last]]} if last in targets else set()
        if (last not in ends or _falls(instructions[last])) and block + 1 < len(starts):
            out.add(block + 1)
        after.append(sorted(out))
    return starts, after


def _target(instruction: Instruction, labels: dict[str, int]) -> int | None:
    found = _TARGET.search(instruction.text)
    return labels.get(found[1]) if instruction.name in ("BRA", "CALL") and found else None


def _falls(instruction: Instruction) -> bool:
    """Whether what follows a branch may be reached from it. A loop is also left by a call that does not return."""
    return (
        instruction.name == "CALL"
        or instruction.predicated
        or "," in instruction.text
        or len(instruction.text.split()) > 2
    )


def _dominators(after: Sequence[Sequence[int]]) -> list[int]:
    """Of each piece the pieces that every way to it passes, as bits; of one that none leads to, no piece."""
    everything = (1 << len(after)) - 1
    found = [1, *[everything] * (len(after) - 1)]
    reached = {0}
    changed = True
    while changed:
        changed = False
        for block, following in enumerate(after):
            if block not in reached:
                continue
            for target in following:
                passed = found[target] & (found[block] | 1 << target)
                changed |= passed != found[target] or target not in reached
                reached.add(target)
                found[target] = passed
    return [passed if block in reached else 0 for block, passed in enumerate(found)]


def _reaching(block: int, head: int, before: Sequence[Sequence[int]]) -> set[int]:
    """Pieces from which a way leads to one without passing the loop's head."""
    found = {block}
    todo = [block] if block != head else []
    while todo:
        for earlier in before[todo.pop()]:
            if earlier not in found and earlier != head:
                found.add(earlier)
                todo.append(earlier)
    return found
