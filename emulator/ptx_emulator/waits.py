"""Loads that are waited for at once: how often a warp stands still for data that it has only just asked for.

An assembler moves loads within a basic block, and not across barriers and branches. Within a block all loads can be in
flight together, unless an address comes from a loaded value: so a block costs as many waits as the longest chain of
loads whose values it uses. What an earlier block has loaded costs one more where it is used, and so does a
`cp.async.wait_group`, unless something lies between that takes as long: a product of matrices or `HIDING`
instructions.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from .parser import Instruction, Kernel
from .plan import sources, targets

HIDING = 32  # instructions of a warp

_ENDS = frozenset(("bra", "ret", "exit", "bar", "barrier"))


@dataclass
class _Flight:
    """A load that nobody has needed yet: in which block, as which of a chain, after how many products, instructions."""

    block: int
    depth: int
    products: int
    instructions: int


@dataclass
class Waits:
    """Follows the instructions of one launch, whose warps are taken to run alike."""

    kernel: Kernel
    _begins: set[int] = field(default_factory=set)  # ids of instructions that labels stand at
    _flights: dict[str, _Flight] = field(default_factory=dict)
    _depths: dict[str, int] = field(default_factory=dict)  # of values of this block: loads behind each
    _open: list[_Flight] = field(default_factory=list)  # copies that no group has yet
    _groups: list[list[_Flight]] = field(default_factory=list)
    _block: int = 0
    _deepest: int = 0
    _warps: int = 0
    _products: int = 0
    _instructions: int = 0
    _known: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        code = self.kernel.code
        self._begins = {id(code[i]) for i in self.kernel.labels.values() if i < len(code)}

    def issue(self, ins: Instruction, warps: int, taking: int) -> int:
        """An instruction that so many warps issue and some take; the waits of the block that it ends, of all warps."""
        if ins is self.kernel.code[0]:  # further blocks of the launch begin
            self._flights.clear()
            self._groups.clear()
        ended = self._end() if id(ins) in self._begins else 0
        if not taking and ins.opcode not in _ENDS:
            return ended
        self._warps = max(self._warps, warps)
        self._instructions += 1
        written, read = self._registers(ins)
        depth = max(map(self._needed, read), default=0)
        self._deepest = max(self._deepest, depth)
        if ins.opcode == "ld" and not {"param", "shared", "shared::cta"}.intersection(ins.modifiers):
            for name in written:
                self._flights[name] = self._flight(depth)
        elif ins.opcode == "cp":
            ended += self._copy(ins, depth)
        else:
            for name in written:
                self._flights.pop(name, None)
                self._depths[name] = depth
        if ins.opcode == "mma" or "mma_async" in ins.modifiers:
            self._products += 1
        return ended + (self._end() if ins.opcode in _ENDS else 0)

    def _flight(self, depth: int) -> _Flight:
        return _Flight(self._block, depth + 1, self._products, self._instructions)

    def _needed(self, name: str) -> int:
        """How many loads a value waits for within this block."""
        flight = self._flights.pop(name, None)
        if flight is not None:
            self._depths[name] = self._waited(flight)
        return self._depths.get(name, 0)

    def _waited(self, flight: _Flight) -> int:
        if self._products > flight.products:
            return 0
        if flight.block == self._block:
            return flight.depth
        return 0 if self._instructions - flight.instructions > HIDING else 1

    def _copy(self, ins: Instruction, depth: int) -> int:
        if "commit_group" in ins.modifiers:
            self._groups.append(self._open)
            self._open = []
            return 0
        if "wait_group" in ins.modifiers:
            kept = int(str(ins.operands[0]), 0)
            arrived = [self._groups.pop(0) for _ in range(len(self._groups) - kept)]
        elif "wait_all" in ins.modifiers:
            arrived, self._groups, self._open = [*self._groups, self._open], [], []
        else:
            self._open.append(self._flight(depth))
            return 0
        self._deepest = max([self._deepest, *(self._waited(f) for group in arrived for f in group)])
        return self._end()

    def _end(self) -> int:
        """A basic block ends, for an assembler that moves loads."""
        waits = self._deepest * self._warps
        self._block += 1
        self._deepest = self._warps = 0
        self._depths.clear()
        return waits

    def _registers(self, ins: Instruction) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """(set, read) by an instruction."""
        if id(ins) not in self._known:
            known = self.kernel.registers
            self._known[id(ins)] = (
                tuple(n for n in targets(ins) if n in known),
                tuple(dict.fromkeys(n for n in sources(ins) if n in known)),
            )
        return self._known[id(ins)]
