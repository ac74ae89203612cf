"""The state of the blocks that are resident together: every thread is a lane of NumPy arrays.

Lanes are numbered block by block. An instruction is run for all lanes or for those of a mask. Values of registers are
never changed in place, so that several registers may share an array.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .faults import Fault, Findings
from .memory.clock import Clock
from .memory.global_memory import GlobalMemory
from .memory.shared_memory import SharedMemory
from .options import Options
from .scalar_types import GARBAGE, Array

if TYPE_CHECKING:
    from .launch import Plan
    from .parser import Instruction

Mask = NDArray[np.bool_]
Lanes = NDArray[np.int64]
WARP = 32
WARPGROUP = 4  # warps


class Observer(Protocol):
    """What a launch tells of itself while it runs; `counters.Counters` is one."""

    def issue(self, instruction: Instruction, warps: int, taking: int) -> None:
        """An instruction is issued by `warps`, and `taking` of them have a lane whose predicate holds."""

    def access(
        self, space: str, kind: str, instruction: Instruction, addresses: Array, size: int, lanes: Lanes
    ) -> None:
        """`lanes` access `size` bytes each: space "global" or "shared", kind "load", "store", "copy" or "matrix"."""


class Machine:
    """Blocks `blocks` of a launch, all their threads at once."""

    def __init__(
        self,
        plan: Plan,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        blocks: Lanes,
        memory: GlobalMemory,
        shared_bytes: int,
        parameters: bytes,
        options: Options,
        findings: Findings,
        observer: Observer | None,
    ) -> None:
        self.plan = plan
        self.options = options
        self.findings = findings
        self.observer = observer
        self.memory = memory
        self.parameters = parameters
        self.blocks = blocks
        self.threads = block[0] * block[1] * block[2]
        self.warps = -(-self.threads // WARP)
        self.size = len(blocks) * self.threads
        self.shape = (self.size,)
        self.every: Lanes = np.arange(self.size)
        self.block_of: Lanes = self.every // self.threads  # within the machine
        thread = self.every % self.threads
        self.warp_of: Lanes = self.block_of * self.warps + thread // WARP  # within the machine
        self.step = 0  # of instructions issued, to order what one warp does
        self.clock = Clock(len(blocks), self.warps)
        self.shared = SharedMemory(self, shared_bytes)
        self.registers: list[Array] = self._garbage()
        self.specials = _specials(grid, block, blocks[self.block_of], thread)
        self.wrapped: dict[str, Mask] = {}  # where a register comes from an int32 result that wrapped (wraps.py)
        # of each register that a wgmma takes: which warps have accessed it since their last wgmma.fence; and at first
        # all, since a fence comes before the first product
        self.unfenced: dict[str, Mask] = {
            name: np.ones(len(blocks) * self.warps, bool) for name in plan.product_registers
        }

    def _garbage(self) -> list[Array]:
        by_kind: dict[np.dtype, Array] = {}
        for kind in set(self.plan.kinds):
            if kind.kind == "b":
                by_kind[kind] = np.ones(self.size, bool)
            else:
                bits = np.array([GARBAGE], np.uint64).view(kind)[0]
                by_kind[kind] = np.full(self.size, bits)
        return [by_kind[kind] for kind in self.plan.kinds]

    def lanes(self, active: Mask | None) -> Lanes:
        return self.every if active is None else np.flatnonzero(active)

    def taken(self, value: Array, lanes: Lanes) -> Array:
        """A value that may be one for all, of some lanes."""
        if value.ndim == 0:
            return np.full(len(lanes), value)
        return value if lanes is self.every else value[lanes]

    def whole_warps(self, active: Mask | None, instruction: Instruction) -> Lanes:
        """The lanes of a mask that splits no warp, for instructions that a warp executes together.

        Raises:
            Fault: a warp has diverged, or the block is no multiple of 32 threads.
        """
        if self.threads % WARP:
            raise Fault(f"{self.threads} threads are no whole warps; PTX line {instruction.line}: {instruction.text}")
        if active is None:
            return self.every
        warps = active.reshape(-1, WARP)
        split = warps.any(1) != warps.all(1)
        if split.any():
            lane = int(np.argmax(split)) * WARP
            raise Fault(f"a diverged warp; {self.where(instruction, lane)}")
        return np.flatnonzero(active)

    def who(self, warp: int) -> str:
        return f"warp {warp % self.warps} of block {self.blocks[warp // self.warps]}"

    def where(self, instruction: Instruction, lane: int) -> str:
        """For messages: thread, line and text."""
        block, thread = self.blocks[self.block_of[lane]], lane % self.threads
        source = f"{instruction.source}, " if instruction.source else ""
        return f"block {block} thread {thread}, {source}PTX line {instruction.line}: {instruction.text}"


def _specials(
    grid: tuple[int, int, int], block: tuple[int, int, int], number: Lanes, thread: Lanes
) -> dict[str, Array]:
    """Special registers (PTX ISA, "Special Registers"); x runs fastest."""

    def coordinates(flat: Lanes, sizes: tuple[int, int, int]) -> dict[str, Array]:
        x, y, z = flat % sizes[0], flat // sizes[0] % sizes[1], flat // (sizes[0] * sizes[1])
        return {"x": x.astype(np.uint32), "y": y.astype(np.uint32), "z": z.astype(np.uint32)}

    found: dict[str, Array] = {}
    for name, of in (("tid", coordinates(thread, block)), ("ctaid", coordinates(number, grid))):
        found |= {f"%{name}.{axis}": value for axis, value in of.items()}
    for name, sizes in (("ntid", block), ("nctaid", grid)):
        found |= {f"%{name}.{axis}": np.asarray(np.uint32(n)) for axis, n in zip("xyz", sizes, strict=True)}
    lane = (thread % WARP).astype(np.uint32)
    found["%laneid"] = lane
    found["%warpid"] = (thread // WARP).astype(np.uint32)
    one = np.uint32(1)
    found["%lanemask_eq"] = one << lane
    found["%lanemask_lt"] = (one << lane) - one
    found["%lanemask_le"] = found["%lanemask_lt"] | found["%lanemask_eq"]
    found["%lanemask_ge"] = ~found["%lanemask_lt"]
    found["%lanemask_gt"] = ~found["%lanemask_le"]
    return found
