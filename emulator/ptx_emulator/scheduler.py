"""Runs the warps of a machine: which of them next, where they diverge and meet again, barriers.

Threads at the same instruction that are scheduled alike form a group. The group with the lowest instruction runs, and
runs until it branches or reaches another one, so that those that diverged meet again as soon as they can. Which warps
are scheduled alike is the schedule's: all of them, or each one (each warpgroup, where there is a wgmma) for itself.
Lanes that reach an instruction of their whole warp before the others do wait for them there (PTX ISA, "shfl.sync").
"""

from __future__ import annotations

import numpy as np

from .faults import Fault
from .machine import WARP, WARPGROUP, Machine, Mask
from .plan import Control, Step

Key = tuple[int, int]  # rank in the schedule, step

_SPINS = 8  # backward branches of a group that may wait for others, before those get their turn
_LONGEST_SLICE = 40  # of a random schedule, in instructions


class Scheduler:
    """Runs one machine to its end."""

    def __init__(self, m: Machine) -> None:
        self.m = m
        self.steps = m.plan.steps
        self.groups: dict[Key, Mask] = {}
        self.early: dict[Key, Mask] = {}  # lanes that wait for the rest of their warps
        self.alive = np.ones(m.size, bool)
        self.waiting: dict[int, _Barrier] = {}
        self._deferred: set[Key] = set()
        self._spins = 0
        self._random = np.random.default_rng(m.options.seed)
        self.rank = self._ranks()
        for rank in np.unique(self.rank):
            self.groups[int(rank), 0] = self.rank == rank

    def _ranks(self) -> np.ndarray:
        m = self.m
        unit = WARP * WARPGROUP if m.plan.product_registers else WARP
        number = m.every % m.threads // unit
        units = -(-m.threads // unit)
        match m.options.schedule:
            case "lockstep":
                return np.zeros(m.size, np.int64)
            case "forward":
                return number
            case "reverse":
                return units - 1 - number
        order = self._random.permuted(np.tile(np.arange(units), (len(m.blocks), 1)), axis=1)
        return order[m.block_of, number]

    def run(self) -> None:
        """Until all threads have ended.

        Raises:
            Fault: a barrier that not all threads reach, or what an instruction raises.
        """
        while self.groups:
            key = self._choose()
            self._run_group(key, self.groups.pop(key))
            if not self.groups and self.early:
                (_, pc), mask = next(iter(self.early.items()))
                self.m.whole_warps(mask, self.steps[pc].instruction)  # a fault: the others do not come
            if not self.groups and self.waiting:
                places = {self.steps[pc].instruction.line for b in self.waiting.values() for pc in b.places()}
                lines = ", ".join(map(str, sorted(places)))
                raise Fault(f"a barrier that not all threads of a block reach; waiting at PTX line {lines}")

    def _choose(self) -> Key:
        ready = self.groups.keys() - self._deferred or self.groups.keys()
        self._deferred = set()
        if self.m.options.schedule == "random":
            keys = sorted(ready)
            return keys[int(self._random.integers(len(keys)))]
        return min(ready)

    def _run_group(self, key: Key, mask: Mask) -> None:
        m = self.m
        rank, pc = key
        active: Mask | None = None if mask.all() else mask
        meets = min((step for r, step in self.groups if r == rank and step > pc), default=len(self.steps))
        random = m.options.schedule == "random"
        left = int(self._random.integers(1, _LONGEST_SLICE)) if random else m.options.steps
        while True:
            if pc >= meets or left <= 0:
                self._join((rank, pc), mask)
                return
            left -= 1
            step = self.steps[pc]
            m.step += 1
            if m.step > m.options.steps:
                raise Fault(f"no end after {m.options.steps} instructions; at PTX line {step.instruction.line}")
            taken, some = mask, active
            if step.guard >= 0:
                predicate = m.registers[step.guard]
                if step.negated:
                    predicate = ~predicate
                taken = mask & predicate
                if active is not None or not predicate.all():
                    some = taken
            if m.observer is not None:
                m.observer.issue(step.instruction, self._warps(active, mask), self._warps(some, taken))
            match step.control:
                case Control.RUN:
                    if step.together and active is not None and step.guard < 0:
                        mask = self._meet((rank, pc), mask)
                        if not mask.any():
                            return
                        active = some = mask
                    if some is None or some.any():
                        if m.shared.products:
                            self._check_flying(step, some)
                        step.run(m, some)
                    pc += 1
                case Control.BRANCH:
                    if taken.any():
                        self._branch(rank, pc, step, taken, mask)
                        return
                    pc += 1
                case Control.EXIT:
                    self.alive &= ~taken
                    self._release()
                    mask = mask & ~taken
                    if not mask.any():
                        return
                    active = mask
                    pc += 1
                case Control.BARRIER:
                    self._wait(step, pc, taken)
                    mask = mask & ~taken
                    if mask.any():
                        self._join((rank, pc + 1), mask)
                    return
                case Control.ARRIVE:
                    self._barrier(step).arrive(taken)
                    self._release()
                    pc += 1

    def _warps(self, active: Mask | None, mask: Mask) -> int:
        m = self.m
        return len(m.blocks) * m.warps if active is None else len(np.unique(m.warp_of[mask]))

    def _branch(self, rank: int, pc: int, step: Step, taken: Mask, mask: Mask) -> None:
        self._join((rank, step.target), taken)
        rest = mask & ~taken
        if rest.any():
            self._join((rank, pc + 1), rest)
        if self.m.plan.spins and step.target <= pc:
            self._spins += 1
            if self._spins % _SPINS == 0:
                self._deferred = {(rank, step.target)}

    def _meet(self, key: Key, mask: Mask) -> Mask:
        """The lanes at an instruction of whole warps that have met there; the others wait."""
        if self.m.threads % WARP:
            return mask  # which is a fault of its own
        mask = mask | self.early.pop(key, np.False_)
        warps = mask.reshape(-1, WARP)
        split = np.repeat(warps.any(1) & ~warps.all(1), WARP)
        if split.any():
            self.early[key] = mask & split
        return mask & ~split

    def _join(self, key: Key, mask: Mask) -> None:
        self.groups[key] = self.groups[key] | mask if key in self.groups else mask

    def _check_flying(self, step: Step, active: Mask | None) -> None:
        """Registers of a wgmma that is not waited for may be used by a further wgmma only, which checks them itself."""
        if step.instruction.opcode == "wgmma":
            return
        group = WARP * WARPGROUP
        for product in self.m.shared.products:
            used = step.registers & (product.result | product.fragments)
            if used and (active is None or active.reshape(-1, group)[product.lanes // group].any()):
                warp = self.m.who(int(self.m.warp_of[product.lanes[0]]))
                text = f"{warp} uses {', '.join(sorted(used))} of a wgmma that is not waited for"
                self.m.findings.add("wgmma", step.instruction, text)

    # barriers

    def _barrier(self, step: Step) -> _Barrier:
        number, count = step.barrier
        if number not in self.waiting:
            self.waiting[number] = _Barrier(self.m, count)
        return self.waiting[number]

    def _wait(self, step: Step, pc: int, taken: Mask) -> None:
        self._barrier(step).wait(taken, pc)
        self._release()

    def _release(self) -> None:
        for number, barrier in list(self.waiting.items()):
            blocks = barrier.complete(self.alive)
            if not blocks.any():
                continue
            released = barrier.release(blocks, self.alive)
            for rank, pc in np.unique(np.stack([self.rank, barrier.place])[:, released], axis=1).T:
                go = released & (self.rank == rank) & (barrier.place == pc)
                self._join((int(rank), int(pc) + 1), go)
            if not barrier.arrived.any():
                del self.waiting[number]


class _Barrier:
    """One numbered barrier of all resident blocks: who has arrived, who waits, and where."""

    def __init__(self, m: Machine, count: int) -> None:
        self.m = m
        self.count = count
        self.arrived = np.zeros(m.size, bool)
        self.waits = np.zeros(m.size, bool)
        self.place = np.zeros(m.size, np.int64)

    def arrive(self, lanes: Mask) -> None:
        self.arrived = self.arrived | lanes

    def wait(self, lanes: Mask, pc: int) -> None:
        self.arrive(lanes)
        self.waits = self.waits | lanes
        self.place[lanes] = pc

    def places(self) -> set[int]:
        return {int(pc) for pc in self.place[self.waits]}

    def complete(self, alive: Mask) -> Mask:
        """The blocks whose threads have all arrived, or ended."""
        arrived = self.arrived.reshape(-1, self.m.threads)
        if self.count:
            return arrived.sum(1) >= self.count
        return np.logical_and((arrived | ~alive.reshape(arrived.shape)).all(1), arrived.any(1))

    def release(self, blocks: Mask, alive: Mask) -> Mask:
        """Tell the clock; the lanes that go on.

        Raises:
            Fault: the lanes of a warp wait at different barriers.
        """
        m = self.m
        lanes = np.repeat(blocks, m.threads)
        if m.threads % WARP == 0:
            waits, place = (x.reshape(-1, WARP) for x in (self.waits & lanes, self.place))
            low = np.where(waits, place, np.iinfo(np.int64).max).min(1)
            high = np.where(waits, place, -1).max(1)
            split = (high >= 0) & (low != high)
            if split.any():
                warp = int(np.argmax(split))
                line = m.plan.steps[int(low[warp])].instruction.line
                raise Fault(f"{m.who(warp)} is divided between barriers, one at PTX line {line}")
        part = np.zeros(len(blocks) * m.warps, bool)
        part[m.warp_of[(self.arrived | ~alive) & lanes]] = True
        whole = part.reshape(-1, m.warps).all(1)
        m.clock.barrier_of_all(blocks & whole)
        for block in np.flatnonzero(blocks & ~whole):
            m.clock.barrier(int(block), part.reshape(-1, m.warps)[block])
        released = self.waits & lanes
        self.arrived = self.arrived & ~lanes
        self.waits = self.waits & ~lanes
        return released
