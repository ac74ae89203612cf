"""Mutants of a kernel: one instruction that orders something removed, or one operand moved, and whether it is noticed.

A mutant is noticed by a check (a fault or a finding) or by its results, where a byte of memory differs from what the
kernel itself leaves. One that is not is a survivor: what was removed was not needed, or a check has missed it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray
from ptx_emulator import triton_driver
from ptx_emulator.faults import Fault
from ptx_emulator.launch import Argument, Report, run
from ptx_emulator.machine import Observer
from ptx_emulator.memory.global_memory import Buffer
from ptx_emulator.options import Options
from ptx_emulator.parser import Address, Instruction, Kernel
from ptx_emulator.scalar_types import Array

# what is removed: all of it, in every kernel
ORDERING = {
    "bar.sync": "barrier",
    "barrier.sync": "barrier",
    "bar.warp.sync": "barrier of a warp",
    "cp.async.wait_group": "wait for copies",
    "cp.async.wait_all": "wait for copies",
    "cp.async.commit_group": "end of a group of copies",
    "wgmma.wait_group": "wait for products",
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


@dataclass
class Trial:
    """Takes `triton_driver`'s place of running kernels: each launch is run with every mutant of its kernel as well.

    Attributes:
        moved: how many operands of each kind are moved.
        name: asked at each launch for the kernel's name.
        step: every which of a kernel's mutants is tried.
        outcomes: by name.
    """

    moved: int
    name: Callable[[], str]
    step: int = 1
    outcomes: dict[str, list[Outcome]] = field(default_factory=dict)

    def __enter__(self) -> Trial:
        triton_driver.run = self.run  # type: ignore[assignment]
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
        found = self.outcomes.setdefault(self.name(), [])
        for mutant in list(mutants(kernel, self.moved))[:: self.step]:
            for m, content in zip(memory, before, strict=True):
                m[:] = np.frombuffer(content, np.uint8)
            by, message = SURVIVED, ""
            limited = replace(options, findings="collect", steps=2 * report.steps + 1000)
            try:
                told = run(mutant.kernel, grid, arguments, block=block, shared=shared, buffers=buffers, options=limited)
                if told.findings:
                    by, message = ", ".join(sorted({f.kind for f in told.findings})), str(told.findings[0])
                elif any(bytes(m) != content for m, content in zip(memory, after, strict=True)):
                    by = "results"
            except Fault as fault:
                by, message = "fault", str(fault)
            found.append(Outcome(mutant, by, message or (trace.explanation(mutant) if by == SURVIVED else "")))
        for m, content in zip(memory, after, strict=True):
            m[:] = np.frombuffer(content, np.uint8)
        return report


def _bytes(buffer: Buffer) -> NDArray[np.uint8]:
    return np.frombuffer((ctypes.c_uint8 * buffer.size).from_address(buffer.address), np.uint8)


# why a mutant makes no difference, each found by a look at what the kernel itself did
NOT_REACHED = "the call does not reach it"
COVERED = "the data of every copy is waited for before the same barrier as without the change"
NOBODY_MEETS = "no two warps meet across it: a barrier before or after it orders all that it orders"


class Trace:
    """The observer of a kernel's own run: what the first block accesses between its barriers, and how it waits."""

    def __init__(self, kernel: Kernel, threads: int) -> None:
        self.kernel = kernel
        self.threads = threads
        self.reached: set[int] = set()
        self.barriers: list[int] = []  # ids of the instructions that end the intervals
        self.intervals: list[list[tuple[str, bool, NDArray[np.int64], NDArray[np.int64]]]] = [[]]
        self.events: list[tuple[int, str, int]] = []  # of copies: id, what, barriers before
        self._open: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = [[]]

    def issue(self, instruction: Instruction, warps: int, taking: int) -> None:
        self.reached.add(id(instruction))
        if ordering_of(instruction) == "barrier":
            self.barriers.append(id(instruction))
            self.intervals.append([])
        elif instruction.opcode == "cp":
            kind = next((k for k in ("commit_group", "wait_group", "wait_all") if k in instruction.modifiers), "copy")
            self.events.append((id(instruction), kind, len(self.barriers)))
            if kind == "commit_group":
                self._open.append([])
            elif kind != "copy":
                kept = int(str(instruction.operands[0]), 0) + 1 if kind == "wait_group" else 0
                arrived = self._open[: max(len(self._open) - kept, 0)]
                self._open = self._open[len(arrived) :] or [[]]
                for cells, warp in (copy for group in arrived for copy in group):
                    self.intervals[-1].append(("shared", True, cells, warp))

    def access(
        self, space: str, kind: str, instruction: Instruction, addresses: Array, size: int, lanes: NDArray[np.int64]
    ) -> None:
        own = lanes < self.threads
        if not own.any():
            return
        width = max(size // 4, 1)
        cells = (addresses[own].astype(np.int64) // 4)[:, None] + np.arange(width)
        warp = np.repeat(lanes[own] // 32, width)
        store = kind in ("store", "copy") or (kind == "matrix" and instruction.opcode == "stmatrix")
        self.intervals[-1].append((space, store, cells.reshape(-1), warp))
        if kind == "copy":
            self._open[-1].append((cells.reshape(-1), warp))

    def explanation(self, mutant: Mutant) -> str:
        """Why a mutant that survived makes no difference, or "" where this does not tell."""
        changed = id(mutant.instruction)
        if changed not in self.reached:
            return NOT_REACHED
        if mutant.what == "barrier removed":
            return "" if any(self._meet(a, b) for a, b in self._merged(changed)) else NOBODY_MEETS
        if mutant.what.endswith("copies removed"):
            return COVERED if self._waited(None) == self._waited(changed) else ""
        return ""

    def _merged(self, barrier: int) -> Iterator[tuple[int, int]]:
        """Intervals that become one without a barrier: the first and the last of each."""
        begin = 0
        for i, ended in enumerate([*self.barriers, 0]):
            if ended != barrier:
                if i > begin:
                    yield begin, i
                begin = i + 1

    def _meet(self, first: int, last: int) -> bool:
        """Whether a cell that one warp writes in one of the intervals is accessed by another warp in another one."""
        for space in ("shared", "global"):
            cells, warps, stores, at = [], [], [], []
            for i in range(first, last + 1):
                for where, store, cell, warp in self.intervals[i]:
                    if where == space:
                        cells.append(cell)
                        warps.append(warp)
                        stores.append(np.full(len(cell), store))
                        at.append(np.full(len(cell), i))
            if not cells:
                continue
            cell, warp, store, when = (np.concatenate(x) for x in (cells, warps, stores, at))
            for c in np.unique(cell[store]):
                here = cell == c
                for w, t in {*zip(warp[here & store].tolist(), when[here & store].tolist(), strict=True)}:
                    if ((warp[here] != w) & (when[here] != t)).any():
                        return True
        return False

    def _waited(self, without: int | None) -> list[int]:
        """Of each copy, in order, after how many barriers it is waited for; -1 for never."""
        found: list[int] = []
        groups: list[list[int]] = [[]]
        for instruction, kind, barriers in self.events:
            if instruction == without:
                continue
            if kind == "copy":
                groups[-1].append(len(found))
                found.append(-1)
            elif kind == "commit_group":
                groups.append([])
            else:
                kept = 0
                if kind == "wait_group":
                    text = next(i for i in self.kernel.code if id(i) == instruction)
                    kept = int(str(text.operands[0]), 0) + 1
                arrived, groups = groups[: max(len(groups) - kept, 0)], groups[max(len(groups) - kept, 0) :] or [[]]
                for copy in (c for group in arrived for c in group):
                    found[copy] = barriers
        return found
