"""The benchmarks under pytest-benchmark: what every file of this folder shares.

    pytest benchmarks/suite/test_stages.py                       every stage of the models that run here
    pytest benchmarks/suite/test_stages.py -k video --smoke      small sizes
    pytest benchmarks/suite --results PATH                       rows in the common schema, appended to a file

Timing is `bench.timing`'s: on a CUDA device calls of `timed_on_device` take the device's own time with a cold L2 and
inputs in turn, everything else takes the wall clock until the device is done. What is wrong fails and has no time.
pytest-benchmark keeps its own statistics and comparison (`--benchmark-save`, `--benchmark-compare`).
"""

from __future__ import annotations

import gc
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from pixelrefer_fast.bench.measure import power, rates, timing
from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.report.results import Row
from pixelrefer_fast.bench.run import workloads

FOLDER = Path(__file__).resolve().parent
sys.path.append(str(FOLDER))  # what the tests share

LEAST = 5  # rounds, however long they take
SMOKE_ROUNDS = 1


class Measure(Protocol):
    """Times `run` and adds the row to the result: `run()`, or `run(prepare())` with what is not timed."""

    def __call__(self, row: Row, run: Callable[..., Any], prepare: Callable[[], Any] | None = None) -> Row: ...


class Session:
    """What the run has measured so far."""

    def __init__(self, config: pytest.Config) -> None:
        self.device = torch.device(config.getoption("--device"))
        self.smoke: bool = config.getoption("--smoke")
        self.repeats: int = config.getoption("--repeats")
        self.path: Path | None = config.getoption("--results")
        self.rows: dict[str, list[Row]] = {}
        self.documents: list[dict[str, Any]] = []
        self.watch: power.Watch | None = None
        self._stopwatch: timing.Stopwatch | None = None

    def timer(self) -> Callable[[], float]:
        """Asked before and after each call that is timed on the device."""
        if self.device.type != "cuda":
            return time.perf_counter
        if self._stopwatch is None:
            self._stopwatch = timing.Stopwatch(timing.DeviceClock(self.device))
        self._stopwatch.reset()
        return self._stopwatch

    def finish(self) -> None:
        """The rows as documents, appended to the file that was asked for."""
        if not self.rows or self.path is None:
            return
        reached: dict[str, float] = {}
        if not self.smoke:
            reached = rates.measured(self.device, *([] if self.device.type == "cuda" else [[torch.float32]]))
        facts = None if self.watch is None else self.watch.facts()
        for name, rows in self.rows.items():
            more = {"measured_on": self.device.type, "smoke": self.smoke, "power": facts}
            self.documents.append(results.document(name, rows, reached, **more))
            results.append(self.path, self.documents[-1])


SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("pixelrefer-fast benchmarks")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    group.addoption("--device", choices=("cpu", "cuda"), default=here, help=f"where (default: {here})")
    group.addoption("--smoke", action="store_true", help="tiny sizes, each timed once: does everything run?")
    group.addoption("--repeats", type=int, default=50, help="rounds of a case at most (default: 50)")
    group.addoption("--models", metavar="NAMES", help="of whole questions, by commas (default: embedded; on cuda 2b)")
    group.addoption("--results", type=Path, metavar="PATH", help="result file to append to")


def pytest_configure(config: pytest.Config) -> None:
    session = Session(config)
    if session.device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("--device: there is no CUDA device")
    if session.repeats < 1:
        raise pytest.UsageError(f"--repeats: expected at least 1, got {session.repeats}")
    if session.path is not None:
        try:
            results.check_path(session.path)
        except ValueError as error:
            raise pytest.UsageError(f"--results: {error}") from error
    config.stash[SESSION] = session


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "timed_on_device" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.benchmark(timer=config.stash[SESSION].timer()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    session.config.stash[SESSION].finish()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    session = config.stash[SESSION]
    for document in session.documents:
        rows = document["rows"]
        wrong = sum(not row["ok"] and "reason" not in row for row in rows)
        terminalreporter.write_line(f"{session.path}: {document['benchmark']}, {len(rows)} rows, {wrong} wrong")


@pytest.fixture(scope="session")
def suite(request: pytest.FixtureRequest) -> Iterator[Session]:
    """The run: its device, whether it is a smoke run, its rows."""
    session = request.config.stash[SESSION]
    with power.watching(session.device) as session.watch:
        yield session


@pytest.fixture(scope="session")
def device(suite: Session) -> torch.device:
    return suite.device


@pytest.fixture(scope="session")
def smoke(suite: Session) -> bool:
    return suite.smoke


def model_names(config: pytest.Config) -> list[str]:
    """The models that whole questions are asked: those that need no download."""
    given = config.getoption("--models")
    if given:
        return [name.strip() for name in given.split(",")]
    small = config.getoption("--smoke") or config.getoption("--device") == "cpu"
    return ["embedded:lite", "embedded:full"] if small else ["lite-2b", "full-2b"]


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, device: torch.device) -> Iterator[tuple[str, Any]]:
    """(name, model) of `model_names`, for those who are parametrised with a name; one at a time in memory."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    yield request.param, workloads.load_model(request.param, device, dtype)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def add_row(suite: Session, benchmark: Any) -> Callable[..., Row]:
    """Adds a row to the result, and what it says beside the times to pytest-benchmark's."""

    def add(row: Row, document: str | None = None) -> Row:
        suite.rows.setdefault(document or row["suite"], []).append(row)
        for name in ("by", "model", "sizes", "error", "limit", "ok", "flops", "moved", "launches", "waits", "reason"):
            if name in row:
                benchmark.extra_info[name] = row[name]
        return row

    return add


def _rounds(suite: Session, config: pytest.Config, seconds: float) -> int:
    """As many as fit into pytest-benchmark's --benchmark-max-time, and a few in any case."""
    if suite.smoke:
        return SMOKE_ROUNDS
    fit = float(config.getoption("benchmark_max_time")) / max(seconds, 1e-9)
    return min(suite.repeats, max(LEAST, math.ceil(fit)))


@pytest.fixture
def timed(suite: Session, benchmark: Any, add_row: Callable[..., Row], request: pytest.FixtureRequest) -> Measure:
    """By the wall clock until the device is done."""
    return _measure(suite, benchmark, add_row, request.config, waits=True)


@pytest.fixture
def timed_on_device(
    suite: Session, benchmark: Any, add_row: Callable[..., Row], request: pytest.FixtureRequest
) -> Measure:
    """By the device's own clock, with a cold L2 (on a CPU: by the wall clock); what the host needs goes beside it."""
    return _measure(suite, benchmark, add_row, request.config, waits=False)


def _measure(
    suite: Session, benchmark: Any, add_row: Callable[..., Row], config: pytest.Config, waits: bool
) -> Measure:
    def measure(row: Row, run: Callable[..., Any], prepare: Callable[[], Any] | None = None) -> Row:
        if not row["ok"]:
            return add_row(row)
        host: list[float] = []

        def call(*given: Any) -> None:
            start = time.perf_counter()
            run(*given)
            if waits:
                timing.synchronize(suite.device)
            host.append(time.perf_counter() - start)

        def setup() -> tuple[tuple[Any, ...], dict[str, Any]]:
            given = () if prepare is None else (prepare(),)
            timing.synchronize(suite.device)
            return given, {}

        benchmark.group = row["case"] + (f", {row['dtype']}" if "dtype" in row else "")  # read as the rounds begin
        call(*setup()[0])
        timing.synchronize(suite.device)
        rounds = _rounds(suite, config, host.pop())
        benchmark.pedantic(call, setup=setup, rounds=rounds, warmup_rounds=0 if suite.smoke else 1)
        seconds = host if benchmark.disabled else benchmark.stats.stats.data
        row = {**row, "seconds": timing.quantiles(seconds), "calls": len(seconds)}  # type: ignore[typeddict-item]
        if not waits:
            row["host_seconds"] = timing.quantiles(host[-len(seconds) :])  # type: ignore[typeddict-item]
        return add_row(row)

    return measure
