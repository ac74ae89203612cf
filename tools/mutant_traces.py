"""Why a mutant makes no difference: found by a look at what the kernel itself did, not by the emulator's checks.

`Trace` is the observer of a kernel's own run. It looks at the first block of those that are emulated together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from ptx_emulator.parser import Instruction, Kernel
from ptx_emulator.plan import sources, targets
from ptx_emulator.scalar_types import Array

NOT_REACHED = "the calls do not reach it"
COVERED = "the data of every copy is waited for before the same barrier as without the change"
UNREAD = f"{COVERED}, but for copies that nobody reads"
NOBODY_MEETS = "no two warps meet across it: a barrier before or after it orders all that it orders"
WAITED_LATER = "a later wait covers it, before which only further products of the same shape use its registers"
SAME_WAIT = "every product is waited for where it is without the change"
FENCED_BEFORE = "between the fence before it and the next products nobody accesses their registers"
SHOWN_BEFORE = "nothing is stored to shared memory between it and the fence before it"


def what_it_orders(instruction: Instruction) -> str:
    """An instruction's name without its type and scope: `wgmma.wait_group`."""
    return f"{instruction.opcode}.{instruction.modifiers[0]}" if instruction.modifiers else instruction.opcode


class Trace:
    """What the first block accesses between its barriers, and how it waits.

    Attributes:
        issued: instructions, in the order of a block whose warps run in lockstep.
    """

    def __init__(self, kernel: Kernel, threads: int) -> None:
        self.kernel = kernel
        self.threads = threads
        self.issued: list[Instruction] = []
        self.reached: set[int] = set()
        self.barriers: list[int] = []  # ids of the instructions that end the intervals
        self.intervals: list[list[tuple[str, bool, NDArray[np.int64], NDArray[np.int64]]]] = [[]]
        self.events: list[tuple[Instruction, str, int]] = []  # of copies: what, and barriers before
        self.read: set[int] = set()  # numbers of the copies whose data somebody reads
        self._open: list[list[tuple[NDArray[np.int64], NDArray[np.int64]]]] = [[]]
        self._copies = 0
        self._last_copy: dict[int, int] = {}  # of a cell

    def issue(self, instruction: Instruction, warps: int, taking: int) -> None:
        self.reached.add(id(instruction))
        self.issued.append(instruction)
        if what_it_orders(instruction) in ("bar.sync", "barrier.sync"):
            self.barriers.append(id(instruction))
            self.intervals.append([])
        elif instruction.opcode == "cp":
            kind = next((k for k in ("commit_group", "wait_group", "wait_all") if k in instruction.modifiers), "copy")
            self.events.append((instruction, kind, len(self.barriers)))
            if kind == "copy":
                self._copies += 1
            elif kind == "commit_group":
                self._open.append([])
            else:
                kept = _pending(instruction) + 1 if kind == "wait_group" else 0
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
            self._last_copy |= dict.fromkeys(cells.reshape(-1).tolist(), self._copies - 1)
        elif space == "shared" and self._last_copy:
            for cell in np.unique(cells).tolist():
                number = self._last_copy.pop(cell, None) if store else self._last_copy.get(cell)
                if number is not None and not store:
                    self.read.add(number)

    def reaches(self, changed: Instruction) -> bool:
        return id(changed) in self.reached

    def explanation(self, what: str, changed: Instruction) -> str:
        """Why it makes no difference that an instruction is not there, or "" where this does not tell."""
        if not self.reaches(changed):
            return NOT_REACHED
        if what == "barrier removed":
            return "" if any(self._meet(a, b) for a, b in self._merged(id(changed))) else NOBODY_MEETS
        if what in ("wait for copies removed", "end of a group of copies removed"):
            before, after = self._waited(None), self._waited(changed)
            if before == after:
                return COVERED
            return UNREAD if all(before[i] == after[i] for i in self.read) else ""
        if what in ("wait for products removed", "end of a group of products removed"):
            before, after = self._products_waited(None), self._products_waited(changed)
            if before == after:
                return SAME_WAIT
            return WAITED_LATER if self._left_alone(before, after) else ""
        if what == "fence of registers removed":
            return FENCED_BEFORE if self._fenced_before(changed) else ""
        if what == "fence between proxies removed":
            return SHOWN_BEFORE if self._shown_before(changed) else ""
        return ""

    # barriers

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
                for where, stored, cell, warp in self.intervals[i]:
                    if where == space:
                        cells.append(cell)
                        warps.append(warp)
                        stores.append(np.full(len(cell), stored))
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

    # copies

    def _waited(self, without: Instruction | None) -> list[int]:
        """Of each copy, in order, after how many barriers it is waited for; -1 for never."""
        found: list[int] = []
        groups: list[list[int]] = [[]]
        for instruction, kind, barriers in self.events:
            if instruction is without:
                continue
            if kind == "copy":
                groups[-1].append(len(found))
                found.append(-1)
            elif kind == "commit_group":
                groups.append([])
            else:
                kept = _pending(instruction) + 1 if kind == "wait_group" else 0
                arrived, groups = groups[: max(len(groups) - kept, 0)], groups[max(len(groups) - kept, 0) :] or [[]]
                for copy in (c for group in arrived for c in group):
                    found[copy] = barriers
        return found

    # products

    def _products_waited(self, without: Instruction | None) -> list[int]:
        """Of each wgmma, in order, after how many instructions it is waited for; -1 for never."""
        found: list[int] = []
        groups: list[list[int]] = [[]]
        for at, instruction in enumerate(self.issued):
            if instruction is without or instruction.opcode != "wgmma":
                continue
            if "commit_group" in instruction.modifiers:
                groups.append([])
            elif "wait_group" in instruction.modifiers:
                done = max(len(groups) - 1 - _pending(instruction), 0)
                for product in (p for group in groups[:done] for p in group):
                    found[product] = at
                groups = groups[done:]
            elif "mma_async" in instruction.modifiers:
                groups[-1].append(len(found))
                found.append(-1)
        return found

    def _left_alone(self, before: list[int], after: list[int]) -> bool:
        """Whether each product that is waited for later has its registers left alone until then.

        A wgmma may add to the same accumulator meanwhile.
        """
        for product, first, last in zip(filter(_is_product, self.issued), before, after, strict=True):
            if first == last:
                continue
            if last < 0:
                return False
            for instruction in self.issued[first:last]:
                if _is_product(instruction):
                    if not _may_follow(instruction, product):
                        return False
                elif instruction.opcode != "wgmma" and _used(instruction) & _used(product):
                    return False
        return True

    def _fenced_before(self, changed: Instruction) -> bool:
        """Whether no register is accessed between the fence before this one and a product before the next fence."""
        accessed: set[str] | None = None  # since the last fence but this one; None: there was none yet
        after = False
        for instruction in self.issued:
            if instruction is changed:
                after = True
            elif instruction.opcode == "wgmma" and "fence" in instruction.modifiers:
                accessed, after = set(), False
            elif _is_product(instruction):
                if after and (accessed is None or accessed & _used(instruction)):
                    return False
            elif accessed is not None and instruction.opcode != "wgmma":
                accessed |= _used(instruction)
        return True

    def _shown_before(self, changed: Instruction) -> bool:
        """Whether no st or stmatrix of shared memory lies between this fence and the one before it."""
        stored = True
        for instruction in self.issued:
            if instruction is changed:
                if stored:
                    return False
            elif instruction.opcode == "fence" and "proxy" in instruction.modifiers:
                stored = False
            elif instruction.opcode == "stmatrix" or (instruction.opcode in ("st", "atom", "red")):
                stored |= instruction.opcode == "stmatrix" or "global" not in instruction.modifiers
        return True


def _pending(instruction: Instruction) -> int:
    return int(str(instruction.operands[0]), 0)


def _is_product(instruction: Instruction) -> bool:
    return instruction.opcode == "wgmma" and "mma_async" in instruction.modifiers


def _parts(product: Instruction) -> tuple[set[str], set[str]]:
    """Registers of a wgmma: of its accumulator, and of A."""
    accumulator, fragments = (set(part) if isinstance(part, tuple) else set() for part in product.operands[:2])
    return accumulator, fragments


def _used(instruction: Instruction) -> set[str]:
    """Registers; of a wgmma those of its accumulator and of A."""
    if _is_product(instruction):
        return set().union(*_parts(instruction))
    return {*targets(instruction), *sources(instruction)}


def _may_follow(product: Instruction, other: Instruction) -> bool:
    """Whether a wgmma may be issued while another one is in flight: it adds to the same accumulator, in one shape."""
    (result, fragments), (flying, read) = _parts(product), _parts(other)
    same = product.operands[0] == other.operands[0] and product.modifiers == other.modifiers
    return not (result & read or fragments & flying or (result & flying and not same))
