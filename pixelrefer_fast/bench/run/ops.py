"""Operations: who computes a case, whether what they give is right, how long it takes; rows of a result."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch

from pixelrefer_fast.bench.measure import memory, timing
from pixelrefer_fast.bench.report.results import Row
from pixelrefer_fast.bench.run.cases import Arguments, CallCheck, Case, Rival, call, check, expected, written
from pixelrefer_fast.ops import BACKENDS, BackendError

DEFINITION, COMPILED = "torch", "torch.compile"
BUDGET = 2.0  # seconds of one candidate of one case after which it is timed no more
LEAST = 5  # calls of each, however long they take
MAY_DECLINE = (BackendError, ImportError, torch.OutOfMemoryError)  # what a provider of ours may say
UNWATCHED = ("triton", COMPILED)  # on a CPU: the interpreter and the compiler are not to be looked into


def names(case: Case, device: torch.device, compiled: bool) -> list[str]:
    """Who may compute the case here, the definition first, rivals last; nothing is run for that."""
    providers = [name for name, available, _ in case.operation().providers() if available and name != DEFINITION]
    if not case.smoke and device.type == "cpu":  # in the interpreter, which takes minutes for them
        providers = [name for name in providers if name != "triton"]
    return [DEFINITION, *([COMPILED] if compiled else []), *providers, *case.rivals]


def floats(case: Case, device: torch.device) -> tuple[torch.dtype, ...]:
    """Dtypes to measure: a CPU's times are of float32 alone."""
    return case.dtypes if device.type == "cuda" else (torch.float32,)


class JudgedCase:
    """A case in one dtype on one device, with what it must give.

    Args:
        case: what to do.
        dtype: of its floats.
        device: where.

    Raises:
        torch.OutOfMemoryError: there is no memory for the definition in float64, by which all are judged.
    """

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        self.op = case.operation()
        arguments = case.arguments(device, dtype)
        self._wanted = expected(self.op, arguments)
        self._sets = timing.copies(arguments, device)

    def candidate(self, by: str) -> Candidate:
        """One who computes it, checked; it has been called once."""
        try:
            return Candidate(self, by)
        except Exception as error:  # declined, broken or not installed: a row that says so, and the others go on
            found = Candidate(self, by, f"{type(error).__name__}: {error}".splitlines()[0])
            if by in BACKENDS and not isinstance(error, MAY_DECLINE):
                found.row["extra"] = {**found.row["extra"], "broken": True}
            return found

    def row(self, by: str) -> Row:
        """What is known of every candidate's row."""
        return {
            "suite": "ops",
            "case": f"{self.case.op}: {self.case.name}",
            "by": by,
            "dtype": str(self.dtype).removeprefix("torch."),
            "flops": self.case.flops,
            "moved": self.case.moved(self.dtype),
            "extra": {"op": self.case.op},
        }


class Candidate:
    """Who computes a `JudgedCase`: the check of its first call, and what to time.

    Attributes:
        row: of the result, without times as yet.
        runs: False where it declined or failed: the row says why.
    """

    def __init__(self, work: JudgedCase, by: str, reason: str | None = None) -> None:
        self.row = work.row(by)
        self.runs = reason is None
        if reason is not None:
            self.row |= {"ok": False, "reason": reason}
            return
        self._fresh = written(work.op)
        self._sets: list[Arguments] = work._sets
        self._calls: list[Callable[..., Any]]
        make = work.case.rivals.get(by)
        found = self._of_operation(work, by) if make is None else self._of_rival(work, make)
        self.row["ok"] = found is None or found.ok
        if found is not None:
            self.row |= {"error": found.error, "limit": found.limit}
        self._turn = itertools.cycle(zip(self._calls, self._sets, strict=True))

    def _of_operation(self, work: JudgedCase, by: str) -> CallCheck:
        op = work.op
        run = op.definition if by == DEFINITION else functools.partial(op, backend=by)
        if by == COMPILED:
            torch.compiler.reset()
            run = torch.compile(op.definition)
        self._calls = [run] * len(self._sets)
        results = call(op, run, self._sets[0])  # compiles, and allocates what is kept
        if work.device.type == "cuda" or by not in UNWATCHED:
            with memory.watching(work.device) as held:
                results = call(op, run, self._sets[0])
            # beyond the arguments: results, copies of what is written to, and what is needed in between
            self.row |= {"peak_bytes": held.peak - held.start, "final_bytes": sum(t.nbytes for t in results)}
        return check(op, work._wanted, results)

    def _of_rival(self, work: JudgedCase, make: Callable[[Arguments], Rival]) -> CallCheck | None:
        rivals = [make(arguments) for arguments in self._sets]
        self._calls = [functools.partial(_ignoring, rival.run) for rival in rivals]
        self._fresh = set()
        if rivals[0].partial:
            self.row["extra"] = {**self.row["extra"], "partial": rivals[0].partial}
        given = rivals[0].run()
        if rivals[0].results is None:
            return None
        return check(work.op, work._wanted, rivals[0].results(given))

    def prepare(self) -> tuple[Callable[..., Any], Arguments]:
        """What to call and on what: inputs in other memory than last time, and fresh where they are written to."""
        run, arguments = next(self._turn)
        return run, tuple(a.clone() if i in self._fresh else a for i, a in enumerate(arguments))

    def timed(self, seconds: list[float], host: list[float] | None = None) -> Row:
        """The row with its times, where there are any."""
        row = self.row.copy()
        if seconds:
            row |= {"seconds": timing.quantiles(seconds), "calls": len(seconds)}  # type: ignore[typeddict-item]
        if host:
            row["host_seconds"] = timing.quantiles(host)  # type: ignore[typeddict-item]
        return row


def _ignoring(run: Callable[[], Any], *arguments: Any) -> Any:
    return run()


def apply(given: tuple[Callable[..., Any], Arguments]) -> Any:
    """Call what `Candidate.prepare` gives."""
    run, arguments = given
    return run(*arguments)


def measure(
    case: Case, dtype: torch.dtype, device: torch.device, repeats: int, clock: timing.Clock, compiled: bool = False
) -> list[Row]:
    """Rows of all candidates of a case in one dtype; calls in turn, so that the machine's noise meets all.

    Raises:
        torch.OutOfMemoryError: as `JudgedCase`.
    """
    work = JudgedCase(case, dtype, device)
    found = [work.candidate(by) for by in names(case, device, compiled)]
    times: list[list[tuple[float, float]]] = [[] for _ in found]
    with timing.quiet():
        for _ in range(repeats):
            for candidate, own in zip(found, times, strict=True):
                if not candidate.runs or (len(own) >= LEAST and sum(map(sum, own)) > BUDGET):
                    continue
                own.append(clock.time(candidate.prepare, apply))
    return [c.timed([a for a, _ in own], [b for _, b in own]) for c, own in zip(found, times, strict=True)]
