"""The innermost loops of a kernel, and what one iteration of each issues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .parser import Instruction, Kernel


@dataclass(frozen=True)
class Loop:
    """A loop that holds no other.

    Attributes:
        source: where it begins: "file.py:line" where the compiler said so, else "".
        instructions, barriers, products: of one iteration, as written; a branch past some of them takes fewer.
        iterations: of all warps together.
    """

    source: str
    instructions: int
    barriers: int
    products: int
    iterations: int


def is_barrier(instruction: Instruction) -> bool:
    return instruction.opcode in ("bar", "barrier") and "warp" not in instruction.modifiers


def is_product(instruction: Instruction) -> bool:
    if instruction.opcode == "wgmma":
        return "mma_async" in instruction.modifiers
    return instruction.opcode == "mma"


def loops_of(kernel: Kernel, issued: Mapping[int, int]) -> list[Loop]:
    """Innermost loops in the order of the code.

    Args:
        kernel: whose.
        issued: by line of the PTX, how many warps issued it.
    """
    from .counters import is_barrier, is_product

    spans = []
    for index, ins in enumerate(kernel.code):
        if ins.opcode == "bra" and kernel.labels.get(str(ins.operands[0]), index + 1) <= index:
            spans.append((kernel.labels[str(ins.operands[0])], index))
    found = []
    for start, end in spans:
        if any((start, end) != other and start <= other[0] and other[1] <= end for other in spans):
            continue
        body = kernel.code[start : end + 1]
        found.append(
            Loop(
                _source(kernel, body),
                len(body),
                sum(map(is_barrier, body)),
                sum(map(is_product, body)),
                issued.get(kernel.code[start].line, 0),
            )
        )
    return found


def _source(kernel: Kernel, body: Sequence[Instruction]) -> str:
    """The first line of the kernel's own file that a loop holds: what is inlined of libraries has other files."""
    own = next((i.source.split(":")[0] for i in kernel.code if i.source), "")
    lines = [int(i.source.split(":")[1]) for i in body if i.source.startswith(f"{own}:")]
    lines = [line for line in lines if line]
    return f"{own}:{min(lines)}" if lines else ""
