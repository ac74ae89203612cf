"""Which accesses of a block are ordered by its barriers.

A block's time is the number of barriers completed in it. `known[v, w]` says up to which time warp v knows what warp w
of its block did: an access of w at time t comes before what v does if t is less than that. A barrier makes its
participants know of each other, and of what the others knew.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Clock:
    """Time of the resident blocks, `warps` warps each."""

    def __init__(self, blocks: int, warps: int) -> None:
        self.warps = warps
        self.time = np.zeros(blocks, np.int32)
        self.known = np.zeros((blocks * warps, warps), np.int32)
        self.least = np.zeros(blocks * warps, np.int32)  # known.min(1)

    def barrier(self, block: int, warps: NDArray[np.bool_]) -> None:
        """A barrier is complete: `warps` of a block took part."""
        self.time[block] += 1
        own = self.known[block * self.warps : (block + 1) * self.warps]
        own[warps] = own[warps].max(0)
        own[np.ix_(warps, warps)] = self.time[block]
        self.least[block * self.warps : (block + 1) * self.warps] = own.min(1)

    def barrier_of_all(self, blocks: NDArray[np.bool_]) -> None:
        """Barriers in which all warps took part, of the blocks of a mask."""
        self.time[blocks] += 1
        each = np.repeat(blocks, self.warps)
        self.known[each] = np.repeat(self.time[blocks], self.warps)[:, None]
        self.least[each] = np.repeat(self.time[blocks], self.warps)
