"""A trace of torch.profiler, read: which operations and kernels a stage spent its time in.

The trace is the JSON that `export_chrome_trace` writes, which Perfetto and chrome://tracing show. Stages are ranges of
`stages.marked`. Where kernels run on a device, an operation's time is that of the kernels it launched, found by the
correlation of a launch with its kernel; else it is the host's own time in it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

LAUNCHING = ("cuda_runtime", "cuda_driver")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
Event = Mapping[str, Any]


@dataclass
class Kernel:
    """One kernel of a device, in all its launches within an operation of a stage.

    Attributes:
        name: as compiled.
        launches, seconds: of all of them.
        registers: a thread; shared: bytes a block; threads: of a block; blocks: of the largest launch. 0 for copies
            and fills.
    """

    name: str
    launches: int = 0
    seconds: float = 0.0
    registers: int = 0
    shared: int = 0
    threads: int = 0
    blocks: int = 0


@dataclass
class Operation:
    """What one operation, or one of our own kernels, took within one stage.

    Attributes:
        stage: the range it lies in.
        name: as `counters` has it ("aten.addmm", "infuse.scores"), else the kernel's or the profiler's own.
        launches: of kernels; on a host alone the calls.
        seconds: of all of them.
        kernels: by name; none on a host alone.
    """

    stage: str
    name: str
    launches: int = 0
    seconds: float = 0.0
    kernels: dict[str, Kernel] = field(default_factory=dict)

    @property
    def longest(self) -> Kernel | None:
        """The kernel that took most of it."""
        return max(self.kernels.values(), key=lambda kernel: kernel.seconds, default=None)


def read(
    events: Iterable[Event],
    counted: Mapping[str, Collection[str]],
    functions: Mapping[str, str],
) -> list[Operation]:
    """The operations of every stage, those that took longest first.

    Args:
        events: `traceEvents` of the trace.
        counted: for each stage the names that operations are known by; what runs within one of them is part of it.
        functions: our own kernels, compiled name -> "file.kernel".

    Returns:
        Operations; sums over all ranges of a stage's name.
    """
    complete = [e for e in events if e.get("ph") == "X"]
    hosts = [
        e
        for e in complete
        if e.get("cat") in ("cpu_op", *LAUNCHING) or (e.get("cat") == "user_annotation" and e["name"] in counted)
    ]
    device = [e for e in complete if e.get("cat") in ON_DEVICE]
    spans = _nested(hosts)
    found: dict[tuple[str, str], Operation] = {}
    if not device:
        for span in spans:
            if span.stage is not None and span.event.get("cat") == "cpu_op":
                name, itself = _known(span.chain, counted[span.stage])
                operation = _of(found, span.stage, name)
                operation.seconds += span.alone / 1e6
                operation.launches += itself
    launches = {
        s.event["args"]["correlation"]: s
        for s in spans
        if s.event.get("cat") in LAUNCHING and "correlation" in s.event.get("args", {})
    }
    for event in device:
        launch = launches.get(event.get("args", {}).get("correlation"))
        if launch is None or launch.stage is None:
            continue
        own = functions.get(event["name"])
        name = own or (_known(launch.chain, counted[launch.stage])[0] if launch.chain else event["name"])
        _add(_of(found, launch.stage, name), event)
    return sorted(found.values(), key=lambda operation: -operation.seconds)


@dataclass
class _Span:
    """A host event with what it lies in; `chain`: names of the operations around it and its own, outermost first."""

    event: Event
    stage: str | None
    chain: tuple[str, ...]
    alone: float  # microseconds without what lies in it


def _nested(events: Sequence[Event]) -> list[_Span]:
    lanes: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
    for event in events:
        lanes[event.get("pid"), event.get("tid")].append(event)
    spans = []
    for lane in lanes.values():
        around: list[_Span] = []
        for event in sorted(lane, key=lambda e: (e["ts"], -e.get("dur", 0))):
            while around and around[-1].event["ts"] + around[-1].event.get("dur", 0) <= event["ts"]:
                around.pop()
            stage = around[-1].stage if around else None
            chain = around[-1].chain if around else ()
            if event.get("cat") == "user_annotation":
                stage, chain = event["name"], ()
            elif event.get("cat") == "cpu_op":
                chain = (*chain, event["name"].replace("::", "."))
                if around:
                    around[-1].alone -= event.get("dur", 0)
            span = _Span(event, stage, chain, event.get("dur", 0))
            spans.append(span)
            around.append(span)
    return spans


def _known(chain: Sequence[str], names: Collection[str]) -> tuple[str, bool]:
    """The innermost operation that is known by name, and whether it is the last of the chain; else the outermost."""
    for place in range(len(chain) - 1, -1, -1):
        if chain[place] in names:
            return chain[place], place == len(chain) - 1
    return chain[0], len(chain) == 1


def _of(found: dict[tuple[str, str], Operation], stage: str, name: str) -> Operation:
    return found.setdefault((stage, name), Operation(stage, name))


def _add(operation: Operation, event: Event) -> None:
    seconds, facts = event.get("dur", 0) / 1e6, event.get("args", {})
    kernel = operation.kernels.setdefault(event["name"], Kernel(event["name"]))
    kernel.launches += 1
    kernel.seconds += seconds
    kernel.registers = max(kernel.registers, int(facts.get("registers per thread", 0)))
    kernel.shared = max(kernel.shared, int(facts.get("shared memory", 0)))
    kernel.threads = max(kernel.threads, prod(facts.get("block", [0])))
    kernel.blocks = max(kernel.blocks, prod(facts.get("grid", [0])))
    operation.launches += 1
    operation.seconds += seconds


@dataclass
class Seen:
    """What a device did, and where the host waited for it, in a whole trace.

    Attributes:
        kernels: launches by compiled name.
        copies: copies and fills, by name.
        waits: calls of the driver in which the host waits, by name.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)


def seen(events: Iterable[Event], within: str) -> Seen:
    """Everything on the device, and the waits that begin within a range.

    Args:
        events: `traceEvents` of a trace in which nothing else runs on the device.
        within: the range's name.
    """
    complete = [e for e in events if e.get("ph") == "X"]
    ranges = [
        (e["ts"], e["ts"] + e.get("dur", 0))
        for e in complete
        if e.get("cat") == "user_annotation" and e["name"] == within
    ]
    found = Seen()
    for event in complete:
        name, kind = event["name"], event.get("cat")
        if kind == "kernel":
            found.kernels[name] += 1
        elif kind in ON_DEVICE:
            found.copies[name] += 1
        elif kind in LAUNCHING and _waits(name) and any(a <= event["ts"] <= b for a, b in ranges):
            found.waits[name] += 1
    return found


def _waits(call: str) -> bool:
    """Whether the host goes on after this call of CUDA's runtime or driver only when the device has come so far."""
    return "Synchronize" in call or ("Memcpy" in call and "Async" not in call)
