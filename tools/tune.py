#!/usr/bin/env python
"""Find the fastest launch configuration of every kernel on this GPU: kernels/configs/<file>/<GPU>.json.

    python tools/tune.py                        all kernels
    python tools/tune.py object_pool infuse     these files

From what is shipped for its family, or the default, one setting after the other is doubled and halved while that makes
the operation's benchmark cases (`benchmarks/ops/`) faster, each entry with the cases that use it. A trial must compile
and give what the shipped one gives in every dtype of the cases; the times are those of the first. `make compile-check`
judges the result as it does any shipped configuration.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIGS = REPOSITORY / "kernels" / "configs"
sys.path.append(str(REPOSITORY / "benchmarks"))

GAIN = 0.97  # a trial is taken that needs at most this part of the time: less is noise
REPEATS = 15
SMALLEST_BLOCK, LARGEST_BLOCK = 4, 1024
RANGES = {"num_warps": (1, 16), "num_stages": (1, 5)}

Entry = dict[str, int]
Seconds = Callable[[Entry], float]


def neighbours(entry: Entry) -> Iterator[Entry]:
    """The entry with one setting doubled or halved (stages: one more or less)."""
    for key, value in entry.items():
        low, high = RANGES.get(key, (SMALLEST_BLOCK, LARGEST_BLOCK))
        steps = (value - 1, value + 1) if key == "num_stages" else (value // 2, value * 2)
        for step in steps:
            if low <= step <= high:
                yield {**entry, key: step}


def descend(start: Entry, seconds: Seconds, until: float) -> tuple[Entry, float, float]:
    """The fastest entry on the way down from `start`: (entry, its seconds, the start's seconds).

    Args:
        seconds: of an entry; infinite where it does not run or is wrong.
        until: `time.monotonic()` after which nothing more is tried.
    """
    best, least = start, seconds(start)
    first, tried = least, [start]
    improved = True
    while improved:
        improved = False
        for entry in neighbours(best):
            if entry in tried or time.monotonic() > until:
                continue
            tried.append(entry)
            passed = seconds(entry)
            if passed < GAIN * least:
                best, least, improved = entry, passed, True
                break
    return best, least, first


@dataclass(frozen=True)
class Workload:
    """A benchmark case in one dtype."""

    op: Any
    arguments: tuple[Any, ...]
    results: list[Any]  # of the default configuration, which a check has held to be right
    limit: float
    timed: bool


class Tuner:
    """Runs the kernels of one operation in chosen configurations.

    Args:
        name: of the operation and its kernel file.
        clock: seconds of a call, (prepare, run) -> (on the device, of the host).
    """

    def __init__(self, name: str, clock: Any) -> None:
        self.name = name
        self.clock = clock
        self.tried: dict[str, Entry] = {}
        self.used: set[tuple[str, int]] = set()
        self.modules = [importlib.import_module(f"pixelrefer_fast.kernels.{p.stem}") for p in kernel_files()]

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let the kernels ask this tuner for their configurations."""
        from pixelrefer_fast.kernels import _launch

        def configuration(name: str, size: int, device: Any = None) -> Entry:
            self.used.add((name, size))
            if name in self.tried:
                return dict(self.tried[name])
            file, _, kernel = name.partition(".")
            entries = _launch.untuned(file, device)[kernel]
            return {k: v for k, v in entries[entry_index(entries, size)].items() if k != "upto"}

        asking = [module for module in self.modules if hasattr(module, "configuration")]
        for module in asking:
            module.configuration = configuration
        try:
            yield
        finally:
            for module in asking:
                module.configuration = _launch.configuration

    def workloads(self, cases: Iterable[Any], device: Any) -> list[Workload]:
        from pixelrefer_fast.bench.run.cases import call, check, expected
        from pixelrefer_fast.ops import registry

        op = registry()[self.name]
        found = []
        for case in cases:
            for i, dtype in enumerate(case.dtypes):
                arguments = case.arguments(device, dtype)
                results = call(op, self.run_of(op), arguments)
                verdict = check(op, expected(op, arguments), results)
                if not verdict.ok:
                    raise SystemExit(f"{self.name}: {case.name} in {dtype} is wrong before tuning: {verdict}")
                found.append(Workload(op, arguments, results, verdict.limit, timed=i == 0))
        return found

    @staticmethod
    def run_of(op: Any) -> Callable[..., Any]:
        return lambda *arguments: op(*arguments, backend="triton")

    def uses(self, workload: Workload) -> set[tuple[str, int]]:
        """(kernel, size) of every configuration that a workload asks for."""
        from pixelrefer_fast.bench.run.cases import call

        self.used.clear()
        call(workload.op, self.run_of(workload.op), workload.arguments)
        return set(self.used)

    def seconds(self, kernel: str, entry: Entry, workloads: Sequence[Workload]) -> float:
        """Geometric mean of the timed workloads' seconds; infinite where the entry fails or changes a result."""
        from pixelrefer_fast.bench.run.cases import call, written

        self.tried[kernel] = entry
        logs = []
        try:
            for w in workloads:
                run = self.run_of(w.op)
                if not all(map(_near, call(w.op, run, w.arguments), w.results, [w.limit] * len(w.results))):
                    return math.inf
                if w.timed:

                    def fresh(w: Workload = w) -> tuple[Any, ...]:
                        return tuple(a.clone() if i in written(w.op) else a for i, a in enumerate(w.arguments))

                    times = [self.clock(fresh, lambda given, run=run: run(*given))[0] for _ in range(REPEATS)]
                    logs.append(math.log(sorted(times)[REPEATS // 2]))
        except Exception as error:  # too much shared memory, a block that the kernel cannot have
            print(f"  {kernel} {entry}: {type(error).__name__}", flush=True)
            return math.inf
        finally:
            del self.tried[kernel]
        return math.exp(sum(logs) / len(logs))


def _near(result: Any, wanted: Any, limit: float) -> bool:
    if not result.is_floating_point():
        return bool((result == wanted).all())
    return not result.numel() or (result.double() - wanted.double()).abs().max().item() <= 2 * limit


def kernel_files() -> list[Path]:
    return sorted(p for p in (REPOSITORY / "kernels").glob("*.py") if not p.name.startswith("_"))


def entry_index(entries: Sequence[Entry], size: int) -> int:
    """Which entry of a kernel's list serves a size, as `configuration` chooses."""
    return next(i for i, e in enumerate(entries) if "upto" not in e or size <= e["upto"])


def tune(name: str, cases: Iterable[Any], device: Any, budget: float, clock: Any) -> dict[str, list[Entry]]:
    """The entries of a kernel file, tuned; those that no case uses stay as they are shipped.

    Args:
        name: of the operation and its kernel file.
        cases: of its benchmark.
        budget: seconds for the whole file.
        clock: as a `Tuner` takes it.
    """
    from pixelrefer_fast.kernels import _launch

    until = time.monotonic() + budget
    table = {kernel: [dict(entry) for entry in entries] for kernel, entries in _launch.untuned(name, device).items()}
    tuner = Tuner(name, clock)
    with tuner.installed():
        served: dict[tuple[str, int], list[Workload]] = {}
        for workload in tuner.workloads(cases, device):
            for kernel, size in sorted(tuner.uses(workload)):
                file, _, own = kernel.partition(".")
                if file == name:
                    served.setdefault((own, entry_index(table[own], size)), []).append(workload)
        for place, ((kernel, i), workloads) in enumerate(served.items()):
            share = time.monotonic() + (until - time.monotonic()) / (len(served) - place)
            upto = {k: v for k, v in table[kernel][i].items() if k == "upto"}
            start = {k: v for k, v in table[kernel][i].items() if k != "upto"}
            # a kernel of float32 alone has none that is timed for the others' sake
            timed = workloads if any(w.timed for w in workloads) else [replace(w, timed=True) for w in workloads]

            def seconds(entry: Entry, kernel: str = kernel, timed: Sequence[Workload] = timed) -> float:
                return tuner.seconds(f"{name}.{kernel}", entry, timed)

            best, least, first = descend(start, seconds, share)
            print(f"{name}.{kernel}: {start} {first * 1e6:.1f} us -> {best} {least * 1e6:.1f} us", flush=True)
            table[kernel][i] = {**upto, **best}
    return table


def write_entries(path: Path, table: dict[str, list[Entry]]) -> None:
    """A configuration file, an entry a line."""
    kernels = [
        f'  "{kernel}": [\n' + ",\n".join(f"    {json.dumps(e)}" for e in entries) + "\n  ]"
        for kernel, entries in table.items()
    ]
    path.write_text("{\n" + ",\n".join(kernels) + "\n}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    names = [p.stem for p in kernel_files() if (CONFIGS / p.stem / "default.json").is_file()]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", metavar="FILE", help="kernel files (default: all)")
    parser.add_argument("--seconds", type=float, default=240, help="for all of them (default: 240)")
    options = parser.parse_args(arguments)
    for name in options.files:
        if name not in names:
            parser.error(f"expected files out of {names}, got {name!r}")
    import torch

    if not torch.cuda.is_available():
        print("tune: there is no CUDA device", file=sys.stderr)
        return 1
    from ops_bench import load_cases

    from pixelrefer_fast.bench.measure.timing import DeviceClock

    chosen = options.files or names
    gpu = torch.cuda.get_device_name().replace(" ", "_")
    clock = DeviceClock().time
    for name in chosen:
        cases = [case for case in load_cases(name) if not case.smoke]
        with torch.inference_mode():
            table = tune(name, cases, torch.device("cuda"), options.seconds / len(chosen), clock)
        write_entries(CONFIGS / name / f"{gpu}.json", table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
