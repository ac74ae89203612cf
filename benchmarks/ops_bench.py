"""Every operation at the sizes of its `ops/<op>.py`: each provider, the definition, its compiled form, and rivals.

    python benchmarks/ops_bench.py                         all operations
    python benchmarks/ops_bench.py --op rope2d infuse      these
    python benchmarks/ops_bench.py --op encoder            a layer of the vision encoder (`encoder_layer.py`)

On a CUDA device times are the device's own (events, warm, cold L2, inputs in turn, calls in turn). Without one the
definition and providers for the CPU are timed by the wall clock, in float32. Beside every time stands the error of the
same call, and the percentage of what a copy and a matrix product reach in the same run; where the error exceeds its
limit there is neither a percentage nor a speed-up, and the exit status is 1, as it is where one of our own providers
fails other than by declining.

Every operation's first case comes first, then their second ones and so on: with --seconds what is measured by then is
kept. The definition compiled by torch (--compiled) takes minutes to compile for all cases. `report.py --compare` sets
two results side by side.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pixelrefer_fast.bench.measure import power, rates, timing
from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.run import ops
from pixelrefer_fast.bench.run.cases import Case

FOLDER = Path(__file__).resolve().parent
ENCODER = "encoder"  # no operation, but measured like one where it is asked for


def op_files() -> dict[str, Path]:
    """The benchmark file of every operation."""
    return {p.stem: p for p in sorted((FOLDER / "ops").glob("*.py"))}


def load_cases(name: str) -> list[Case]:
    """The cases of an operation's benchmark file, or of the encoder's."""
    path = FOLDER / "encoder_layer.py" if name == ENCODER else op_files()[name]
    spec = importlib.util.spec_from_file_location(f"bench_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return list(module.cases())


def benchmark(
    names: Sequence[str],
    device: torch.device,
    repeats: int,
    smoke: bool,
    compiled: bool = False,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Measure the smoke cases of these operations or all others; after `seconds` no further case is begun."""
    clock: timing.Clock = timing.WallClock()
    reached: dict[str, float] = {}
    if not smoke:
        clock = timing.clock(device)
        reached = rates.measured(device, *([] if device.type == "cuda" else [[torch.float32]]))
    until = time.monotonic() + seconds
    rows: list[results.Row] = []
    left_out: list[str] = []
    cases: dict[str, list[Case]] = {}
    for name in names:
        try:
            cases[name] = [case for case in load_cases(name) if case.smoke == smoke]
        except ImportError as error:  # a lent machine: its inputs need what is not there, and the others go on
            left_out.append(f"{name} ({error})")
    longest = max(map(len, cases.values()), default=0)
    with power.watching(device) as watch:
        for case in (own[i] for i in range(longest) for own in cases.values() if i < len(own)):
            for dtype in ops.floats(case, device):
                described = f"{case.op}: {case.name}, {str(dtype).removeprefix('torch.')}"
                if time.monotonic() > until:
                    left_out.append(f"{described} (no time)")
                    continue
                try:
                    with torch.inference_mode():
                        rows += ops.measure(case, dtype, device, repeats, clock, compiled)
                except torch.OutOfMemoryError:  # of the definition in float64, which all are judged by
                    left_out.append(f"{described} (no memory)")
                print(described, file=sys.stderr, flush=True)
    rows.sort(key=lambda row: names.index(row["extra"]["op"]))
    more = {"measured_on": device.type, "left_out": left_out, "power": watch.facts()}
    return results.document("small_ops" if smoke else "ops", rows, reached, **more)


HEADINGS = ("operation and case", "dtype", "by", "µs", "µs to issue", "speed-up", "error", "copy rate", "matrix rate")


def table(result: Mapping[str, Any]) -> Iterator[list[str]]:
    """A line for each case and candidate, as text."""
    plain = {(r["case"], r["dtype"]): r for r in result["rows"] if r["by"] == ops.DEFINITION}
    for row in result["rows"]:
        start = [row["case"], row["dtype"], row["by"]]
        partial = row["extra"].get("partial")
        if partial:
            start[-1] += f" ({partial})"
        if "seconds" not in row:
            yield [*start, f"not run: {row['reason']}" if "reason" in row else "", "", "", "", "", ""]
            continue
        by = results.speedup(row, plain.get((row["case"], row["dtype"]), row))
        speed = "" if row["by"] == ops.DEFINITION else f"{by:.1f}x" if by else "none: wrong" if not row["ok"] else ""
        error = "not checked" if "error" not in row else "none" if row["error"] is None else f"{row['error']:.1e}"
        on_device = result["device"] is not None and "host_seconds" in row
        issue = f"{row['host_seconds']['median'] * 1e6:.1f}" if on_device else ""
        parts = [f"{row[name]:.0f} %" if name in row else "" for name in ("percent_copy", "percent_matrix")]
        yield [*start, _spread(row["seconds"]), issue, speed, error, *parts]


def _spread(values: Mapping[str, float]) -> str:
    low, middle, high = (values[key] * 1e6 for key in ("q10", "median", "q90"))
    digits = 1 if middle < 100 else 0
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def markdown(result: Mapping[str, Any]) -> str:
    """The page for docs/, made from a result."""
    device, reached = result["device"], result["rates"]
    where = f"{result['cpu']}, {result['threads']} threads, no GPU"
    if device is not None:
        where = f"{device['name']}, driver {device['driver']}"
    where += "".join(
        f", copy {rate / 1e9:,.0f} GB/s" if name == "copy" else f", {name} {rate / 1e12:,.2f} TFLOP/s"
        for name, rate in reached.items()
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

{tables.markdown(HEADINGS, list(table(result)))}"""


def verdicts(rows: Sequence[results.Row]) -> tuple[int, int, int, int]:
    """How many are right and wrong, how many of our own fail to run, and how many are not for this machine."""
    right = sum(row["ok"] for row in rows)
    broken = sum("broken" in row["extra"] for row in rows)
    not_run = sum("reason" in row for row in rows) - broken
    return right, len(rows) - right - broken - not_run, broken, not_run


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", nargs="+", choices=[*sorted(op_files()), ENCODER], metavar="OP", help="only these")
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
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    if options.json:
        try:
            results.check_path(options.json)
        except ValueError as error:
            parser.error(f"--json: {error}")
    names = options.op or sorted(op_files())
    device = torch.device(options.device)
    result = benchmark(names, device, options.repeats, options.smoke, options.compiled, options.seconds)
    if options.json:
        results.append(options.json, result)
    if options.markdown:
        options.markdown.write_text(markdown(result), encoding="utf-8")
    tables.terminal("operations", HEADINGS, list(table(result)))
    for described in result["left_out"]:
        print(f"left out: {described}")
    right, wrong, broken, not_run = verdicts(result["rows"])
    print(f"{right} right, {wrong} wrong, {broken} broken, {not_run} not run, {len(result['left_out'])} cases left out")
    return 1 if wrong or broken else 0


if __name__ == "__main__":
    sys.exit(main())
