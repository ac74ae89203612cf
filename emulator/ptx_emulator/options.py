"""How a launch is emulated: the order of warps, what findings do, and which of the permitted roundings are taken."""

from __future__ import annotations

from dataclasses import dataclass, field

SCHEDULES = ("lockstep", "forward", "reverse", "random")
ACCUMULATIONS = ("exact", "truncating")
FUSIONS = ("written", "never", "always")


@dataclass(frozen=True)
class Numerics:
    """Which of the results that the PTX ISA permits an inexact instruction gives.

    Attributes:
        accumulation: of tensor cores. "exact": products and sums in float64, rounded once. "truncating": as published
            measurements of tensor cores say (Fasi, Higham, Mikaitis and Pranesh, "Numerical behavior of NVIDIA tensor
            cores", 2021): addends of a block are aligned to the largest and cut, and so is the sum.
        fusion: of products and sums in the vector units. "written": as the PTX says. "always": as well where a `mul`
            and an `add` without a rounding modifier may be contracted. "never": `fma` rounds twice, as a compiler
            without contraction would have it.
        approximate: -1, 0 or 1: approximate functions at the lower edge of their documented error, nearest, at the
            upper edge.
    """

    accumulation: str = "exact"
    fusion: str = "written"
    approximate: int = 0

    def __post_init__(self) -> None:
        _expect("accumulation", self.accumulation, ACCUMULATIONS)
        _expect("fusion", self.fusion, FUSIONS)
        _expect("approximate", self.approximate, (-1, 0, 1))


@dataclass(frozen=True)
class Options:
    """How a launch is emulated.

    Attributes:
        schedule: "lockstep": all warps an instruction at a time; "forward", "reverse": the lowest or highest warp as
            far as it goes; "random": by `seed`, warps are switched after any instruction.
        seed: of a random schedule and of what memory holds that nobody has written.
        findings: "raise" at the end of a launch, or "collect" into the report.
        races: look for races, which is about half of the time a launch takes.
        wraps: look for int32 products and sums that wrap and become an address.
        numerics: which permitted roundings are taken.
        lanes: how many threads at most are run at once; whole blocks, one at least.
        steps: after how many instructions of a machine its kernel is taken to have no end.
    """

    schedule: str = "lockstep"
    seed: int = 0
    findings: str = "raise"
    races: bool = True
    wraps: bool = False
    numerics: Numerics = field(default_factory=Numerics)
    lanes: int = 8192
    steps: int = 5_000_000

    def __post_init__(self) -> None:
        _expect("schedule", self.schedule, SCHEDULES)
        _expect("findings", self.findings, ("raise", "collect"))


def _expect(name: str, given: object, known: tuple[object, ...]) -> None:
    if given not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, got {given!r}")
