"""Launch a kernel on NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .faults import Finding, Findings, FindingsError
from .machine import Machine, Observer
from .memory.global_memory import Buffer, GlobalMemory
from .options import Options
from .parser import Kernel, Parameter
from .plan import Plan, plan_of
from .scalar_types import DTYPES, UNSIGNED
from .scheduler import Scheduler

Argument = np.ndarray | np.generic | int | float | bytes | None
Size = int | Sequence[int]

__all__ = ["Argument", "Plan", "Report", "run"]


@dataclass
class Report:
    """What a launch leaves behind besides memory.

    Attributes:
        findings: what the checks found; empty is good.
        steps: instructions that were run, each for all lanes that took part.
    """

    findings: list[Finding] = field(default_factory=list)
    steps: int = 0


def run(
    kernel: Kernel,
    grid: Size,
    arguments: Sequence[Argument],
    *,
    block: Size | None = None,
    shared: int = 0,
    buffers: Sequence[Buffer] = (),
    options: Options | None = None,
    observer: Observer | None = None,
) -> Report:
    """Run a kernel to its end.

    Args:
        kernel: of `parse(ptx)`.
        grid: blocks in up to three dimensions.
        arguments: one for each parameter. An array is memory that the kernel may access, given by its address; None is
            the null pointer; bytes are an aggregate.
        block: threads in up to three dimensions; may be left out where the PTX requires a size.
        shared: bytes of dynamic shared memory.
        buffers: further memory that the kernel may access.
        options: order, checks and roundings.
        observer: is told of each instruction and access.

    Raises:
        ValueError: arguments that do not fit the kernel's parameters, or no block.
        Fault: the kernel did what no device allows, or has an instruction that is not known.
        FindingsError: checks found something, and `options.findings` is "raise".
    """
    options = options or Options()
    plan = plan_of(kernel, options.numerics, options.wraps)
    sizes, threads = _three(grid), _three(block if block is not None else kernel.threads or ())
    if not all(threads):
        raise ValueError("block: expected threads, since the kernel requires none, got nothing")
    if len(arguments) != len(kernel.parameters):
        raise ValueError(f"arguments: expected {len(kernel.parameters)} for {kernel.name}, got {len(arguments)}"[:200])
    named = list(zip(kernel.parameters.items(), arguments, strict=True))
    own = [Buffer(a.ctypes.data, a.nbytes, n) for (n, _), a in named if isinstance(a, np.ndarray)]
    memory = GlobalMemory([*own, *buffers], plan.global_granule, options.races)
    packed = _packed([(p, a) for (_, p), a in named])
    findings = Findings()
    count = sizes[0] * sizes[1] * sizes[2]
    at_once = max(1, options.lanes // (threads[0] * threads[1] * threads[2]))
    starts = list(range(0, count, at_once))
    report = Report()
    size = kernel.static_shared if not shared else -(-kernel.static_shared // 16) * 16 + shared
    with np.errstate(all="ignore"):
        for start in reversed(starts) if options.schedule == "reverse" else starts:
            blocks = np.arange(start, min(start + at_once, count))
            m = Machine(plan, sizes, threads, blocks, memory, size, packed, options, findings, observer)
            Scheduler(m).run()
            report.steps += m.step
    report.findings = list(findings)
    if report.findings and options.findings == "raise":
        raise FindingsError("\n".join(map(str, report.findings)))
    return report


def _three(size: Size) -> tuple[int, int, int]:
    given = (size,) if isinstance(size, int) else tuple(size)
    if len(given) > 3 or any(n < 0 for n in given):
        raise ValueError(f"grid and block: expected up to three sizes, got {size}")
    x, y, z = (*given, 1, 1, 1)[:3] if given else (0, 0, 0)
    return x, y, z


def _packed(arguments: Sequence[tuple[Parameter, Argument]]) -> bytes:
    """The parameter space."""
    end = max((p.offset + p.size for p, _ in arguments), default=0)
    space = bytearray(end)
    for parameter, value in arguments:
        start = parameter.offset
        space[start : start + parameter.size] = _bytes(parameter, value)
    return bytes(space)


def _bytes(parameter: Parameter, value: Argument) -> bytes:
    dtype = DTYPES[parameter.kind]
    if isinstance(value, np.ndarray):
        value = value.ctypes.data
    if isinstance(value, np.generic):
        value = value.tobytes()
    if isinstance(value, bytes):
        if len(value) != parameter.size:
            raise ValueError(f"arguments: expected {parameter.size} bytes, got {len(value)}")
        return value
    if isinstance(value, float):
        return np.array(value, dtype).tobytes()
    return (int(value or 0) & ((1 << 8 * dtype.itemsize) - 1)).to_bytes(UNSIGNED[dtype.itemsize].itemsize, "little")
