"""Mutants of a kernel: one instruction that orders something removed, or one operand moved, and whether it is noticed.

A mutant is noticed by a check (a fault or a finding) or by its results, where a byte of memory differs from what the
kernel itself leaves. One that is not is a survivor: what was removed was not needed, or a check has missed it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from mutant_traces import NOT_REACHED, Trace
from numpy.typing import NDArray
from ptx_emulator import triton_driver
from ptx_emulator.faults import Fault
from ptx_emulator.launch import Argument, Report, run
from ptx_emulator.machine import Observer
from ptx_emulator.memory.global_memory import Buffer
from ptx_emulator.options import Options
from ptx_emulator.parser import Address, Instruction, Kernel

# what is removed: all of it, in every kernel
ORDERING = {
    "bar.sync": "barrier",
    "barrier.sync": "barrier",
    "bar.warp.sync": "barrier of a warp",
    "cp.async.wait_group": "wait for copies",
    "cp.async.wait_all": "wait for copies",
    "cp.async.commit_group": "end of a group of copies",
    "wgmma.wait_group": "wait for products",
    "wgmma.commit_group": "end of a group of products",
    "wgmma.fence": "fence of registers",
    "fence.proxy.async": "fence between proxies",
    "membar": "fence of memory",
}
SURVIVED = "nothing"


@dataclass(frozen=True)
class Mutant:
    """A kernel with one change.

    Attributes:
        what: kind of the change.
        index: of the instruction that was changed.
        original, kernel: before and after.
    """

    what: str
    index: int
    original: Kernel
    kernel: Kernel

    @property
    def instruction(self) -> Instruction:
        return self.original.code[self.index]


def ordering_of(ins: Instruction) -> str | None:
    """The kind of a barrier, wait or fence, or None."""
    return next((kind for name, kind in ORDERING.items() if f"{ins.name}.".startswith(f"{name}.")), None)


def mutants(kernel: Kernel, moved: int) -> Iterator[Mutant]:
    """All mutants without an ordering instruction, and up to `moved` of each opcode with an operand moved."""
    for index, ins in enumerate(kernel.code):
        if (kind := ordering_of(ins)) is not None:
            yield Mutant(f"{kind} removed", index, kernel, _with(kernel, index, None))
    by_kind: dict[str, list[tuple[int, Instruction]]] = {}
    for index, ins in enumerate(kernel.code):
        if (change := _moved(ins)) is not None:
            by_kind.setdefault(f"{_space(ins)} moved", []).append((index, change))
    for what, changes in by_kind.items():
        step = max(1, -(-len(changes) // moved))
        for index, change in changes[::step]:
            yield Mutant(what, index, kernel, _with(kernel, index, change))


def _space(ins: Instruction) -> str:
    if ins.opcode == "mma":
        return "operand of mma"
    if ins.opcode == "cp":
        return "target of cp.async"
    return f"{ins.opcode}{'' if 'matrix' in ins.opcode else '.shared'} address"


def _moved(ins: Instruction) -> Instruction | None:
    """An access of shared memory a vector further, a product with two registers of A exchanged; else None."""
    operands = list(ins.operands)
    if ins.opcode == "mma" and isinstance(operands[1], tuple) and len(operands[1]) > 1:
        first, second, *rest = operands[1]
        operands[1] = (second, first, *rest)
    elif ins.opcode in ("ldmatrix", "stmatrix") or (ins.opcode in ("ld", "st") and "shared" in ins.modifiers):
        place = 1 if ins.opcode.startswith("ld") else 0
        operands[place] = _further(operands[place], 16)
    elif ins.opcode == "cp" and "shared" in ins.modifiers:
        operands[0] = _further(operands[0], 16)
    else:
        return None
    return replace(ins, operands=tuple(operands))


def _further(operand: object, by: int) -> Address:
    assert isinstance(operand, Address)
    return Address(operand.base, operand.offset + by)


def _with(kernel: Kernel, index: int, change: Instruction | None) -> Kernel:
    """The kernel with another instruction at a place, or with one that does nothing there."""
    code = list(kernel.code)
    nothing = Instruction("membar", ("cta",), (), None, code[index].line, code[index].source, "membar.cta")
    code[index] = nothing if change is None else change
    return replace(kernel, code=code)


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        by: "fault", the kinds of its findings, "results", or `SURVIVED`.
        message: of the check; of a survivor why it makes no difference, "" if that is not known.
    """

    mutant: Mutant
    by: str
    message: str

    def and_then(self, later: Outcome) -> Outcome:
        """Of a mutant that survived, and what became of it in a later launch: a launch that tells nothing adds none."""
        if later.by != SURVIVED or self.message == NOT_REACHED:
            return later
        if later.message in (NOT_REACHED, self.message):
            return self
        return replace(self, message=f"{self.message}; {later.message}" if self.message and later.message else "")


@dataclass
class Trial:
    """Takes `triton_driver`'s place of running kernels: each launch is run with every mutant of its kernel as well.

    Of a kernel that was launched before only those mutants are tried again that have survived.

    Attributes:
        moved: how many operands of each kind are moved.
        name: asked at each launch for the kernel's name.
        step: every which of a kernel's mutants is tried.
        wanted: whether a mutant of the kernel of a name is tried; None: all are.
        tried: by the kernel's name and what was compiled, of each mutant.
    """

    moved: int
    name: Callable[[], str]
    step: int = 1
    wanted: Callable[[str, Mutant], bool] | None = None
    tried: dict[tuple[str, Kernel], list[Outcome]] = field(default_factory=dict)

    @property
    def outcomes(self) -> dict[str, list[Outcome]]:
        """By the kernel's name."""
        found: dict[str, list[Outcome]] = {}
        for (name, _), own in self.tried.items():
            found.setdefault(name, []).extend(own)
        return found

    def __enter__(self) -> Trial:
        triton_driver.run = self.run
        return self

    def __exit__(self, *_: object) -> None:
        triton_driver.run = run

    def run(
        self,
        kernel: Kernel,
        grid: tuple[int, int, int],
        arguments: Sequence[Argument],
        *,
        block: int,
        shared: int,
        buffers: Sequence[Buffer],
        options: Options,
        observer: Observer | None,
    ) -> Report:
        memory = [_bytes(buffer) for buffer in buffers]
        before = [bytes(m) for m in memory]
        trace = Trace(kernel, block)
        plain = replace(options, races=False)
        report = run(
            kernel, grid, arguments, block=block, shared=shared, buffers=buffers, options=plain, observer=trace
        )
        after = [bytes(m) for m in memory]
        key = self.name(), kernel
        if key not in self.tried:
            taken = [m for m in mutants(kernel, self.moved) if self.wanted is None or self.wanted(key[0], m)]
            self.tried[key] = [Outcome(m, SURVIVED, NOT_REACHED) for m in taken[:: self.step]]
        limited = replace(options, findings="collect", steps=2 * report.steps + 1000)
        for i, known in enumerate(self.tried[key]):
            if known.by != SURVIVED or not trace.reaches(known.mutant.instruction):
                continue
            for m, content in zip(memory, before, strict=True):
                m[:] = np.frombuffer(content, np.uint8)
            by, message = SURVIVED, ""
            mutated = known.mutant.kernel
            try:
                told = run(mutated, grid, arguments, block=block, shared=shared, buffers=buffers, options=limited)
                if told.findings:
                    by, message = ", ".join(sorted({f.kind for f in told.findings})), str(told.findings[0])
                elif any(bytes(m) != content for m, content in zip(memory, after, strict=True)):
                    by = "results"
            except Fault as fault:
                by, message = "fault", str(fault)
            message = trace.explanation(known.mutant.what, known.mutant.instruction) if by == SURVIVED else message
            self.tried[key][i] = known.and_then(Outcome(known.mutant, by, message))
        for m, content in zip(memory, after, strict=True):
            m[:] = np.frombuffer(content, np.uint8)
        return report


def _bytes(buffer: Buffer) -> NDArray[np.uint8]:
    return np.frombuffer((ctypes.c_uint8 * buffer.size).from_address(buffer.address), np.uint8)
