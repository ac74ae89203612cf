"""Shared memory of the resident blocks: bounds, alignment, what nobody has written, copies in flight, proxies, races.

Memory is divided into cells of the smallest access that a kernel makes. A cell is unwritten, written, or in flight:
the target of a `cp.async` that its thread has not waited for. Data of a copy arrives when it is waited for, as late as
a device may let it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..faults import Fault
from ..scalar_types import UNSIGNED, Array
from .races import SEVERAL, Cells, Shadow

if TYPE_CHECKING:
    from ..machine import Lanes, Machine
    from ..parser import Instruction

UNWRITTEN, WRITTEN, FLYING = 0, 1, 2
COPIED = -1  # instead of a step: by cp.async, which needs no fence.proxy.async


@dataclass
class Copy:
    """A `cp.async` of some lanes that has not arrived.

    Attributes:
        lanes, group: who issued it, and the number of the group that each commits it to.
        at: first byte of each in the machine's shared memory.
        data: elements [n, size / width] that will be there.
    """

    lanes: Lanes
    group: Lanes
    at: Cells
    data: Array


@dataclass
class Product:
    """A wgmma that has not been waited for.

    Attributes:
        lanes, group: first lane of each of its warpgroups, and the number of the group that each commits it to.
        cells: that it reads, [warpgroups, cells].
        shape: `m64n64k16`.
        result, fragments: registers of its accumulator, and of A.
    """

    lanes: Lanes
    group: Lanes
    cells: Cells
    shape: str
    result: frozenset[str]
    fragments: frozenset[str]


class SharedMemory:
    """Shared memory of all resident blocks, one after another."""

    def __init__(self, m: Machine, size: int) -> None:
        self.size = size
        self.granule = m.plan.shared_granule
        self.pitch = -(-max(size, 16) // 16) * 16  # bytes a block
        blocks = m.clock.time.size
        total = self.pitch * blocks
        self.bytes = np.frombuffer(np.random.default_rng(m.options.seed).bytes(total), np.uint8).copy()
        cells = total // self.granule
        self.state = np.full(cells, UNWRITTEN, np.uint8)
        self.step = np.zeros(cells, np.int64)  # of the last write by the generic proxy
        self.shadow = Shadow(cells)
        self.races = m.options.races
        self.copies: list[Copy] = []
        self.copy_group = np.zeros(m.size, np.int64)  # of each lane: the one that is open
        self.products: list[Product] = []
        self.product_group = np.zeros(m.size, np.int64)
        self.reading = np.zeros(cells, np.int32)  # how many wgmma in flight read a cell
        self.fences = ProxyFences(blocks, m.warps)

    # addresses

    def locate(self, m: Machine, addresses: Array, size: int, instruction: Instruction, lanes: Lanes) -> Cells:
        """Bytes in the memory of all blocks, after checks.

        Raises:
            Fault: out of bounds, or no multiple of `size`.
        """
        outside = (addresses < 0) | (addresses + size > self.size)
        if outside.any():
            i = int(np.argmax(outside))
            raise Fault(
                f"out of bounds: {size} bytes at {int(addresses[i])} of {self.size} of shared memory; "
                f"{m.where(instruction, lanes[i])}"
            )
        if (addresses & (size - 1)).any():
            i = int(np.argmax((addresses & (size - 1)) != 0))
            raise Fault(f"a misaligned access of {size} bytes of shared memory; {m.where(instruction, lanes[i])}")
        return addresses + m.block_of[lanes] * self.pitch

    def _cells(self, at: Cells, size: int) -> Cells:
        cells = (at // self.granule)[:, None]
        return cells if size <= self.granule else cells + np.arange(size // self.granule)

    # the generic proxy

    def load(
        self, m: Machine, addresses: Array, size: int, count: int, instruction: Instruction, lanes: Lanes
    ) -> list[Array]:
        at = self.locate(m, addresses, size * count, instruction, lanes)
        if m.observer is not None:
            m.observer.access("shared", "load", instruction, addresses, size * count, lanes)
        self.note_read(m, at, size * count, instruction, lanes)
        view, at = self.bytes.view(UNSIGNED[size]), at // size
        return [view[at + i] for i in range(count)]

    def store(
        self,
        m: Machine,
        addresses: Array,
        size: int,
        values: Sequence[Array],
        instruction: Instruction,
        lanes: Lanes,
        kind: str = "store",
    ) -> None:
        whole = size * len(values)
        at = self.locate(m, addresses, whole, instruction, lanes)
        if m.observer is not None:
            m.observer.access("shared", kind, instruction, addresses, whole, lanes)
        view, index = self.bytes.view(UNSIGNED[size]), at // size
        differs = np.zeros(len(at), bool)
        for i, value in enumerate(values):
            differs |= view[index + i] != value
        self.state[self.note_write(m, at, whole, instruction, lanes, differs)] = WRITTEN
        for i, value in enumerate(values):
            view[index + i] = value
            if (lost := view[index + i] != value).any():
                lane = lanes[int(np.argmax(lost))]
                text = f"lanes write different values to one address; {m.who(m.warp_of[lane])}"
                m.findings.add("race", instruction, text)

    def update(self, m: Machine, address: int, size: int, instruction: Instruction, lane: int) -> tuple[Array, int]:
        """For an atomic access of one lane, which the caller performs: an array and the index of its element."""
        who = np.array([lane])
        at = self.locate(m, np.array([address]), size, instruction, who)
        self._check_state(m, self._cells(at, size), instruction, who)
        return self.bytes.view(UNSIGNED[size]), int(at[0]) // size

    def note_read(self, m: Machine, at: Cells, size: int, instruction: Instruction, lanes: Lanes) -> Cells:
        """Checks of a read of `size` bytes at `at`; the cells [n, k]."""
        cells = self._cells(at, size)
        self._check_state(m, cells, instruction, lanes)
        if self.races:
            warp = m.warp_of[lanes][:, None]
            self.shadow.on_read(m, cells, warp, m.clock.time[warp // m.warps], instruction)
        return cells

    def _check_state(self, m: Machine, cells: Cells, instruction: Instruction, lanes: Lanes) -> None:
        bad = self.state[cells] != WRITTEN
        if not bad.any():
            return
        row = int(np.argmax(bad.any(1)))
        warp = m.who(m.warp_of[lanes[row]])
        if (self.state[cells[row]] == FLYING).any():
            m.findings.add("in flight", instruction, f"{warp} reads the target of a cp.async that is not waited for")
        else:
            m.findings.add("unwritten", instruction, f"{warp} reads shared memory that nobody has written")

    def note_write(
        self,
        m: Machine,
        at: Cells,
        size: int,
        instruction: Instruction,
        lanes: Lanes,
        differs: NDArray[np.bool_] | None = None,
    ) -> Cells:
        """Checks of a write of `size` bytes at `at`; the cells [n, k]."""
        cells = self._cells(at, size)
        if self.products and (self.reading[cells] > 0).any():
            text = f"{m.who(m.warp_of[lanes[0]])} writes shared memory that a wgmma in flight reads"
            m.findings.add("wgmma", instruction, text)
        if self.copies and (self.state[cells] == FLYING).any():
            text = f"{m.who(m.warp_of[lanes[0]])} writes the target of a cp.async that is not waited for"
            m.findings.add("in flight", instruction, text)
        if self.races:
            warp = m.warp_of[lanes][:, None]
            when = m.clock.time[warp // m.warps]
            self.shadow.on_write(m, cells, warp, when, instruction, None if differs is None else differs[:, None])
        self.step[cells] = m.step
        return cells

    # copies

    def begin_copy(
        self, m: Machine, addresses: Array, data: Array, size: int, instruction: Instruction, lanes: Lanes
    ) -> None:
        """`cp.async` of `size` bytes; data: elements [n, size / width]."""
        at = self.locate(m, addresses, size, instruction, lanes)
        if m.observer is not None:
            m.observer.access("shared", "copy", instruction, addresses, size, lanes)
        self.state[self.note_write(m, at, size, instruction, lanes)] = FLYING
        self.copies.append(Copy(lanes, self.copy_group[lanes], at, data))

    def commit_copies(self, lanes: Lanes) -> None:
        self.copy_group[lanes] += 1

    def await_copies(self, m: Machine, lanes: Lanes, pending: int, open_group: bool = False) -> None:
        """Wait until at most `pending` of the latest committed groups are in flight; with `open_group`, for all."""
        limit = np.full(m.size, -1, np.int64)  # the first group of each lane that may be in flight
        limit[lanes] = self.copy_group[lanes] + 1 if open_group else self.copy_group[lanes] - pending
        rest = []
        for copy in self.copies:
            done = copy.group < limit[copy.lanes]
            if done.any():
                self._arrive(m, copy.lanes[done], copy.at[done], copy.data[done])
            if not done.all():
                left = ~done
                rest.append(Copy(copy.lanes[left], copy.group[left], copy.at[left], copy.data[left]))
        self.copies = rest

    def _arrive(self, m: Machine, lanes: Lanes, at: Cells, data: Array) -> None:
        width = data.dtype.itemsize
        self.bytes.view(data.dtype)[(at // width)[:, None] + np.arange(data.shape[1])] = data
        cells = self._cells(at, width * data.shape[1])
        self.state[cells] = WRITTEN
        self.step[cells] = COPIED
        if self.races:  # a barrier after the wait, not one before it, shows it to others
            self.shadow.written[cells] = m.clock.time[m.block_of[lanes]][:, None]

    # the async proxy

    def begin_product(self, m: Machine, product: Product, instruction: Instruction) -> None:
        """A wgmma reads its cells from now until it is waited for."""
        self._check_state(m, product.cells, instruction, product.lanes)
        self.fences.check(m, product, self.shadow, self.step, instruction)
        if self.races:
            for warp in range(4):  # what a warp of the group may not read yet, none may
                who = (m.warp_of[product.lanes] + warp)[:, None]
                self.shadow.on_read(m, product.cells, who, m.clock.time[who // m.warps], instruction)
        np.add.at(self.reading, product.cells, 1)
        self.products.append(product)

    def commit_products(self, lanes: Lanes) -> None:
        self.product_group[lanes] += 1

    def await_products(self, m: Machine, lanes: Lanes, pending: int) -> None:
        """Wait until at most `pending` of the latest committed groups are in flight."""
        limit = np.full(m.size, -1, np.int64)
        limit[lanes] = self.product_group[lanes] - pending
        rest = []
        for product in self.products:
            done = product.group < limit[product.lanes]
            if done.any():
                cells = product.cells[done]
                np.subtract.at(self.reading, cells, 1)
                if self.races:
                    # the other warps of the group have read as well, and have not waited yet for all this one knows
                    self.shadow.reader[cells] = SEVERAL
                    self.shadow.read[cells] = m.clock.time[m.block_of[product.lanes[done]]][:, None]
            if not done.all():
                left = ~done
                lanes_left, group, cells = (x[left] for x in (product.lanes, product.group, product.cells))
                rest.append(replace(product, lanes=lanes_left, group=group, cells=cells))
        self.products = rest


class ProxyFences:
    """Which writes of the generic proxy a `fence.proxy.async` has shown to the async proxy (PTX ISA, "Proxies").

    A write is shown to a warp by a fence that comes after the write and before the warp's access: of the warp itself,
    of the writer before a barrier, or of anybody between two barriers.

    To the letter, data of a `cp.async` needs the fence as well: only bulk copies are made by the async proxy. Compilers
    do without: Triton 3.6 writes none, nor does CUTLASS (sm90_mma_multistage_gmma_ss_warpspecialized.hpp); so it is not
    asked for here.
    """

    def __init__(self, blocks: int, warps: int) -> None:
        self.step = np.full(blocks * warps, -1, np.int64)  # each warp's last fence
        self.time = np.full(blocks * warps, -1, np.int32)
        self.earlier = np.full(blocks * warps, -1, np.int64)  # its last one of a time before that
        self.latest = np.full(blocks, -1, np.int32)  # each block's last time with a fence, and the one before
        self.before = np.full(blocks, -1, np.int32)

    def fence(self, m: Machine, lanes: Lanes) -> None:
        warps = np.unique(m.warp_of[lanes])
        blocks = np.unique(warps // m.warps)
        now = m.clock.time[warps // m.warps]
        self.earlier[warps] = np.where(self.time[warps] < now, self.step[warps], self.earlier[warps])
        self.step[warps] = m.step
        self.time[warps] = now
        newer = self.latest[blocks] < m.clock.time[blocks]
        self.before[blocks] = np.where(newer, self.latest[blocks], self.before[blocks])
        self.latest[blocks] = m.clock.time[blocks]

    def check(
        self, m: Machine, product: Product, shadow: Shadow, steps: NDArray[np.int64], instruction: Instruction
    ) -> None:
        cells, block = product.cells, m.block_of[product.lanes][:, None]
        writer, written, step, now = shadow.writer[cells], shadow.written[cells], steps[cells], m.clock.time[block]
        fenced = (self.latest[block] < now) & (self.latest[block] > written)
        fenced |= (self.latest[block] == now) & (self.before[block] > written)
        # a writer that is ahead may have come to its next fence, which nothing orders before this product
        fenced |= np.where(self.time[writer] < now, self.step[writer], self.earlier[writer]) > step
        every = np.ones(cells.shape, bool)
        for i in range(4):
            warp = (m.warp_of[product.lanes] + i)[:, None]
            every &= (self.step[warp] > step) & ((warp == writer) | (self.time[warp] > written))
        bad = (writer >= 0) & (step != COPIED) & ~fenced & ~every
        if bad.any():
            row = int(np.argmax(bad.any(1)))
            text = (
                f"the wgmma of {m.who(m.warp_of[product.lanes[row]])} reads what no fence.proxy.async has shown to it"
            )
            m.findings.add("proxy", instruction, text)
