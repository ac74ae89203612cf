#!/usr/bin/env python
"""Is the emulator to be trusted? Each kernel's PTX without one barrier, wait or fence, or with one operand moved.

    python tools/mutate_kernels.py                        try all mutants; writes docs/kernels/mutations.md
    python tools/mutate_kernels.py object_pool --arch 80  of these operations only, and print what survives

A mutant is noticed by a check (a fault or a finding) or by its results. What is not noticed is a survivor and has to be
explained: by what the kernel itself did (`mutants.Trace`), or by hand in `KNOWN`. One without an explanation fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile_check import kernel_files
from kernel_counts import install

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "emulator"))
from mutants import SURVIVED, Trial

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "kernels" / "mutations.md"
ARCHITECTURES = (80, 90)
MOVED = 4  # operands of each kind that are moved, in a kernel

# One call of each operation: sizes of `pixelrefer_fast/bench/run/arguments.py` that fill blocks, so that what is moved
# counts, and that go round every loop often enough for its pipeline to be full; a number is one of its samples.
CALLS: dict[str, list[tuple[dict[str, Any] | int, str]]] = {
    "add_norm": [({"rows": 2, "width": 1024}, "bfloat16")],
    "rope2d": [({"patches": 16, "heads": 2}, "bfloat16")],
    "object_pool": [
        ({"patches": 128, "width": 128, "iterations": 2}, "bfloat16"),
    ],
    "infuse": [({"rows": 320, "width": 512, "heads": 2, "tokens": 64}, "bfloat16")],
    "varlen_attention": [({"keys": 208, "heads": 1, "head": 80}, "bfloat16")],
    "paged_attention": [({"lengths": 192, "heads": 16, "groups": 1, "head": 128}, "bfloat16")],
    "view_patches": [(0, "float32")],
}


@dataclass(frozen=True)
class Result:
    """One mutant: of which kernel, what was changed where, and what noticed it."""

    kernel: str
    arch: int
    dtype: str
    what: str
    source: str
    text: str
    by: str
    why: str


def try_call(op: str, sizes: dict[str, Any] | int, dtype: str, arch: int) -> list[Result]:
    """All mutants of the kernels that a call launches; in a process of that architecture."""
    import torch

    from pixelrefer_fast.bench.run import arguments
    from pixelrefer_fast.device.launches import listen
    from pixelrefer_fast.ops import registry

    operation, kind = registry()[op], getattr(torch, dtype)
    if isinstance(sizes, int):
        given = list(operation.samples(torch.Generator().manual_seed(0), kind))[sizes]
    else:
        given = arguments.make(op, torch.device("cpu"), kind, sizes)
    names: list[str] = []
    listening = listen(lambda launch: names.append(launch.kernel))
    with torch.inference_mode(), listening, Trial(MOVED, lambda: names[-1]) as trial:
        operation(*given, backend="triton")
    return [
        Result(
            kernel,
            arch,
            dtype,
            o.mutant.what,
            o.mutant.instruction.source,
            o.mutant.instruction.text,
            o.by,
            o.message,
        )
        for kernel, outcomes in trial.outcomes.items()
        for o in outcomes
    ]


# survivors that were looked into by hand: kernel, kind of change -> why it makes no difference
UNREAD = "it concerns copies past the last turn of the loop, which nobody reads"
KNOWN = {
    ("infuse.scores", "wait for copies removed"): UNREAD,
    ("infuse.weighted_sum", "wait for copies removed"): UNREAD,
    ("varlen_attention.attention", "wait for copies removed"): UNREAD,
    ("varlen_attention.attention", "end of a group of copies removed"): UNREAD,
    ("varlen_attention.attention", "barrier of a warp removed"): "not seen: lanes of a warp run together here",
    ("object_pool.cluster", "fence between proxies removed"): (
        "the second of two products reads the shared memory that a fence before the first has shown already"
    ),
}


def explained(result: Result) -> str:
    """Why a survivor makes no difference, "" where nobody knows."""
    return result.why or KNOWN.get((result.kernel, result.what), "")


def page(results: Sequence[Result], commit: str) -> str:
    """docs/kernels/mutations.md, of the kernels of a commit."""
    survivors = [r for r in results if r.by == SURVIVED]
    unknown = sum(not explained(r) for r in survivors)
    lines = [
        "# Mutations",
        "",
        "Made by `python tools/mutate_kernels.py`; do not edit. One instruction of a kernel's PTX is changed: a",
        "barrier, a wait or a fence is removed, or an operand is moved (an address of shared memory by 16 bytes, two",
        f"registers of A exchanged; at most {MOVED} of each kind in a kernel). Of {len(results)} mutants",
        f"{len(results) - len(survivors)} are noticed, by a check or by their results; {len(survivors)} are not, and",
        f"what they changed is listed below, with the reason why it makes no difference ({unknown} are not explained).",
        *_missing(results),
        "",
        f"The kernels are those of {commit}.",
        "",
        "| kernel | for | type | change | mutants | noticed by | survive |",
        "| :--- | ---: | :--- | :--- | ---: | :--- | ---: |",
    ]
    groups: dict[tuple[str, int, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.arch, result.dtype, result.what), []).append(result)
    for (kernel, arch, dtype, what), own in sorted(groups.items()):
        by = Counter(r.by for r in own)
        noticed = ", ".join(f"{name} {count}" for name, count in sorted(by.items()) if name != SURVIVED) or "none"
        lines.append(f"| {kernel} | sm_{arch} | {dtype} | {what} | {len(own)} | {noticed} | {by[SURVIVED]} |")
    lines += ["", "## Survivors", "", "| kernel | for | change | where | why |", "| :--- | ---: | :--- | :--- | :--- |"]
    for (kernel, arch, what, source, why), count in sorted(
        Counter((r.kernel, r.arch, r.what, r.source, explained(r) or "not explained") for r in survivors).items()
    ):
        times = f", {count} times" if count > 1 else ""
        lines.append(f"| {kernel} | sm_{arch} | {what}{times} | {source.rsplit(':', 1)[0]} | {why} |")
    return "\n".join(lines) + "\n"


def _missing(results: Sequence[Result]) -> list[str]:
    """A sentence on what was not tried, if anything was not."""
    tried = {(r.kernel.split(".")[0], r.arch) for r in results}
    every = [(path.stem, arch) for path in kernel_files() for arch in ARCHITECTURES]
    missing = [f"{op} for sm_{arch}" for op, arch in every if (op, arch) not in tried]
    return ["", f"Not tried: {', '.join(missing)}."] if missing else []


def _try(job: tuple[str, dict[str, Any] | int, str, int]) -> list[Result]:
    return try_call(*job)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ops", nargs="*", choices=[[], *CALLS], help="operations (default: all)")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    os.environ["TRITON_INTERPRET"] = "0"
    results: list[Result] = []
    for arch in options.arch:
        jobs = [(op, sizes, dtype, arch) for op in options.ops or CALLS for sizes, dtype in CALLS[op]]
        start = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(options.workers, start, initializer=install, initargs=(arch,)) as pool:
            results += [result for own in pool.map(_try, jobs) for result in own]
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    if options.ops or set(options.arch) != set(ARCHITECTURES):
        print(page(results, commit))
    else:
        PAGE.write_text(page(results, commit), encoding="utf-8")
    unexplained = [r for r in results if r.by == SURVIVED and not explained(r)]
    for r in unexplained:
        print(f"{r.kernel} on sm_{r.arch}: {r.what} at {r.source} is not noticed: {r.text}", file=sys.stderr)
    print(f"mutate-kernels: {len(results)} mutants, {len(unexplained)} survive without an explanation")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
