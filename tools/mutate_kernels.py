#!/usr/bin/env python
"""Is the emulator to be trusted? Each kernel's PTX without one barrier, wait or fence, or with one operand moved.

    python tools/mutate_kernels.py                        try all mutants; writes docs/kernels/mutations.{json,md}
    python tools/mutate_kernels.py object_pool --arch 80  of these operations only; the others stay as they are there
    python tools/mutate_kernels.py infuse --unexplained   survivors without a reason only: after a call was added
    python tools/mutate_kernels.py --page                 try none; write the page again

A mutant is noticed by a check (a fault or a finding) or by its results. What is not noticed is a survivor and has to be
explained: by what the kernel itself did (`mutant_traces.Trace`), or by hand in `KNOWN`. One without an explanation
fails.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compile_check import kernel_files
from emulate import commit
from kernel_counts import install

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "emulator"))
from mutants import SURVIVED, Mutant, Trial

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "kernels" / "mutations.md"
TABLE = PAGE.with_suffix(".json")
ARCHITECTURES = (80, 90)
MOVED = 4  # operands of each kind that are moved, in a kernel
Place = tuple[str, str, str, str, str]  # kernel, dtype, kind of change, source, text of the instruction

# Calls of each operation: sizes of `pixelrefer_fast/bench/run/arguments.py`. The first of a type fills blocks, so that
# what is moved counts, and goes round every loop often enough for its pipeline to be full; with the others survivors
# are tried again: they end elsewhere, and reach what the first does not. `infinite` is a place in the first argument,
# `sample` stands for one of the operation's own samples, and `mixed` is a seed that the first argument is drawn from:
# of patches that lie in no heaps any change of a distance may change labels. `shifted` is where such patches lie, a
# tenth as far apart: their distances are in the last digits of their inner products. With `turned` the
# first patches start the last clusters.
CALLS: dict[str, list[tuple[dict[str, Any], str]]] = {
    "add_norm": [({"rows": 2, "width": 1024}, dtype) for dtype in ("bfloat16", "float32")],
    "best_token": [
        ({"rows": 2, "vocabulary": 3000, "said": 20} | more, dtype)
        for dtype in ("bfloat16", "float32")
        for more in ({}, {"infinite": 40}, {"infinite": 300})
    ],
    "rope2d": [({"patches": 16, "heads": 2}, dtype) for dtype in ("bfloat16", "float32")],
    "object_pool": [
        ({"patches": 128, "width": 128, "iterations": 2, "mixed": 1}, "bfloat16"),
        ({"patches": 128, "width": 128, "iterations": 3, "mixed": 2}, "bfloat16"),
        ({"patches": 100, "width": 128, "iterations": 2, "tokens": 16, "mixed": 1}, "bfloat16"),
        ({"patches": 30, "width": 128, "iterations": 2, "tokens": 16, "mixed": 1}, "bfloat16"),  # in a tile
        ({"patches": 30, "width": 128, "iterations": 2, "tokens": 16, "mixed": 2, "shifted": 4}, "bfloat16"),
        ({"patches": 32, "width": 128, "iterations": 2, "tokens": 16, "mixed": 1, "turned": 1}, "bfloat16"),
        ({"patches": 30, "width": 64, "iterations": 2, "tokens": 16, "mixed": 1}, "float32"),
        ({"patches": 100, "width": 64, "iterations": 2, "tokens": 16, "mixed": 1}, "float32"),
    ],
    "infuse": [
        ({"rows": 320, "width": 512, "heads": 2, "tokens": 64}, "bfloat16"),  # projected
        ({"rows": 80, "width": 128, "heads": 2, "tokens": 4}, "bfloat16"),  # folded
        ({"rows": 128, "width": 128, "heads": 2, "tokens": 32}, "bfloat16"),  # folded, and no block is half empty
        ({"rows": 80, "width": 128, "heads": 2, "tokens": 4}, "float32"),
        ({"rows": 128, "width": 128, "heads": 2, "tokens": 32}, "float32"),
    ],
    "varlen_attention": [
        ({"keys": 208, "heads": 1, "head": 80}, "bfloat16"),
        ({"keys": 48, "heads": 1, "head": 80}, "bfloat16"),
        ({"keys": 255, "heads": 1, "head": 80}, "bfloat16"),
        ({"keys": 80, "heads": 1, "head": 80}, "float32"),
        ({"keys": 127, "heads": 1, "head": 80}, "float32"),
    ],
    "paged_attention": [
        ({"lengths": 192, "heads": 16, "groups": 1, "head": 128}, "bfloat16"),
        ({"lengths": 300, "heads": 16, "groups": 1, "head": 128}, "bfloat16"),
        ({"lengths": 300, "heads": 16, "groups": 1, "head": 128}, "float32"),
    ],
    "norm_linear": [
        ({"rows": 8, "width": 200, "made": 33}, "bfloat16"),
        ({"rows": 20, "width": 72, "made": 17}, "float32"),
    ],
    "swiglu": [
        ({"rows": 8, "width": 200, "inner": 33}, "bfloat16"),
        ({"rows": 20, "width": 72, "inner": 17}, "float32"),
    ],
    "view_patches": [({"sample": n}, "float32") for n in range(2)],
}


SET = ("infinite", "mixed", "sample", "shifted", "turned")  # of a call what is no size


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


def try_calls(op: str, dtype: str, arch: int, only: frozenset[Place] | None = None) -> list[Result]:
    """The mutants of the kernels that calls launch, all or those of some places; in a process of that architecture."""
    import torch

    from pixelrefer_fast.bench.run import arguments
    from pixelrefer_fast.device.launches import listen
    from pixelrefer_fast.ops import registry

    operation, kind = registry()[op], getattr(torch, dtype)
    names: list[str] = []

    def wanted(kernel: str, mutant: Mutant) -> bool:
        instruction = mutant.instruction
        return only is None or (kernel, dtype, mutant.what, instruction.source, instruction.text) in only

    listening = listen(lambda launch: names.append(launch.kernel))
    with torch.inference_mode(), listening, Trial(MOVED, lambda: names[-1], wanted=wanted) as trial:
        for sizes, of in CALLS[op]:
            if of != dtype:
                continue
            own = {name: size for name, size in sizes.items() if name not in SET}
            if "sample" in sizes:
                given = list(operation.samples(torch.Generator().manual_seed(0), kind))[sizes["sample"]]
            else:
                given = arguments.make(op, torch.device("cpu"), kind, own)
            if "mixed" in sizes:
                given[0].normal_(generator=torch.Generator().manual_seed(sizes["mixed"]))
            if "turned" in sizes:
                given[5].copy_(given[5].flip(1))
            if "shifted" in sizes:
                given[0].mul_(0.1).add_(sizes["shifted"])
            if "infinite" in sizes:
                given[0].view(-1)[sizes["infinite"]] = float("inf")
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


# survivors that were looked into by hand: kernel, kind of change, where (all of a kernel if "") -> why
RESIZED = "it says whether any view is resized (view_patches.py): where none is, the first resize changes no pixel"
FURTHEST = "it goes into `furthest` alone, the width of a tie: seen only where a distance lies between both widths"
FIRST_SIZES = "sizes of object_pool.py:128, before the first turn, are 0 or 1 and count as 1, whose ever is read"
SAME = "two warps write the same value there, which is no race (emulator/README.md); seen where such writes count"
KNOWN = {
    ("infuse.output", "barrier removed", "_folded.py:169"): SAME,
    ("object_pool.cluster", "ld.shared address moved", "object_pool.py:133"): FURTHEST,
    ("object_pool.cluster", "st.shared address moved", "object_pool.py:124"): FIRST_SIZES,
    ("object_pool.cluster", "st.shared address moved", "standard.py:293"): FIRST_SIZES,
    ("object_pool.cluster", "stmatrix address moved", "object_pool.py:124"): FIRST_SIZES,
    ("varlen_attention.attention", "barrier of a warp removed", ""): "not seen: lanes of a warp run together here",
    ("view_patches.view_patches", "ld.shared address moved", "standard.py:191"): RESIZED,
    ("view_patches.view_patches", "st.shared address moved", "standard.py:191"): RESIZED,
}


def explained(survivor: Survivor) -> str:
    """Why it makes no difference, "" where nobody knows."""
    place = survivor.source.rsplit(":", 1)[0]
    by_hand = (KNOWN.get((survivor.kernel, survivor.what, where), "") for where in (place, ""))
    return survivor.why or next(filter(None, by_hand), "")


# the committed file


def summed(results: Sequence[Result]) -> dict[str, Any]:
    """What is kept of the mutants of an operation: how many by what noticed them, and the survivors."""
    groups: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.kernel, result.dtype, result.what), []).append(result)
    rows = [[*group, dict(sorted(Counter(r.by for r in own).items()))] for group, own in sorted(groups.items())]
    lost = Counter((r.kernel, r.dtype, r.what, r.source, r.text, r.why) for r in results if r.by == SURVIVED)
    return {"rows": rows, "survivors": [[*key, count] for key, count in sorted(lost.items())]}


def places(arch: int, own: dict[str, Any]) -> Counter[Place]:
    """Where the survivors are that nobody has explained, and how many."""
    found: Counter[Place] = Counter()
    for lost in (Survivor(arch, *lost) for lost in own["survivors"]):
        if not explained(lost):
            found[lost.kernel, lost.dtype, lost.what, lost.source, lost.text] += lost.count
    return found


def tried_again(arch: int, own: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """What is kept of an operation, after its survivors without a reason were tried again.

    Raises:
        ValueError: they are not the mutants that survived.
    """
    found = Counter((r.kernel, r.dtype, r.what, r.source, r.text) for r in results)
    if found != places(arch, own):
        wrong = next(iter((found - places(arch, own)) | (places(arch, own) - found)))
        raise ValueError(f"mutants: expected the survivors of the table, got others; try all again, as of {wrong}")
    rows = {(kernel, dtype, what): Counter(by) for kernel, dtype, what, by in own["rows"]}
    for r in results:
        rows[r.kernel, r.dtype, r.what] += Counter({r.by: 1})
        rows[r.kernel, r.dtype, r.what] -= Counter({SURVIVED: 1})
    reasons = [lost for lost in own["survivors"] if explained(Survivor(arch, *lost))]
    return own | {
        "rows": [[*group, dict(sorted(by.items()))] for group, by in rows.items()],
        "survivors": sorted(reasons + summed(results)["survivors"]),
    }


def read(path: Path) -> dict[str, dict[str, Any]]:
    """By operation and architecture ("infuse sm_90") what was tried at which commit; nothing where there is no file."""
    if not path.is_file():
        return {}
    kept: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return kept


def write(path: Path, kept: dict[str, dict[str, Any]]) -> None:
    """A line for each operation and architecture."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(own)}" for name, own in sorted(kept.items()))
    path.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


@dataclass(frozen=True)
class Survivor:
    """A mutant that nothing noticed, or several of one line: where, what was there, and why it makes no difference."""

    arch: int
    kernel: str
    dtype: str
    what: str
    source: str
    text: str
    why: str
    count: int


def survivors(kept: dict[str, dict[str, Any]]) -> list[Survivor]:
    return [Survivor(own["arch"], *lost) for _, own in sorted(kept.items()) for lost in own["survivors"]]


def page(kept: dict[str, dict[str, Any]]) -> str:
    """docs/kernels/mutations.md."""
    lost = survivors(kept)
    tried = sum(count for own in kept.values() for row in own["rows"] for count in row[3].values())
    alive, unknown = sum(s.count for s in lost), sum(s.count for s in lost if not explained(s))
    lines = [
        "# Mutations",
        "",
        "Made by `python tools/mutate_kernels.py`; do not edit. One instruction of a kernel's PTX is changed: a",
        "barrier, a wait or a fence is removed, or an operand is moved (an address of shared memory by 16 bytes, two",
        f"registers of A exchanged). All of the former are tried, and {MOVED} of each kind of the latter in a compiled",
        f"kernel. Of {tried:,} mutants {tried - alive:,} are noticed, by a check or by their results; {alive} are not,",
        f"and are listed below, with the reason why it makes no difference ({unknown} are not explained).",
        *_missing(kept),
        "",
        "| kernel | for | type | change | mutants | noticed by | survive |",
        "| :--- | ---: | :--- | :--- | ---: | :--- | ---: |",
    ]
    for _, own in sorted(kept.items()):
        for kernel, dtype, what, by in own["rows"]:
            noticed = ", ".join(f"{name} {count}" for name, count in by.items() if name != SURVIVED) or "none"
            numbers = f"{sum(by.values())} | {noticed} | {by.get(SURVIVED, 0)}"
            lines.append(f"| {kernel} | sm_{own['arch']} | {dtype} | {what} | {numbers} |")
    lines += ["", "## Survivors", "", "| kernel | for | type | change | where | why |"]
    lines += ["| :--- | ---: | :--- | :--- | :--- | :--- |"]
    same: Counter[tuple[str, ...]] = Counter()
    for s in lost:
        place = s.source.rsplit(":", 1)[0]
        why = explained(s) or "not explained"
        same[s.kernel, f"sm_{s.arch}", s.dtype, s.what, place, why] += s.count
    for (kernel, arch, dtype, what, place, why), count in same.items():
        times = f", {count} times" if count > 1 else ""
        lines.append(f"| {kernel} | {arch} | {dtype} | {what}{times} | {place} | {why} |")
    lines += ["", "## Calls", "", "| operation | for | commit | tried with |", "| :--- | ---: | :--- | :--- |"]
    for name, own in sorted(kept.items()):
        lines.append(f"| {name.split()[0]} | sm_{own['arch']} | {own['commit']} | {'; '.join(own['calls'])} |")
        if "again" in own:
            more = f"survivors without a reason again: {'; '.join(own['again']['calls'])}"
            lines.append(f"| {name.split()[0]} | sm_{own['arch']} | {own['again']['commit']} | {more} |")
    return "\n".join(lines) + "\n"


def _missing(kept: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence on what was not tried, if anything was not."""
    every = [(path.stem, arch) for path in kernel_files() for arch in ARCHITECTURES]
    missing = [f"{op} for sm_{arch}" for op, arch in every if f"{op} sm_{arch}" not in kept]
    return ["", f"Not tried: {', '.join(missing)}."] if missing else []


def _try(job: tuple[str, str, int, frozenset[Place] | None]) -> list[Result]:
    return try_calls(*job)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("ops", nargs="*", choices=[[], *CALLS], help="operations (default: all)")
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--unexplained", action="store_true", help="only survivors of the table without a reason")
    parser.add_argument("--page", action="store_true", help="try none, write the page of what is there")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args(arguments)
    os.environ["TRITON_INTERPRET"] = "0"
    kept = read(TABLE)
    start, tried_at = multiprocessing.get_context("spawn"), commit()
    for arch in () if options.page else options.arch:
        only = {op: frozenset(places(arch, kept[f"{op} sm_{arch}"])) for op in CALLS} if options.unexplained else {}
        jobs = [
            (op, dtype, arch, only.get(op))
            for op in options.ops or CALLS
            for dtype in dict.fromkeys(d for _, d in CALLS[op])
            if not options.unexplained or any(place[1] == dtype for place in only[op])
        ]
        with ProcessPoolExecutor(options.workers, start, initializer=install, initargs=(arch,)) as pool:
            found = list(pool.map(_try, jobs))
        for op in dict.fromkeys(job[0] for job in jobs):
            results = [r for job, own in zip(jobs, found, strict=True) if job[0] == op for r in own]
            calls = [f"{', '.join(f'{k} {v}' for k, v in sizes.items())}, {dtype}" for sizes, dtype in CALLS[op]]
            if options.unexplained:
                own = tried_again(arch, kept[f"{op} sm_{arch}"], results)
                more = [call for call in calls if call not in own["calls"]]
                kept[f"{op} sm_{arch}"] = own | {"again": {"commit": tried_at, "calls": more}}
            else:
                kept[f"{op} sm_{arch}"] = {"arch": arch, "commit": tried_at, "calls": calls} | summed(results)
        write(TABLE, kept)
    PAGE.write_text(page(kept), encoding="utf-8")
    lost = survivors(kept)
    unexplained = [s for s in lost if not explained(s)]
    for s in unexplained:
        where = f"{s.kernel} on sm_{s.arch} in {s.dtype}"
        print(f"{where}: {s.what} at {s.source} is not noticed: {s.text}", file=sys.stderr)
    print(f"mutate-kernels: {sum(s.count for s in lost)} survive, {len(unexplained)} without an explanation")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
