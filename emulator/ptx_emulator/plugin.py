"""pytest with kernels compiled and emulated: `EMULATE=sm_80 PYTHONPATH=emulator pytest -p ptx_emulator.plugin`.

Environment variables: EMULATE, the architecture; EMULATE_SCHEDULE (lockstep, forward, reverse, random); EMULATE_SEED;
EMULATE_ACCUMULATION (exact, truncating); EMULATE_FUSION (written, never, always); EMULATE_APPROXIMATE (-1, 0, 1);
EMULATE_WRAPS=1 looks for addresses that wrapped; EMULATE_REPORT, a file that is told what was run, as JSON.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from .options import Numerics, Options

# before anything imports Triton, which decides then whether its kernels are interpreted
os.environ["TRITON_INTERPRET"] = "0"


def options_of_environment() -> Options:
    """The options that the variables say."""
    get = os.environ.get
    return Options(
        schedule=get("EMULATE_SCHEDULE", "lockstep"),
        seed=int(get("EMULATE_SEED", "0")),
        wraps=get("EMULATE_WRAPS", "0") == "1",
        numerics=Numerics(
            accumulation=get("EMULATE_ACCUMULATION", "exact"),
            fusion=get("EMULATE_FUSION", "written"),
            approximate=int(get("EMULATE_APPROXIMATE", "0")),
        ),
    )


_seconds: defaultdict[str, float] = defaultdict(float)
_launches: Counter[str] = Counter()
_steps: Counter[str] = Counter()


def pytest_configure(config: pytest.Config) -> None:
    from . import triton_driver

    def launched(launch: triton_driver.Launched) -> None:
        _seconds[launch.kernel] += launch.seconds
        _launches[launch.kernel] += 1
        _steps[launch.kernel] += launch.report.steps

    triton_driver.install(os.environ.get("EMULATE", "sm_80"), options_of_environment())
    triton_driver.settings.launched = launched


@pytest.fixture(autouse=True, scope="session")
def emulated_kernels() -> None:
    """The package runs its kernels on tensors of the CPU, as it does in Triton's interpreter."""
    from pixelrefer_fast.ops import _registry

    patch = pytest.MonkeyPatch()
    patch.setattr(_registry, "interpreted", lambda: True)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    write = terminalreporter.write_line
    write(f"emulated for {os.environ.get('EMULATE', 'sm_80')}:")
    for kernel, seconds in sorted(_seconds.items(), key=lambda item: -item[1]):
        count, steps = _launches[kernel], max(_steps[kernel], 1)
        write(f"  {kernel}: {count} launches, {seconds:.1f} s, {1e6 * seconds / steps:.0f} µs an instruction")
    if file := os.environ.get("EMULATE_REPORT"):
        Path(file).write_text(json.dumps(_report(terminalreporter.stats), indent=1), encoding="utf-8")


def _report(stats: dict[str, list]) -> dict[str, object]:
    """How many tests passed, failed and were skipped why, and what each kernel was launched for."""
    # of a skip the report holds file, line and "Skipped: reason"
    reasons = Counter(re.sub("^Skipped: ", "", str(report.longrepr[2])) for report in stats.get("skipped", []))
    return {
        "passed": len(stats.get("passed", [])),
        "failed": sorted(report.nodeid for outcome in ("failed", "error") for report in stats.get(outcome, [])),
        "skipped": dict(sorted(reasons.items())),
        "kernels": {name: {"launches": _launches[name], "instructions": _steps[name]} for name in sorted(_launches)},
    }
