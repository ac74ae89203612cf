"""A kernel translated: for each instruction what it does to a machine, and what the scheduler must know of it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from . import instructions  # noqa: F401 (fills the table of opcodes)
from .contraction import contracted
from .faults import UnknownInstructionError
from .opcodes import kind_of, translate
from .operands import Operands, Run
from .options import Numerics
from .parser import Address, Instruction, Kernel
from .scalar_types import DTYPES
from .wraps import checking
from .wraps import watched as watched_addresses

if TYPE_CHECKING:
    from .machine import Machine, Mask

_WITHOUT_TARGET = ("st", "red", "cp", "bar", "barrier", "bra", "ret", "exit", "fence", "membar", "wgmma", "stmatrix")


class Control(enum.Enum):
    """What the scheduler does with an instruction."""

    RUN = enum.auto()
    BRANCH = enum.auto()
    EXIT = enum.auto()
    BARRIER = enum.auto()
    ARRIVE = enum.auto()


@dataclass(frozen=True)
class Step:
    """One instruction.

    Attributes:
        instruction: as parsed.
        control: what it is to the scheduler.
        run: what it does; nothing for control.
        guard: slot of its predicate, or -1.
        negated: whether the predicate is.
        target: of a branch: index of a step.
        barrier: number of the barrier, and threads that take part (0: all).
        registers: names that it reads or writes.
        together: whether the lanes of a warp execute it together, and wait for each other (`.sync`).
    """

    instruction: Instruction
    control: Control
    run: Run
    guard: int
    negated: bool
    target: int
    barrier: tuple[int, int]
    registers: frozenset[str]
    together: bool


@dataclass
class Plan:
    """A kernel, ready to run.

    Attributes:
        kernel: what it was made of.
        steps: in the order of the kernel's code.
        kinds: dtype of each register.
        shared_granule, global_granule: bytes of the smallest access, 4 at most.
        product_registers: names of accumulators of a wgmma, and of fragments of A.
        spins: whether a block may wait for what another one writes.
    """

    kernel: Kernel
    steps: list[Step]
    kinds: list[np.dtype]
    shared_granule: int
    global_granule: int
    product_registers: frozenset[str]
    spins: bool


_PLANS: WeakKeyDictionary[Kernel, dict[tuple[Numerics, bool], Plan]] = WeakKeyDictionary()


def plan_of(kernel: Kernel, numerics: Numerics, wraps: bool = False) -> Plan:
    """The plan of a kernel, made once for each choice of numerics; with `wraps`, one that looks for wrapped addresses.

    Raises:
        UnknownInstructionError: the kernel has an instruction that the emulator does not know.
    """
    plans = _PLANS.setdefault(kernel, {})
    if (numerics, wraps) not in plans:
        plans[numerics, wraps] = _make(kernel, numerics, wraps)
    return plans[numerics, wraps]


def _make(kernel: Kernel, numerics: Numerics, wraps: bool) -> Plan:
    operands = Operands(kernel, numerics)
    products = [i for i in kernel.code if i.opcode == "wgmma"]
    watched = frozenset(name for i in products for part in i.operands[:2] if isinstance(part, tuple) for name in part)
    steps = [_step(operands, instruction, watched) for instruction in kernel.code]
    if numerics.fusion == "always":
        for index, run in contracted(operands, targets).items():
            steps[index] = replace(steps[index], run=run)
    if wraps:
        names = watched_addresses(kernel, targets)
        steps = [
            replace(s, run=checking(operands, s.instruction, s.run, names, targets(s.instruction)))
            if s.control is Control.RUN
            else s
            for s in steps
        ]
    strong = {"volatile", "relaxed", "acquire"}
    return Plan(
        kernel,
        steps,
        list(kernel.registers.values()),
        min([4, *_sizes(kernel, "shared")]),
        min([4, *_sizes(kernel, "global")]),
        watched,
        any(i.opcode == "ld" and strong.intersection(i.modifiers) for i in kernel.code),
    )


def _sizes(kernel: Kernel, space: str) -> Iterator[int]:
    """Bytes of an element of each access to a state space; generic ones count for both."""
    for i in kernel.code:
        if i.opcode not in ("ld", "st", "atom", "red"):
            continue
        spaces = {m.split("::")[0] for m in i.modifiers} & {"global", "shared", "param", "const", "local"}
        if not spaces or space in spaces:
            yield DTYPES[kind_of(i)].itemsize


def _names(instruction: Instruction, first: int = 0) -> Iterator[str]:
    """What an instruction names from an operand on: registers, and whatever else looks like one."""
    for operand in instruction.operands[first:]:
        if isinstance(operand, Address):
            yield operand.base
        else:
            for part in operand if isinstance(operand, tuple) else (operand,):
                yield from part.lstrip("!").split("|")
    if instruction.guard is not None:
        yield instruction.guard[0]


def targets(instruction: Instruction) -> tuple[str, ...]:
    """The registers that an instruction sets."""
    if instruction.opcode in _WITHOUT_TARGET or not instruction.operands:
        return ()
    first = instruction.operands[0]
    if isinstance(first, Address):
        return ()
    return first if isinstance(first, tuple) else tuple(first.split("|"))


def sources(instruction: Instruction) -> Iterator[str]:
    """What an instruction reads: registers, its predicate too, and whatever else looks like one."""
    return _names(instruction, 1 if targets(instruction) else 0)


def _step(operands: Operands, instruction: Instruction, watched: frozenset[str]) -> Step:
    kernel, opcode = operands.kernel, instruction.opcode
    registers = frozenset(name for name in _names(instruction) if name in kernel.registers)
    guard, negated = -1, False
    if instruction.guard is not None:
        guard, negated = operands.slot(instruction.guard[0], instruction), instruction.guard[1]
    together = "sync" in instruction.modifiers
    step = Step(instruction, Control.RUN, _nothing, guard, negated, -1, (0, 0), registers, together)
    if opcode == "bra":
        label = str(instruction.operands[0])
        if label not in kernel.labels or set(instruction.modifiers) - {"uni"}:
            raise UnknownInstructionError(instruction, "its target")
        return replace(step, control=Control.BRANCH, target=kernel.labels[label])
    if opcode in ("ret", "exit"):
        return replace(step, control=Control.EXIT)
    if opcode in ("bar", "barrier") and "warp" not in instruction.modifiers:
        return replace(step, control=_barrier_kind(instruction), barrier=_barrier(instruction))
    run = translate(operands, instruction)
    if opcode != "wgmma" and (taken := registers & watched):
        run = _noting_access(run, taken)
    return replace(step, run=run)


def _barrier_kind(instruction: Instruction) -> Control:
    modifiers = set(instruction.modifiers) - {"aligned", "cta"}
    if modifiers == {"sync"}:
        return Control.BARRIER
    if modifiers == {"arrive"}:
        return Control.ARRIVE
    raise UnknownInstructionError(instruction, "a form of barrier")


def _barrier(instruction: Instruction) -> tuple[int, int]:
    try:
        number, *count = (int(str(o), 0) for o in instruction.operands)
    except ValueError:
        raise UnknownInstructionError(instruction, "a barrier that a register names") from None
    return number, count[0] if count else 0


def _noting_access(run: Run, names: frozenset[str]) -> Run:
    def noting(m: Machine, active: Mask | None) -> None:
        run(m, active)
        warps = slice(None) if active is None else m.warp_of[active]
        for name in names:
            m.unfenced[name][warps] = True

    return noting


def _nothing(m: Machine, active: Mask | None) -> None:
    raise AssertionError("the scheduler's own instructions are not run")
