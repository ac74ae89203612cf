"""Races: two warps access a cell of memory, one of them writes, and nothing orders them.

A cell holds the last write and the reads since. Reads by one warp are kept by its last; where several warps read that
nothing orders among themselves, the cell says "several", and a write must come after all of them. A write of the value
that is there already harms nobody and races with no other write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..machine import Machine
    from ..parser import Instruction

Cells = NDArray[np.integer]
NOBODY, SEVERAL = -1, -2


class Shadow:
    """Who accessed each of `cells` cells of shared memory last, and when. Warps are those of a machine."""

    def __init__(self, cells: int) -> None:
        self.writer = np.full(cells, NOBODY, np.int32)
        self.written = np.zeros(cells, np.int32)  # block's time
        self.reader = np.full(cells, NOBODY, np.int32)
        self.read = np.zeros(cells, np.int32)

    def on_read(self, m: Machine, cells: Cells, warp: Cells, now: Cells, instruction: Instruction) -> None:
        """`warp` and `now` broadcast against `cells`."""
        writer = self.writer[cells]
        other = (writer >= 0) & (writer != warp)
        if other.any():
            bad = other & (m.clock.known[warp, writer % m.warps] <= self.written[cells])
            if bad.any():
                report(m, instruction, "reads", "wrote", *first_of(bad, warp, writer))
        reader = self.reader[cells]
        several = (reader != NOBODY) & (reader != warp)
        if several.any():
            several &= ~self._read_before(m, reader, cells, warp)
        self.reader[cells] = np.where(several, SEVERAL, warp)
        self.read[cells] = now
        # warps that read the same in this very instruction
        shared = self.reader[cells] != np.where(several, SEVERAL, warp)
        if shared.any():
            self.reader[cells[shared]] = SEVERAL

    def on_write(
        self,
        m: Machine,
        cells: Cells,
        warp: Cells,
        now: Cells,
        instruction: Instruction,
        differs: NDArray[np.bool_] | None = None,
    ) -> None:
        """`differs`: where the written value is another than the one that is there; None: anywhere."""
        writer = self.writer[cells]
        other = (writer >= 0) & (writer != warp)
        if differs is not None:
            other &= differs
        if other.any():
            bad = other & (m.clock.known[warp, writer % m.warps] <= self.written[cells])
            if bad.any():
                report(m, instruction, "writes", "wrote", *first_of(bad, warp, writer))
        reader = self.reader[cells]
        other = (reader != NOBODY) & (reader != warp)
        if other.any():
            bad = other & ~self._read_before(m, reader, cells, warp)
            if bad.any():
                report(m, instruction, "writes", "read", *first_of(bad, warp, reader))
        self.writer[cells] = warp
        self.written[cells] = now
        self.reader[cells] = NOBODY

    def _read_before(self, m: Machine, reader: Cells, cells: Cells, warp: Cells) -> NDArray[np.bool_]:
        known = np.where(reader == SEVERAL, m.clock.least[warp], m.clock.known[warp, reader % m.warps])
        return known > self.read[cells]


def report(m: Machine, instruction: Instruction, does: str, did: str, warp: int, other: int) -> None:
    who = "several warps" if other == SEVERAL else m.who(other)
    m.findings.add("race", instruction, f"{m.who(warp)} {does} what {who} {did}, with no barrier between")


def first_of(bad: NDArray[np.bool_], warp: Cells, other: Cells) -> tuple[int, int]:
    at = np.unravel_index(np.argmax(bad), bad.shape)
    return int(np.broadcast_to(warp, bad.shape)[at]), int(other[at])
