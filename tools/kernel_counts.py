#!/usr/bin/env python
"""Count what every kernel does as it runs, in the emulator of emulator/; no device is needed.

    python tools/kernel_counts.py                    check: what `make counts` runs
    python tools/kernel_counts.py --update           and write docs/kernels/counts.json and resources.md
    python tools/kernel_counts.py infuse add_norm    of these operations only, and print their tables
    python tools/kernel_counts.py infuse --shape rows=576 objects=4 --dtype bfloat16
    python tools/kernel_counts.py --calls FILE       of a question's calls: `pixelrefer-fast profile --calls FILE`
    python tools/kernel_counts.py --listed           count nothing: is the table that of the kernels as they are?

Counted are instructions, barriers, matrix products, waits for loads that were asked for just before, sectors of global
memory and wavefronts of shared memory, of one call of each operation in every shipped configuration (`CALLS`); the
README of emulator/ says how. They are the same each time, so one that grew is refused; what is worse on purpose is
written with `--update --accept-worse` and shows in the table's diff. Numbers of another Triton version are compared
with none of this one. What moves more than the rules allow of the ideal (`tools/load_rules.py`) is refused too, but for
what `docs/kernels/loads.json` names, which is held to its numbers.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import compile_check
import count_tables
import known_loads
import load_rules
from count_tables import CountRow

REPOSITORY = Path(__file__).resolve().parent.parent
ARCHITECTURES = (80, 90)
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
COUNTED = ("bfloat16", "float32")  # float16 is compiled as bfloat16 is

# Sizes of each operation's calls (`pixelrefer_fast/bench/run/arguments.py`), small ones that reach every shipped
# configuration in these types and every loop; `coverage` finds what they miss.
BOTH, HALF, SINGLE = COUNTED, COUNTED[:1], COUNTED[1:]
CALLS: dict[str, list[tuple[dict[str, Any], tuple[str, ...]]]] = {
    "add_norm": [({"rows": 8, "width": width}, BOTH) for width in (256, 1152, 4096)],
    "best_token": [({"rows": 2, "vocabulary": 3000, "said": 20}, BOTH)],
    "rope2d": [({"patches": 24}, BOTH)],
    "object_pool": [
        ({"patches": 57}, BOTH),
        ({"patches": 30, "tokens": 16}, BOTH),
        ({"patches": 150}, HALF),
        ({"patches": 40, "corners": 4}, HALF),
    ],
    "infuse": [
        ({"rows": 80, "tokens": 4, "width": 288, "heads": 2}, BOTH),  # folded, as the next two
        ({"rows": 80, "tokens": 4, "width": 128, "heads": 2}, BOTH),
        ({"rows": 80, "tokens": 4, "width": 512, "heads": 2}, SINGLE),
        ({"rows": 40, "objects": 8, "tokens": 16, "width": 288, "heads": 2}, BOTH),  # projected
        ({"rows": 24, "objects": 8, "tokens": 16, "width": 128, "heads": 2}, HALF),  # likewise
    ],
    "varlen_attention": [
        *(({"keys": 80, "heads": 2, "head": head, "causal": c}, HALF) for head in (72, 128, 160) for c in (0, 1)),
        ({"keys": 48, "heads": 2, "head": 72, "causal": 0}, SINGLE),
        *(({"keys": 48, "heads": 2, "head": 128, "causal": c}, SINGLE) for c in (0, 1)),
    ],
    "paged_attention": [({"lengths": 150, "heads": 4, "groups": 1, "head": head}, BOTH) for head in (128, 256)],
    "norm_linear": [
        *(({"rows": rows, "width": 200, "made": 33}, HALF) for rows in (8, 20, 40)),
        ({"rows": 20, "width": 72, "made": 17}, SINGLE),
    ],
    "swiglu": [
        *(({"rows": rows, "width": 200, "inner": 33}, HALF) for rows in (8, 20, 40)),
        ({"rows": 20, "width": 72, "inner": 17}, SINGLE),
    ],
    "view_patches": [({"height": 60, "width": 80}, HALF)],
}


@dataclass(frozen=True)
class CountedCall:
    """A call to count: of an operation, for people, with its sizes and type, or a number in a file of calls."""

    op: str
    shown: str
    sizes: dict[str, Any]
    dtype: str
    arch: int
    file: Path | None = None
    number: int = 0


def calls_of(ops: Sequence[str], arches: Sequence[int]) -> list[CountedCall]:
    """The calls that the table is of."""
    unknown = [op for op in ops if op not in CALLS]
    if unknown:
        raise SystemExit(
            f"kernel-counts: expected operations of CALLS in {__file__}, got none for {', '.join(unknown)}"
        )
    return [
        CountedCall(op, f"{_sizes(sizes)}, {DTYPES[dtype]}", sizes, dtype, arch)
        for op in ops
        for sizes, dtypes in CALLS[op]
        for dtype in dtypes
        for arch in arches
    ]


def _sizes(sizes: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sizes.items())


def count(call: CountedCall) -> list[CountRow]:
    """The kernels that a call launches; in a process of its own architecture."""
    import torch

    from pixelrefer_fast.bench.profile.calls import load
    from pixelrefer_fast.bench.profile.counted import counts_of
    from pixelrefer_fast.bench.run import arguments
    from pixelrefer_fast.ops import registry

    device = torch.device("cpu")
    if call.file is None:
        given = arguments.make(call.op, device, getattr(torch, call.dtype), call.sizes)
    else:
        given = load(call.file)[call.number].make(device)
    # torch begins tensors at multiples of 64 bytes, NumPy at any of 16: sectors must not depend on it
    given = tuple(x.clone() if isinstance(x, torch.Tensor) and x.is_contiguous() else x for x in given)
    found = counts_of(registry()[call.op], given)
    return [CountRow(call=call.shown, arch=call.arch, **asdict(counts)) for counts in found]


def install(arch: int) -> None:
    """Triton's device is the emulator from now on."""
    from pixelrefer_fast.bench.profile import counted

    counted.install(arch)


def count_all(calls: Sequence[CountedCall], workers: int) -> list[list[CountRow]]:
    """Each call's rows. Triton has one device a process, so each architecture has processes of its own."""
    found: dict[int, list[CountRow]] = {}
    start = multiprocessing.get_context("spawn")
    for arch in sorted({call.arch for call in calls}):
        which = [i for i, call in enumerate(calls) if call.arch == arch]
        with ProcessPoolExecutor(workers, start, initializer=install, initargs=(arch,)) as pool:
            found |= dict(zip(which, pool.map(count, [calls[i] for i in which]), strict=True))
    return [found[i] for i in range(len(calls))]


def coverage(ops: Sequence[str], rows: Sequence[CountRow]) -> Iterator[str]:
    """Shipped configurations that no counted call has reached."""
    counted = [(row.kernel, set(row.configuration.split(", "))) for row in rows]
    for op in ops:
        for device, name, entry in compile_check.shipped_entries(op):
            wanted = {f"{k}={v}" for k, v in entry.items() if k != "upto"}
            kernel = f"{op}.{name}"
            if device == "default" and not any(k == kernel and wanted <= have for k, have in counted):
                yield f"{kernel} in the configuration {entry}: no call of CALLS in tools/kernel_counts.py reaches it"


def sources() -> dict[str, str]:
    """Of each kernel file and its configurations a hash; comments and layout do not count."""
    found = {}
    for path in compile_check.kernel_files():
        digest = hashlib.sha256()
        for part in _with_parts(path):
            digest.update(ast.unparse(ast.parse(part.read_text(encoding="utf-8"))).encode())
        for config in sorted((compile_check.KERNELS / "configs" / path.stem).glob("default.json")):
            digest.update(config.read_bytes())
        found[path.stem] = digest.hexdigest()[:16]
    return found


def _with_parts(path: Path) -> list[Path]:
    """A kernel file and what it takes from the private files beside it, of how all are launched nothing."""
    found = [path]
    for file in found:
        names = re.findall(r"^from pixelrefer_fast\.kernels\.(_\w+) import", file.read_text(encoding="utf-8"), re.M)
        parts = (file.with_name(f"{name}.py") for name in names if name != "_launch")
        found += [part for part in parts if part not in found]
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ops", nargs="*", help="operations (default: all that have kernels)")
    parser.add_argument("--table", type=Path, default=compile_check.BASELINE.with_name("counts.json"), help="committed")
    parser.add_argument("--update", action="store_true", help="write the table unless something is refused")
    parser.add_argument("--accept-worse", action="store_true", help="let --update write larger numbers")
    parser.add_argument("--listed", action="store_true", help="count nothing, compare the table's sources")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--shape", nargs="+", metavar="NAME=N", help="sizes of one operation instead of the table's")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bfloat16", help="with --shape")
    parser.add_argument("--calls", type=Path, metavar="FILE", help="what `pixelrefer-fast profile --calls FILE` wrote")
    parser.add_argument("--json", action="store_true", help="with --shape or --calls: rows as JSON, a line each")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    os.environ["TRITON_INTERPRET"] = "0"
    import triton

    if options.calls or options.shape:
        return _print_rows(options, parser)
    stems = [path.stem for path in compile_check.kernel_files()]
    ops = options.ops or stems
    version, listed, before = count_tables.read(options.table)
    if options.listed:
        now = sources()
        lines = [f"changed: {stem} (make counts UPDATE=1)" for stem in stems if listed.get(stem) != now[stem]]
        return _report(lines, f"the table is of the {len(stems)} kernel files as they are")

    def covered(kernel: str, place: str) -> bool:
        return kernel.split(".")[0] in ops and int(place.rpartition("_")[2]) in options.arch

    rows = [row for own in count_all(calls_of(ops, options.arch), options.workers) for row in own]
    if options.ops:
        print("\n".join(_tables(rows)))
    rows = [row.without_lines() for row in rows]
    lines = list(coverage(ops, rows))
    comparable = version == triton.__version__
    known = {row.key: row for row in before}
    if comparable and not options.accept_worse:
        lines += [line for row in rows if row.key in known for line in count_tables.worse(row, known[row.key])]
    loads = options.table.with_name(known_loads.NAME)
    held = known_loads.read(loads) if comparable and loads.is_file() else None
    moved = known_loads.Found(tuple(load_rules.MOST), covered, _broken(rows))
    if held is not None and not options.accept_worse:
        lines += known_loads.refused(held, moved)
    mine = {row.key for row in rows}
    chosen = [r for r in before if covered(r.kernel, f"sm_{r.arch}")]
    if options.update and not lines:
        kept = [r for r in before if comparable and r not in chosen and r.key not in mine]
        everything = sorted([*kept, *rows], key=lambda row: row.kernel)
        hashes = {stem: h for stem, h in sources().items() if stem in ops} if comparable else sources()
        if held is not None:
            known_loads.write(loads, known_loads.merged(held, moved))
        count_tables.write(options.table, triton.__version__, (listed if comparable else {}) | hashes, everything)
        compile_check.write_page(compile_check.BASELINE)
    elif not options.update and not comparable:
        print(f"the table is of Triton {version or 'nothing'}, this is {triton.__version__}: no numbers compared")
    elif not options.update and not lines:
        lines += [f"changed: {row} (make counts UPDATE=1)" for row in rows if known.get(row.key) != row]
        lines += [f"no call is so any more: {row}" for row in chosen if row.key not in mine]
        lines += known_loads.outdated(held or [], moved)
    return _report(lines, f"{len(rows)} kernels counted in {len(ops)} operations' calls: none worse")


def _broken(rows: Sequence[CountRow]) -> dict[tuple[str, str, str], dict[str, float]]:
    """By kernel, element type and rule of loads, in which call how many times the ideal."""
    return known_loads.gather(
        ((row.kernel, load_rules.dtype_of(row.call), rule), f"{row.call}, sm_{row.arch}", times)
        for row in rows
        for rule, times in load_rules.count(row).items()
    )


def _print_rows(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Tables of calls that are no part of the committed one."""
    from pixelrefer_fast.bench.profile.calls import load
    from pixelrefer_fast.bench.profile.run_kernel import parsed_sizes

    calls = []
    if options.calls:
        with_kernels = {path.stem for path in compile_check.kernel_files()}
        for number, call in enumerate(load(options.calls)):
            if call.op in with_kernels and (not options.ops or call.op in options.ops):
                shown = f"{call.name}, {call.times}x"
                calls += [CountedCall(call.op, shown, {}, "", arch, options.calls, number) for arch in options.arch]
    else:
        if len(options.ops) != 1:
            parser.error(f"--shape: expected one operation, got {len(options.ops)}")
        sizes = parsed_sizes(options.shape)
        shown = f"{_sizes(sizes)}, {DTYPES[options.dtype]}"
        calls = [CountedCall(options.ops[0], shown, sizes, options.dtype, arch) for arch in options.arch]
    rows = [row for own in count_all(calls, options.workers) for row in own]
    print(
        "\n".join(json.dumps(asdict(row.without_lines())) for row in rows) if options.json else "\n".join(_tables(rows))
    )
    return 0


def _tables(rows: Sequence[CountRow]) -> list[str]:
    text: list[str] = []
    for kernel in dict.fromkeys(row.kernel for row in rows):
        text += [f"\n## {kernel}\n", *count_tables.table([row for row in rows if row.kernel == kernel])]
    return text


def _report(lines: Sequence[str], fine: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    print(f"kernel-counts: {len(lines)} faults" if lines else f"kernel-counts: {fine}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
