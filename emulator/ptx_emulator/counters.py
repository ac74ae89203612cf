"""What a launch costs, counted: sectors, wavefronts, instructions, barriers, products, and waits for loads.

Counts are those of the PTX as it runs, so they are exact and the same each time; times are nobody's. Where the hardware
decides, what is public of it is followed: global memory moves in sectors of 32 bytes (CUDA C++ Best Practices Guide,
"Coalesced Access to Global Memory"), shared memory has 32 banks of 4 bytes, and what lanes ask of one bank in different
words is served in turn (CUDA C++ Programming Guide, "Shared Memory"), half a warp at once for 8 bytes a lane, a quarter
for 16.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .loops import Loop, is_barrier, is_product, loops_of
from .machine import WARP, Lanes
from .parser import Instruction, Kernel
from .scalar_types import Array
from .waits import Waits

SECTOR = 32
BANKS = 32


@dataclass
class Counts:
    """Of one launch, or of several, whose counts are added.

    Attributes:
        launches: how many.
        warps: that were launched.
        instructions: that warps issued.
        barriers: of those, `bar.sync`s.
        products: of those, `mma.sync`s and `wgmma.mma_async`s.
        sectors, ideal_sectors: of 32 bytes that requests to global memory touched, and the fewest that the bytes which
            each request asks for can lie in.
        wavefronts, ideal_wavefronts: of shared memory, and the fewest. What a wgmma reads itself is left out.
        waits: times that a warp waited for loads with nothing between (`waits.Waits`).
        loops: the innermost loops, the one that issued most instructions first.
    """

    launches: int = 0
    warps: int = 0
    instructions: int = 0
    barriers: int = 0
    products: int = 0
    sectors: int = 0
    ideal_sectors: int = 0
    wavefronts: int = 0
    ideal_wavefronts: int = 0
    waits: int = 0
    loops: list[Loop] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        """Another launch of the same kernel."""
        for name, value in vars(other).items():
            if name != "loops":
                setattr(self, name, getattr(self, name) + value)
        self.loops = self.loops or other.loops


class Counters:
    """The observer of one launch (`machine.Observer`)."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.counts = Counts(launches=1)
        self.issued: Counter[int] = Counter()  # by the line of the PTX
        self._waits = Waits(kernel)

    def issue(self, instruction: Instruction, warps: int, taking: int) -> None:
        self.issued[instruction.line] += warps
        counts = self.counts
        counts.instructions += warps
        if is_barrier(instruction):
            counts.barriers += warps
        elif is_product(instruction):
            counts.products += warps
        counts.waits += self._waits.issue(instruction, warps, taking)

    def access(
        self, space: str, kind: str, instruction: Instruction, addresses: Array, size: int, lanes: Lanes
    ) -> None:
        counts = self.counts
        if space == "global":
            moved, ideal = sectors(addresses, size, lanes)
            counts.sectors += moved
            counts.ideal_sectors += ideal
        elif kind != "product":
            served, ideal = wavefronts(addresses, size, lanes)
            counts.wavefronts += served
            counts.ideal_wavefronts += ideal

    def finished(self) -> Counts:
        """The counts, with those of the loops."""
        found = [loop for loop in loops_of(self.kernel, self.issued) if loop.iterations]
        self.counts.loops = sorted(found, key=lambda loop: (-loop.instructions * loop.iterations, loop.source))
        return self.counts


def sectors(addresses: Array, size: int, lanes: Lanes) -> tuple[int, int]:
    """(moved, ideal) of one request of each warp; `lanes` are numbered warp by warp."""
    warp = lanes // WARP
    places = _distinct(warp, addresses.astype(np.int64) // SECTOR)[0]
    asked = _distinct(warp, addresses.astype(np.int64))[0]
    bytes_asked = np.unique(asked, return_counts=True)[1] * size
    return len(places), int((-(-bytes_asked // SECTOR)).sum())


def wavefronts(addresses: Array, size: int, lanes: Lanes) -> tuple[int, int]:
    """(served, ideal) of one request of each warp."""
    phase = lanes // (WARP if size <= 4 else 4 * WARP // size)
    words = addresses.astype(np.int64)[:, None] // 4 + np.arange(max(1, size // 4))
    phase, words = _distinct(np.repeat(phase, words.shape[1]), words.reshape(-1))
    in_bank, count = np.unique(phase * BANKS + words % BANKS, return_counts=True)
    first = np.flatnonzero(np.diff(in_bank // BANKS, prepend=-1))
    whole = np.unique(phase, return_counts=True)[1]
    return int(np.maximum.reduceat(count, first).sum()), int((-(-whole // BANKS)).sum())


def _distinct(group: NDArray[np.int64], value: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The distinct pairs, as (group, value)."""
    low = int(value.min())
    span = int(value.max()) - low + 1
    pairs = np.unique(group * span + (value - low))
    return pairs // span, pairs % span + low
