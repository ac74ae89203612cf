"""Rules of how kernels load: what of a loop's instructions, and of what a launch moves, breaks them.

Of the assembled kernel, for each of its loops (`read`):

* `narrow copies`: a copy to shared memory (LDGSTS) of fewer than 16 bytes a lane. Four of 4 bytes take four times the
  instructions and requests of one of 16, past the first-level cache goes only the one of 16, and where the compiler
  chooses smaller ones it could not prove that what is masked, or how it is aligned, allows more.
* `drained copies`: a wait after which no copy is under way (DEPBAR.LE 0), in a loop that multiplies. At that moment
  memory is asked for nothing. With two buffers there is such a wait a turn, and the product of a turn has to take as
  long as memory does; with three none.
* `one buffer`: a wait for copies that were asked for with no product of the loop between, so that nothing runs while
  they are under way. It is the mark of a single buffer: its copies can begin only when the product has read it.
  Each wait is followed back over as many groups (LDGDEPBAR) as it lets stay under way, over the loop's end too.
* `waited products`: a wait after which no product is under way (WARPGROUP.DEPBAR 0), in a loop of `wgmma`s.
* `waited loads`: a load into registers (LDG) whose scoreboard is waited for at once.

Between a load and its wait lies something if it is a matrix product or `FAR` instructions that are no loads, as the
emulator counts waits (`emulator/ptx_emulator/waits.py`): another warp's work hides no more of it in a program that has
all warps wait for the same. The drain behind a loop, its copies before the first turn and loops that only wait for a
barrier are none of this; of a loop with loops in it, only what lies in none of them. What tensor cores of sm_100 do
(UTC*MMA) is waited for by barriers in memory, which no rule follows.

Of counts (`count`): `sectors` of global memory above 1.25 times the ideal, `wavefronts` of shared memory above 1.5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import sass

if TYPE_CHECKING:
    from count_tables import CountRow

FAR = 32
WIDE = 16  # bytes a lane
COMPILED = ("narrow copies", "drained copies", "one buffer", "waited products", "waited loads")
MOST = {"sectors": 1.25, "wavefronts": 1.5}  # times the ideal
DTYPES = ("bf16", "fp16", "fp32")


def dtype_of(shown: str) -> str:
    """The element type that a case's shape or a call names; "" for none."""
    return next((word for word in re.split(r"[^a-z0-9]+", shown) if word in DTYPES), "")


def representatives(cases: Sequence[Any]) -> list[Any]:
    """The first case of each kernel, element type and shipped configuration: blocks and options. float16 is compiled as
    bfloat16 is, and left out."""
    found: dict[tuple[str, ...], Any] = {}
    for case in cases:
        blocks = {k: v for k, v in case.constants.items() if k.startswith("BLOCK_")}
        if (dtype := dtype_of(case.shape)) != "fp16":
            found.setdefault((case.name, dtype, str(blocks), str(case.options)), case)
    return list(found.values())


def read(listing: str) -> dict[str, int]:
    """How often each rule of an assembled kernel is broken; without those that are not."""
    found = dict.fromkeys(COMPILED, 0)
    for loop in sass.loops(listing):
        own = [x for x, mine in zip(loop.body, loop.own, strict=True) if mine]
        found["narrow copies"] += sum(x.name == "LDGSTS" and x.bytes < WIDE for x in own)
        found["waited loads"] += sum(1 for _ in _waited_loads(loop))
        if any(x.matrix for x in own):
            found["waited products"] += sum(x.opcode == "WARPGROUP.DEPBAR.LE" and _left(x) == 0 for x in own)
        if loop.innermost:
            found["drained copies"] += (
                sum(_left(wait) == 0 for _, wait in _copy_waits(loop)) if _multiplies(loop) else 0
            )
            found["one buffer"] += sum(_single(loop, i, wait) for i, wait in _copy_waits(loop))
    return {rule: times for rule, times in found.items() if times}


def count(row: CountRow) -> dict[str, float]:
    """Of what a launch moves how many times the ideal it is, to the next hundredth, where that is too much."""
    found = {}
    for name, most in MOST.items():
        moved, ideal = getattr(row, name), getattr(row, f"ideal_{name}")
        if moved > most * ideal:
            found[name] = -(-100 * moved // ideal) / 100 if ideal else float(moved)
    return found


def _left(wait: sass.Instruction) -> int:
    """How many groups may be under way behind a wait."""
    return int(wait.text.rsplit(",", 1)[1].split()[0], 16)


def _multiplies(loop: sass.Loop) -> bool:
    return any(x.matrix for x in loop.body) or sum(x.scalar for x in loop.body) >= FAR


def _copy_waits(loop: sass.Loop) -> Iterator[tuple[int, sass.Instruction]]:
    """Waits for copies that the loop asks for, and where they stand."""
    boards = {f"SB{x.sets}" for x in loop.body if x.name == "LDGDEPBAR"}
    for i, x in enumerate(loop.body):
        if x.opcode == "DEPBAR.LE" and x.text.split("DEPBAR.LE", 1)[1].split(",")[0].strip() in boards:
            yield i, x


def _single(loop: sass.Loop, place: int, wait: sass.Instruction) -> bool:
    """Whether between the youngest copies that a wait is for and the wait nothing is done."""
    if any(x.name.startswith("UTC") for x in loop.body):  # still runs while what stands behind it does
        return False
    passed = _left(wait) + 1
    groups = sum(x.name == "LDGDEPBAR" for x in loop.body)
    if passed > groups:  # those of an earlier turn: all of a turn lies between
        return False
    between: list[sass.Instruction] = []
    for back in range(1, len(loop.body) + 1):
        x = loop.body[place - back]
        passed -= x.name == "LDGDEPBAR"
        if not passed:
            break
        between.append(x)
    if any(x.matrix for x in loop.body):
        return not any(x.matrix for x in between)
    return _near(between)


def _waited_loads(loop: sass.Loop) -> Iterator[sass.Instruction]:
    """Loads of the loop's own that are waited for at once, in the same turn or the next."""
    size = len(loop.body)
    for place, (load, mine) in enumerate(zip(loop.body, loop.own, strict=True)):
        if not mine or load.name != "LDG" or load.sets == sass.NONE:
            continue
        between: list[sass.Instruction] = []
        for step in range(1, size + 1):
            x = loop.body[(place + step) % size]
            if x.waits >> load.sets & 1:
                break
            between.append(x)
        if len(between) < size and _near(between):
            yield load


def _near(between: Sequence[sass.Instruction]) -> bool:
    """Whether what lies between a load and its wait takes no time to speak of."""
    other = [x for x in between if x.name not in ("LDG", "LDGSTS", "LDGDEPBAR")]
    return len(other) < FAR and not any(x.matrix for x in other)
