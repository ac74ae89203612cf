"""What atomics that release and acquire order across the blocks of a launch (PTX ISA, "Memory Consistency Model").

A warp that releases at an address hands over all that it knows of: what it did itself, what its block did before a
barrier that it took part in, and what was handed over to it. A warp that acquires at that address afterwards has it,
and after a barrier the others of its block.

Taken as handed over is also what the releasing warp does after the release and before its next barrier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ..machine import Machine
    from .races import Cells

# by warp, numbered over the whole launch: what it did at times below this one
Known = dict[int, int]


class Handover:
    """Of one launch."""

    def __init__(self) -> None:
        self._released: dict[int, Known] = {}  # by address
        self._acquired: dict[int, list[tuple[int, int, Known]]] = {}  # by block: the warp, when, and what

    def release(self, m: Machine, address: int, lane: int) -> None:
        """By the warp of a lane."""
        warp = int(m.warp_of[lane])
        block = int(m.blocks[warp // m.warps])
        own = {block * m.warps + w: int(known) for w, known in enumerate(m.clock.known[warp])}
        own[block * m.warps + warp % m.warps] = int(m.clock.time[warp // m.warps]) + 1
        total = self._released.setdefault(address, {})
        for known in (own, *self._of(m, block, warp)):
            for other, when in known.items():
                total[other] = max(when, total.get(other, 0))

    def acquire(self, m: Machine, address: int, lane: int) -> None:
        """By the warp of a lane."""
        warp = int(m.warp_of[lane])
        block, when = int(m.blocks[warp // m.warps]), int(m.clock.time[warp // m.warps])
        if address in self._released:
            self._acquired.setdefault(block, []).append((warp, when, dict(self._released[address])))

    def ordered(
        self, m: Machine, unclear: NDArray[np.bool_], other: Cells, when: Cells, local: Cells
    ) -> NDArray[np.bool_]:
        """Where what `other` did at `when` comes before what the warps `local` of `m` do now; of the unclear ones."""
        found = np.zeros(unclear.shape, bool)
        if not self._acquired:
            return found
        other, when, local = (np.broadcast_to(x, unclear.shape) for x in (other, when, local))
        for at in map(tuple, np.argwhere(unclear)):
            warp = int(local[at])
            known = self._of(m, int(m.blocks[warp // m.warps]), warp)
            found[at] = any(k.get(int(other[at]), 0) > when[at] for k in known)
        return found

    def _of(self, m: Machine, block: int, warp: int) -> list[Known]:
        """What a warp has had handed over."""
        return [
            known
            for by, when, known in self._acquired.get(block, ())
            if by == warp or m.clock.known[warp, by % m.warps] > when
        ]
