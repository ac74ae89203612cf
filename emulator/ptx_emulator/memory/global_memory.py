"""Global memory: buffers of the host at their own addresses, with bounds, alignment and races across blocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..faults import Fault
from ..scalar_types import UNSIGNED, Array
from .handover import Handover
from .races import NOBODY, SEVERAL, Cells, first_of

if TYPE_CHECKING:
    from ..machine import Lanes, Machine
    from ..parser import Instruction

_LOWEST = 4096  # no buffer begins below
_HIGHEST = 1 << 47  # of user space


def _address_space(dtype: np.dtype) -> Array:
    """All of the process's memory as one array: element i is the one at address _LOWEST + i * its size.

    Only addresses that lie in a buffer may be used as indices; `GlobalMemory.check` sees to it.
    """

    class Everything:
        @property
        def __array_interface__(self) -> dict[str, object]:
            shape = ((_HIGHEST - _LOWEST) // dtype.itemsize,)
            return {"data": (_LOWEST, False), "shape": shape, "typestr": dtype.str, "version": 3}

    return np.asarray(Everything())


_SPACE = {size: _address_space(dtype) for size, dtype in UNSIGNED.items()}


@dataclass(frozen=True)
class Buffer:
    """Memory that a kernel may access: `size` bytes at `address`. Its owner keeps it alive."""

    address: int
    size: int
    name: str


class GlobalMemory:
    """Buffers, and who accessed them in one launch. Strong accesses (atomic, relaxed, volatile) race with weak ones."""

    def __init__(self, buffers: Sequence[Buffer], granule: int, races: bool) -> None:
        self.buffers = sorted((b for b in buffers if b.size), key=lambda b: b.address)
        self.granule = granule
        self._starts = [b.address for b in self.buffers]
        self._ends = [b.address + b.size for b in self.buffers]
        self.handover = Handover()
        self._shadows = [_GlobalShadow(b.size // granule + 2, self.handover) if races else None for b in self.buffers]

    def check(self, m: Machine, addresses: Array, size: int, instruction: Instruction, lanes: Lanes) -> None:
        """Bounds and alignment.

        Raises:
            Fault: an access leaves its buffer, or its address is no multiple of its size.
        """
        if (addresses & (size - 1)).any():
            lane = lanes[int(np.argmax((addresses & (size - 1)) != 0))]
            raise Fault(f"a misaligned access of {size} bytes; {m.where(instruction, lane)}")
        lowest = int(addresses.min())
        first = bisect_right(self._starts, lowest) - 1
        if first >= 0 and int(addresses.max()) + size <= self._ends[first]:
            return
        which = np.searchsorted(self._starts, addresses, "right") - 1
        outside = (which < 0) | (addresses + size > np.array([*self._ends, 0])[which])
        if outside.any():
            i = int(np.argmax(outside))
            near = self.buffers[which[i]] if which[i] >= 0 else None
            at = f"byte {addresses[i] - near.address} of {near.name}'s {near.size}" if near else hex(addresses[i])
            raise Fault(
                f"out of bounds: {size} bytes at {at}, and {int(outside.sum()) - 1} other lanes; "
                f"{m.where(instruction, lanes[i])}"
            )

    def load(
        self,
        m: Machine,
        addresses: Array,
        size: int,
        count: int,
        instruction: Instruction,
        lanes: Lanes,
        strong: bool = False,
    ) -> list[Array]:
        """`count` elements of `size` bytes each at `addresses`."""
        if m.observer is not None:
            m.observer.access("global", "load", instruction, addresses, size * count, lanes)
        self.check(m, addresses, size * count, instruction, lanes)
        for shadow, cells, who, _ in self._cells(m, addresses, size * count, lanes):
            shadow.on_read(m, cells, who, instruction, strong)
        at = (addresses - _LOWEST) // size
        return [_SPACE[size][at + i] for i in range(count)]

    def store(
        self,
        m: Machine,
        addresses: Array,
        size: int,
        values: Sequence[Array],
        instruction: Instruction,
        lanes: Lanes,
        strong: bool = False,
    ) -> None:
        """Write elements of `size` bytes; where lanes disagree about an address, the last one's value stays."""
        whole = size * len(values)
        if m.observer is not None:
            m.observer.access("global", "store", instruction, addresses, whole, lanes)
        self.check(m, addresses, whole, instruction, lanes)
        space, at = _SPACE[size], (addresses - _LOWEST) // size
        differs = np.zeros(len(addresses), bool)
        for i, value in enumerate(values):
            differs |= space[at + i] != value
        for shadow, cells, who, chosen in self._cells(m, addresses, whole, lanes):
            shadow.on_write(m, cells, who, instruction, differs[chosen][:, None], strong)
        for i, value in enumerate(values):
            space[at + i] = value
            if (lost := space[at + i] != value).any():
                lane = lanes[int(np.argmax(lost))]
                m.findings.add(
                    "race", instruction, f"lanes write different values to one address; {m.who(m.warp_of[lane])}"
                )

    def update(
        self, m: Machine, address: int, size: int, instruction: Instruction, lane: int, strong: bool = True
    ) -> tuple[Array, int]:
        """For an atomic access of one lane, which the caller performs: an array and the index of its element."""
        one, who = np.array([address]), np.array([lane])
        self.check(m, one, size, instruction, who)
        for shadow, cells, warp, _ in self._cells(m, one, size, who):
            shadow.on_read(m, cells, warp, instruction, strong)
            shadow.on_write(m, cells, warp, instruction, np.ones((1, 1), bool), strong)
        return _SPACE[size], (address - _LOWEST) // size

    def _cells(
        self, m: Machine, addresses: Array, size: int, lanes: Lanes
    ) -> Iterator[tuple[_GlobalShadow, Cells, Cells, NDArray[np.bool_] | slice]]:
        """For each buffer that is accessed: its shadow, cells [n, k], warps [n, 1], and which of the lanes."""
        if not self.buffers or self._shadows[0] is None or not len(addresses):
            return
        steps = np.arange(max(1, size // self.granule))
        first = bisect_right(self._starts, int(addresses.min())) - 1
        last = bisect_right(self._starts, int(addresses.max())) - 1
        which = None if first == last else np.searchsorted(self._starts, addresses, "right") - 1
        for i in range(first, last + 1):
            chosen: NDArray[np.bool_] | slice = slice(None)
            if which is not None:
                own = which == i
                if not own.any():
                    continue
                chosen = own
            shadow = self._shadows[i]
            assert shadow is not None
            # cells are numbered from the granule that holds the buffer's first byte
            start = self._starts[i] // self.granule
            cells = (addresses[chosen] // self.granule - start)[:, None] + steps
            yield shadow, cells, m.warp_of[lanes[chosen]][:, None], chosen


class _GlobalShadow:
    """Who accessed each cell of a buffer in this launch; time counts within a block only.

    Blocks of one launch are ordered by what atomics hand over, and by nothing else. Warps are numbered over the whole
    launch: block * warps + warp.
    """

    def __init__(self, cells: int, handover: Handover) -> None:
        self._handover = handover
        self.writer = np.full(cells, NOBODY, np.int32)
        self.written = np.zeros(cells, np.int32)
        self.reader = np.full(cells, NOBODY, np.int32)  # a warp, or SEVERAL of the last block
        self.read = np.zeros(cells, np.int32)
        self.reading_block = np.full(cells, NOBODY, np.int32)  # SEVERAL: of several blocks
        self.strong_write = np.zeros(cells, bool)
        self.strong_read = np.ones(cells, bool)

    def on_read(self, m: Machine, cells: Cells, local: Cells, instruction: Instruction, strong: bool) -> None:
        block = m.blocks[local // m.warps]
        warp = block * m.warps + local % m.warps
        writer = self.writer[cells]
        other = (writer >= 0) & (writer != warp)
        if strong and other.any():
            other &= ~self.strong_write[cells]
        if other.any():
            bad = self._unordered(m, other, writer, self.written[cells], local, block)
            if bad.any():
                self._report(m, instruction, "reads", "wrote", bad, warp, writer)
        reader, read_by = self.reader[cells], self.reading_block[cells]
        several = (reader != NOBODY) & (reader != warp) & (read_by == block)
        if several.any():
            known = np.where(reader == SEVERAL, m.clock.least[local], m.clock.known[local, reader % m.warps])
            several &= known <= self.read[cells]
        value = np.where(several, SEVERAL, warp)
        self.strong_read[cells] = (self.strong_read[cells] | (reader == NOBODY)) & strong
        self.reader[cells] = value
        self.read[cells] = m.clock.time[local // m.warps]
        self.reading_block[cells] = np.where((read_by == NOBODY) | (read_by == block), block, SEVERAL)
        # other warps, perhaps of other blocks, that read the same in this very instruction
        if (lost := self.reader[cells] != value).any():
            self.reader[cells[lost]] = SEVERAL
        if (lost := (self.reading_block[cells] != block) & (read_by != SEVERAL)).any():
            self.reading_block[cells[lost]] = SEVERAL

    def on_write(
        self,
        m: Machine,
        cells: Cells,
        local: Cells,
        instruction: Instruction,
        differs: NDArray[np.bool_],
        strong: bool,
    ) -> None:
        block = m.blocks[local // m.warps]
        warp = block * m.warps + local % m.warps
        writer = self.writer[cells]
        other = (writer >= 0) & (writer != warp) & differs
        if strong and other.any():
            other &= ~self.strong_write[cells]
        if other.any():
            bad = self._unordered(m, other, writer, self.written[cells], local, block)
            if bad.any():
                self._report(m, instruction, "writes", "wrote", bad, warp, writer)
        reader, read_by = self.reader[cells], self.reading_block[cells]
        other = (reader != NOBODY) & (reader != warp) | (read_by != NOBODY) & (read_by != block)
        if strong and other.any():
            other &= ~self.strong_read[cells]
        if other.any():
            known = np.where(reader == SEVERAL, m.clock.least[local], m.clock.known[local, reader % m.warps])
            bad = other & ((read_by != block) | (known <= self.read[cells]))
            if bad.any():
                self._report(m, instruction, "writes", "read", bad, warp, reader)
        self.writer[cells] = warp
        self.written[cells] = m.clock.time[local // m.warps]
        self.strong_write[cells] = strong
        self.reader[cells] = NOBODY
        self.reading_block[cells] = NOBODY

    def _unordered(
        self, m: Machine, asked: NDArray[np.bool_], other: Cells, when: Cells, local: Cells, block: Cells
    ) -> NDArray[np.bool_]:
        """Of the cells that are asked about, those where nothing orders what `other` did before what happens now."""
        unclear = asked & ((other // m.warps != block) | (m.clock.known[local, other % m.warps] <= when))
        return unclear & ~self._handover.ordered(m, unclear, other, when, local) if unclear.any() else unclear

    @staticmethod
    def _report(
        m: Machine, instruction: Instruction, does: str, did: str, bad: NDArray[np.bool_], warp: Cells, other: Cells
    ) -> None:
        mine, theirs = first_of(bad, warp, other)

        def who(number: int) -> str:
            return "several warps" if number == SEVERAL else f"warp {number % m.warps} of block {number // m.warps}"

        m.findings.add("race", instruction, f"{who(mine)} {does} what {who(theirs)} {did}, with nothing to order them")
