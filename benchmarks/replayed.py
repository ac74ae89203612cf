"""Recorded cases of the reference, replayed by every backend: the rows of `pixelrefer-fast verify` in one document.

    python benchmarks/replayed.py --device cuda --json PATH               the cases that ship
    python benchmarks/replayed.py --device cuda --golden DIR --json PATH  those of the folders lite and full in DIR, too

In float32 by each backend that serves anything here; in 16 bits by the backend that requests get ("auto"). On a CPU
Triton's kernels are left out, unless TRITON_INTERPRET=1 has them interpreted. The exit status is 1 if a case does not
hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from pixelrefer_fast import ops
from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.report.results import Row
from pixelrefer_fast.verify.replay import verify

LOW = ("bfloat16", "float16")
Run = tuple[str, str]  # backend, dtype


def runs(device: str) -> Iterator[Run]:
    """Who replays, and in what."""
    for backend in ("auto", *ops.BACKENDS[1:]):
        try:
            ops.check_backend(backend)
        except ops.BackendError as error:
            print(f"left out: {error}")
        else:
            yield backend, "float32"
    if device == "cuda":
        yield from (("auto", dtype) for dtype in LOW)


def replayed(folder: Path | None, run: Run, device: str) -> list[Row]:
    """A row for each case of a folder, None for those that ship."""
    backend, dtype = run
    report = verify(folder, backend, device, dtype, lambda name: print(f"{name}, {backend}, {dtype}", file=sys.stderr))
    rows: list[Row] = []
    for case in report["cases"]:
        # each as a part of what it may be, so that stages compare: above 1 it does not hold
        parts = [s["error"] / s["limit"] for s in case["stages"].values() if s["error"] is not None and s["limit"]]
        failed = [stage for stage, found in case["stages"].items() if not found["ok"]]
        name = case["name"] if folder is None else f"{folder.name}/{case['name']}, recorded"
        rows.append(
            {
                "suite": "verify",
                "case": name,
                "by": backend,
                "dtype": dtype,
                "ok": case["ok"],
                "error": max(parts, default=0.0),
                "limit": 1.0,
                "extra": {"failed": failed},
            }
        )
    return rows


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and lines, one for each backend and dtype, as text."""
    lines = []
    for by, dtype in dict.fromkeys((row["by"], row["dtype"]) for row in rows):
        own = [row for row in rows if (row["by"], row["dtype"]) == (by, dtype)]
        failed = [f"{row['case']} ({', '.join(row['extra']['failed'])})" for row in own if not row["ok"]]
        errors = [row["error"] for row in own if row["error"] is not None]
        largest = f"{max(errors):.2f}" if len(errors) == len(own) else "not finite"
        lines.append([f"{by}, {dtype}", str(len(own) - len(failed)), str(len(own)), largest, "; ".join(failed)])
    return ["", "hold", "of", "largest error, of what it may be", "do not hold"], lines


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where (default: cuda)")
    parser.add_argument("--golden", type=Path, metavar="DIR", help="folders lite and full of recorded cases")
    parser.add_argument("--json", type=Path, metavar="PATH", help="result file to append to")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: there is no CUDA device")
    folders: list[Path | None] = [None]
    if options.golden is not None:
        folders += [options.golden / kind for kind in ("lite", "full")]
    try:
        rows = [
            row for run in runs(options.device) for folder in folders for row in replayed(folder, run, options.device)
        ]
    except ValueError as error:
        parser.error(str(error))
    if options.json:
        results.append(options.json, results.document("verify", rows, measured_on=options.device))
    tables.terminal("recorded cases", *table(rows))
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
