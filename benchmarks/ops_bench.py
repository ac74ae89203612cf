"""Every operation at the sizes of its `ops/<op>.py`: each provider, the definition, its compiled form, and rivals.

    python benchmarks/ops_bench.py                         all operations
    python benchmarks/ops_bench.py --op rope2d infuse      these

On a CUDA device times are the device's own (events, warm, cold L2, calls in turn), with the percentage of what a copy
and a matrix product reach in the same run. Without one the definition and providers for the CPU are timed by the wall
clock, in float32, and the device's columns are empty. Beside every time stands the error of the same call; where it
exceeds its limit no speed-up is shown and the exit status is 1.

Every operation's first case comes first, then their second ones and so on: with --seconds what is measured by then is
kept. The definition compiled by torch (--compiled) takes minutes to compile for all cases.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import _harness
import torch

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE / "ops"))

from _case import Arguments, Case, Check, call, check, expected, written  # noqa: E402

BUDGET = 2.0  # seconds of one candidate of one case after which it is timed no more
LEAST = 5
Candidate = Callable[..., Any]


def op_files() -> dict[str, Path]:
    return {p.stem: p for p in sorted((HERE / "ops").glob("*.py")) if not p.stem.startswith("_")}


def load_cases(name: str) -> list[Case]:
    """The cases of an operation's benchmark file."""
    spec = importlib.util.spec_from_file_location(f"bench_{name}", op_files()[name])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.cases())


def candidates(op: Any, case: Case, device: torch.device, compiled: bool) -> dict[str, Candidate]:
    """Who computes the case here, the definition first."""
    found: dict[str, Candidate] = {"torch": op.definition}
    others = [name for name, available, _ in op.providers() if available and name != "torch"]
    if compiled:
        found["torch.compile"] = torch.compile(op.definition)
    if not case.smoke and device.type == "cpu":  # in the interpreter, which takes minutes for them
        others = [name for name in others if name != "triton"]
    return found | {name: functools.partial(op, backend=name) for name in others}


def measure(
    op: Any, case: Case, dtype: torch.dtype, device: torch.device, repeats: int, clock: Any, compiled: bool = False
) -> dict[str, Any]:
    """Errors and times of all candidates on one case in one dtype."""
    arguments = case.arguments(device, dtype)
    wanted = expected(op, arguments)
    checks: dict[str, Check | str] = {}
    runs: dict[str, Candidate] = {}
    for name, run in candidates(op, case, device, compiled).items():
        try:
            checks[name] = check(op, wanted, call(op, run, arguments))  # the first call warms up
            runs[name] = run
        except Exception as error:  # declined or broken: a line in the result, and the others go on
            checks[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    rivals = case.rivals(arguments) if device.type == "cuda" else {}
    runs |= {name: functools.partial(_ignoring, rival) for name, rival in rivals.items()}
    times = _times(op, arguments, runs, repeats, clock)

    def row(name: str) -> dict[str, Any]:
        found = checks.get(name)
        if isinstance(found, str):
            return {"ok": False, "reason": found}
        of = {"ok": found is None or found.ok, **times[name]}
        return of if found is None else {**of, "error": found.error, "limit": found.limit}

    return {
        "op": case.op,
        "case": case.name,
        "dtype": str(dtype).removeprefix("torch."),
        "flops": case.flops,
        "moved": case.moved(dtype),
        "candidates": {name: row(name) for name in (*checks, *rivals)},
    }


def _ignoring(rival: Callable[[], Any], *arguments: Any) -> Any:
    return rival()


def _times(
    op: Any, arguments: Arguments, runs: dict[str, Candidate], repeats: int, clock: Any
) -> dict[str, dict[str, Any]]:
    """Quantiles of each candidate's seconds; calls in turn, so that the machine's noise meets all."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            spent = sum(host + device for device, host in seconds[name])
            if len(seconds[name]) >= LEAST and spent > BUDGET:
                continue
            given = functools.partial(_fresh, op, arguments)
            seconds[name].append(clock(given, lambda values, run=run: run(*values)))
    return {
        name: {
            "seconds": _harness.quantiles([device for device, _ in pairs]),
            "host_seconds": _harness.quantiles([host for _, host in pairs]),
            "calls": len(pairs),
        }
        for name, pairs in seconds.items()
    }


def _fresh(op: Any, arguments: Arguments) -> Arguments:
    return tuple(a.clone() if i in written(op) else a for i, a in enumerate(arguments))


def wall_clock(prepare: Callable[[], Any], run: Callable[[Any], Any]) -> tuple[float, float]:
    """Seconds of one call on a CPU, where device and host are one."""
    given = prepare()
    start = time.perf_counter()
    run(given)
    passed = time.perf_counter() - start
    return passed, passed


def benchmark(
    names: Sequence[str],
    device: torch.device,
    repeats: int,
    smoke: bool,
    compiled: bool = False,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Measure the smoke cases of these operations or all others; after `seconds` no further case is begun."""
    from pixelrefer_fast.ops import registry

    clock, rates = wall_clock, {}
    if device.type == "cuda" and not smoke:
        import _device

        clock = _device.Clock().time
        floats = (torch.bfloat16, torch.float16, torch.float32)
        rates = {"copy": _device.copy_rate()} | {str(d).removeprefix("torch."): _device.matrix_rate(d) for d in floats}
    until = time.monotonic() + seconds
    rows, left_out = [], []
    cases = {name: [case for case in load_cases(name) if case.smoke == smoke] for name in names}
    longest = max(map(len, cases.values()))
    for name, case in ((name, own[i]) for i in range(longest) for name, own in cases.items() if i < len(own)):
        for dtype in case.dtypes if device.type == "cuda" else (torch.float32,):
            described = f"{name}: {case.name}, {str(dtype).removeprefix('torch.')}"
            if time.monotonic() > until:
                left_out.append(f"{described} (no time)")
                continue
            try:
                with torch.inference_mode():
                    rows.append(measure(registry()[name], case, dtype, device, repeats, clock, compiled))
            except torch.OutOfMemoryError:  # of the definition in float64, which all are judged by
                left_out.append(f"{described} (no memory)")
            print(described, file=sys.stderr, flush=True)
    rows.sort(key=lambda row: names.index(row["op"]))
    return {"benchmark": "ops", **_harness.provenance(), "rates": rates, "rows": rows, "left_out": left_out}


HEADINGS = ("operation", "case", "dtype", "by", "µs", "µs to issue", "speed-up", "error", "copy rate", "matrix rate")


def table(result: dict[str, Any]) -> list[list[str]]:
    """A line for each case and candidate, as text."""
    lines = []
    for row in result["rows"]:
        plain = row["candidates"]["torch"].get("seconds")
        for name, of in row["candidates"].items():
            start = [row["op"], row["case"], row["dtype"], name]
            if "reason" in of:
                lines.append([*start, f"not run: {of['reason']}", "", "", "", "", ""])
                continue
            median = of["seconds"]["median"]
            speed = f"{plain['median'] / median:.1f}x" if plain and of["ok"] else "none: wrong"
            error = f"{of['error']:.1e}" if "error" in of else "not checked"
            on_device = bool(result["rates"])
            issue = f"{of['host_seconds']['median'] * 1e6:.1f}" if on_device else ""
            rates = [("moved", "copy"), ("flops", row["dtype"])]
            parts = [f"{row[n] / median / result['rates'][r]:.0%}" if on_device and of["ok"] else "" for n, r in rates]
            lines.append([*start, _spread(of["seconds"]), issue, "" if name == "torch" else speed, error, *parts])
    return lines


def _spread(values: dict[str, float]) -> str:
    low, middle, high = (values[key] * 1e6 for key in ("q10", "median", "q90"))
    digits = 1 if middle < 100 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def markdown(result: dict[str, Any]) -> str:
    """The page for docs/, made from a result."""
    device = result["device"] if result["rates"] else None
    where = f"{result['cpu']}, {result['threads']} threads; no GPU, so the device's columns are empty"
    if device is not None:
        where = f"{device['name']}, driver {device['driver']}, copy {result['rates']['copy'] / 1e12:.2f} TB/s"
        where += "".join(
            f", {name} {rate / 1e12:,.0f} TFLOP/s" for name, rate in result["rates"].items() if name != "copy"
        )
    versions = ", ".join(f"{name} {version}" for name, version in result["libraries"].items() if version)
    commit = (result["commit"] or "no commit")[:12]
    return f"""# Operations

Made by `{result["command"]}`; do not edit.

{result["date"]}, commit {commit}{", with changes" if result["dirty"] else ""}; {where}; Python {result["python"]}, \
{versions}.

Times are medians with the 10 % and 90 % quantiles, the speed-up is over the definition ("torch"). The error is the
largest difference from the definition in float64; where it exceeds twice the definition's own error in the same dtype
plus the operation's tolerance, no speed-up is shown. The last columns set what the case must move and compute against
what a copy and a matrix product reached in the same run.

{_harness.markdown_table(HEADINGS, table(result))}"""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=sorted(op_files()), metavar="OP", help="only these operations")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="the small cases instead (for compute-sanitizer)")
    parser.add_argument("--repeats", type=int, default=50, help="calls of each candidate at most (default: 50)")
    parser.add_argument("--compiled", action="store_true", help="the definition compiled by torch as well")
    parser.add_argument("--seconds", type=float, default=math.inf, help="after which no further case is begun")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    parser.add_argument("--markdown", type=Path, metavar="PATH", help="page to write")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: expected at least 1")
    names = options.op or sorted(op_files())
    device = torch.device(options.device)
    result = benchmark(names, device, options.repeats, options.smoke, options.compiled, options.seconds)
    if options.json:
        _harness.append_result(options.json, result)
    if options.markdown:
        options.markdown.write_text(markdown(result), encoding="utf-8")
    _harness.terminal_table("operations", HEADINGS, table(result))
    for described in result["left_out"]:
        print(f"left out: {described}")
    wrong = [c for row in result["rows"] for c in row["candidates"].values() if "reason" not in c and not c["ok"]]
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
