#!/usr/bin/env python
"""The tests of the kernels on what compilers make of them, in the emulator of emulator/: no device is needed.

    python tools/emulate.py         what `make emulate` runs: sm_80 and sm_90 side by side
    python tools/emulate.py --all   every shape, order of warps and rounding; writes docs/kernels/emulated.md
    python tools/emulate.py --page  run nothing: the page of what --all has run until now, and what it has not

A run of tests for one architecture in one mode is a job; its log and its result lie in OUT. `--all` runs all shapes in
lockstep, and in the other modes those that `STRESSED` names. It goes on where it was interrupted: a job is run again
only after a change of what it tests.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "kernels" / "emulated.md"
ARCHITECTURES = ("sm_80", "sm_90")
# on compiled Triton kernels; `kernel` marks what launches one
KERNEL_TESTS = (
    *sorted(f"tests/ops/{p.name}" for p in (ROOT / "tests" / "ops").glob("test_*_kernel.py")),
    "tests/emulator",
)
# on what nvcc makes of csrc/, for both architectures at once; without nvcc they say so and are skipped
CUDA_TESTS = ("tests/emulator/test_csrc.py", "tests/emulator/test_cuda_program.py")
OPERATIONS = tuple(sorted(p.name[5:-10] for p in (ROOT / "tests" / "ops").glob("test_*_kernel.py")))
# what every result depends on, and of each operation, with the files of these folders that they import
SOURCES = ("emulator", "pixelrefer_fast/ops/_*.py")
IMPORTED = ("kernels", "tests/helpers")
SOURCES_OF_AN_OPERATION = (
    "kernels/{0}.py",
    "kernels/configs/{0}",
    "pixelrefer_fast/ops/{0}.py",
    "tests/ops/test_{0}_kernel.py",
)
SOURCES_OF_THE_REST = ("csrc", "kernels", "pixelrefer_fast/ops", "tests/emulator")

# The variables of emulator/ptx_emulator/plugin.py. A mode takes an order of warps and a rounding at once: where warps
# do not race, their order changes no number (the kernels' only atomics count who has arrived, and what is added then is
# added in a fixed order), and a race is a finding however numbers are rounded. So nothing that either would show is
# lost, and half of the runs are saved. Wrapped addresses are looked for besides.
MODES: dict[str, dict[str, str]] = {
    "lockstep": {},
    "forward, tensor cores cut off": {"EMULATE_SCHEDULE": "forward", "EMULATE_ACCUMULATION": "truncating"},
    "reverse, nothing fused": {"EMULATE_SCHEDULE": "reverse", "EMULATE_FUSION": "never"},
    "random order 1, all fused that may be": {
        "EMULATE_SCHEDULE": "random",
        "EMULATE_SEED": "1",
        "EMULATE_FUSION": "always",
    },
    "random order 2, approximate functions low": {
        "EMULATE_SCHEDULE": "random",
        "EMULATE_SEED": "2",
        "EMULATE_APPROXIMATE": "-1",
    },
    "addresses that wrap, approximate functions high": {"EMULATE_WRAPS": "1", "EMULATE_APPROXIMATE": "1"},
}


# Small tests of each operation that reach all its kernels in all types, for pytest's `-k`: where warps take turns and
# results are rounded in another way. Of an operation that is not named all tests are run.
STRESSED = {
    "add_norm": "float64",
    "infuse": "odd",
    "object_pool": "test_labels or half_way or tie_goes",
    "paged_attention": "keys_in_parts or scores_far_apart",
    "rope2d": "definition",
    "varlen_attention": "different_lengths or looks_ahead or large_scores or (large_heads and 144)",
    "view_patches": "samples or second_resize or wrong_plan or black",
}
# operations whose stressed tests are one job: a change of one runs its group again, and a job costs a start of pytest
GROUPS = (("infuse", "object_pool"), tuple(op for op in OPERATIONS if op not in ("infuse", "object_pool")))


@dataclass(frozen=True)
class Job:
    """One run of pytest.

    Attributes:
        name: for people, and of its files.
        tests: paths.
        marks: pytest's `-m`.
        arch, mode: of the emulator, None where tests choose themselves.
        chosen: pytest's `-k`, "" for all.
        operations: whose kernels it tests; none: of everything that is compiled.
    """

    name: str
    tests: Sequence[str]
    marks: str
    arch: str | None = None
    mode: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    chosen: str = ""
    operations: tuple[str, ...] = ()

    @property
    def stem(self) -> str:
        return self.name.replace(" ", "_").replace(",", "")


def quick() -> Iterator[Job]:
    """What `make emulate` runs."""
    for arch in ARCHITECTURES:
        yield _of_kernels(arch, "lockstep", KERNEL_TESTS, "kernel and not gpu and not slow")
    yield Job("csrc", CUDA_TESTS, "not slow")


def every() -> Iterator[Job]:
    """What `make emulate-all` runs."""
    for arch in ARCHITECTURES:
        for op in OPERATIONS:
            yield _of_kernels(arch, "lockstep", (_tests(op),), "kernel and not gpu", (op,))
        yield _of_kernels(arch, "lockstep", ("tests/emulator",), "kernel and not gpu")
    for mode, arch, group in itertools.product([m for m in MODES if m != "lockstep"], ARCHITECTURES, GROUPS):
        yield _of_kernels(arch, mode, [_tests(op) for op in group], "kernel and not gpu", group, _chosen(group))
    yield Job("csrc", CUDA_TESTS, "")


def _tests(op: str) -> str:
    return f"tests/ops/test_{op}_kernel.py"


def _chosen(operations: Sequence[str]) -> str:
    return " or ".join(f"(test_{op}_kernel and ({STRESSED.get(op, 'test_')}))" for op in operations)


def _of_kernels(
    arch: str, mode: str, tests: Sequence[str], marks: str, operations: tuple[str, ...] = (), chosen: str = ""
) -> Job:
    named = f"{arch}, {mode}" + (f", {' '.join(operations)}" if operations else "")
    return Job(named, tests, marks, arch, mode, {"EMULATE": arch, **MODES[mode]}, chosen, operations)


def sources(job: Job) -> str:
    """A hash of all that a job's results depend on."""
    own = [pattern.format(op) for op in job.operations for pattern in SOURCES_OF_AN_OPERATION]
    files: set[Path] = set()
    for pattern in (*SOURCES, *(own or SOURCES_OF_THE_REST)):
        for place in ROOT.glob(pattern):
            files.update(place.rglob("*") if place.is_dir() else [place])
    read = _with_imports(path for path in files if path.suffix in (".py", ".json", ".cu", ".cuh", ".cpp", ".h"))
    digest = hashlib.sha256(f"{job.marks} {job.chosen}".encode())
    for path in sorted(read):
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _with_imports(files: Iterable[Path]) -> set[Path]:
    """Files, and what they import of `IMPORTED`: a helper of other tests makes no run another one."""
    found: set[Path] = set()
    left = list(files)
    while left:
        path = left.pop()
        if path in found:
            continue
        found.add(path)
        if path.suffix == ".py":
            text = path.read_text(encoding="utf-8")
            named = re.findall(r"^ *(?:from|import) (?:pixelrefer_fast\.kernels\.)?(\w+)", text, re.MULTILINE)
            left += (at for name in named for folder in IMPORTED if (at := ROOT / folder / f"{name}.py").is_file())
    return found


def run(job: Job, out: Path) -> dict[str, Any]:
    """Run a job, and keep its log and its result."""
    report = out / f"{job.stem}.report.json"
    report.unlink(missing_ok=True)
    command = [
        str(Path(sys.executable).with_name("pytest")),
        "-q",
        "-p",
        "no:cacheprovider",
        *job.tests,
        "-m",
        job.marks,
        *(("-k", job.chosen) if job.chosen else ()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **job.environment}
    if job.arch is not None:
        command += ["-p", "ptx_emulator.plugin"]
        environment["EMULATE_REPORT"] = str(report)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, ["emulator", os.environ.get("PYTHONPATH", "")]))
    began, digest, tested = time.perf_counter(), sources(job), commit()
    log = out / f"{job.stem}.log"
    with log.open("w", encoding="utf-8") as written:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=written, stderr=subprocess.STDOUT, check=False
        ).returncode
    result: dict[str, Any] = {"name": job.name, "arch": job.arch, "mode": job.mode, "ok": code == 0}
    result |= {"sources": digest, "commit": tested, "operations": list(job.operations)}
    result["seconds"] = round(time.perf_counter() - began)
    if report.is_file():
        result |= json.loads(report.read_text(encoding="utf-8"))
        report.unlink()
    _kept(out, job).write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(f"{'passed' if code == 0 else 'FAILED'}: {job.name}, {result['seconds']} s", flush=True)
    if code:
        print("\n".join(log.read_text(encoding="utf-8").splitlines()[-40:]), flush=True)
    return result


def _kept(out: Path, job: Job) -> Path:
    return out / f"{job.stem}.json"


def commit() -> str:
    """The commit of this checkout, with a mark where files that results depend on differ from it."""
    head = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "csrc", "emulator", "kernels", "pixelrefer_fast", "tests", "tools")
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    told = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout.strip()


def known(job: Job, out: Path) -> dict[str, Any] | None:
    """The result of a job that passed and would be no other one today."""
    kept = _kept(out, job)
    if not kept.is_file():
        return None
    result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return result if result["ok"] and result["sources"] == sources(job) else None


def page(results: Sequence[dict[str, Any]], not_run: Sequence[str] = ()) -> str:
    """docs/kernels/emulated.md, with the names of runs that are missing in it."""
    lines = [
        "# Kernels in the emulator",
        "",
        "Made by `make emulate-all`; do not edit. Each line is a run of the kernels' tests",
        "(`tests/ops/test_*_kernel.py`, `tests/emulator`) on the PTX that Triton makes of them, emulated on a CPU",
        "(`emulator/README.md`). What may be claimed: the compiler's PTX for sm_80 and sm_90 gives the defined results",
        "under a checked memory model.",
        "",
        "In lockstep all tests are run; with other orders of warps and roundings those that `tools/emulate.py` names,",
        "which reach every kernel in every type. A run takes an order and a rounding at once: where warps do not race,",
        "their order changes no number, and a race is a finding however numbers are rounded. A line was made at the",
        "commit that it names; it is made again after a change of what it tests.",
        "",
        "| for | order of warps, permitted rounding | of | tests | skipped | launches | instructions | commit |",
        "| :--- | :--- | :--- | ---: | ---: | ---: | ---: | :--- |",
    ]
    emulated = [r for r in results if "kernels" in r]
    for r in emulated:
        launches, instructions = (sum(k[n] for k in r["kernels"].values()) for n in ("launches", "instructions"))
        tests = f"{r['passed']} passed" + (f", {len(r['failed'])} failed" if r["failed"] else "")
        skipped = sum(r["skipped"].values())
        of = ", ".join(r["operations"]) or "the emulator's own tests"
        counts = f"{skipped} | {launches:,} | {instructions:,} | {r['commit']}"
        lines.append(f"| {r['arch']} | {r['mode']} | {of} | {tests} | {counts} |")
    lines += [
        "",
        *(
            f"{r['name']}, as nvcc compiles it: {'passed' if r['ok'] else 'failed'} at {r['commit']}."
            for r in results
            if not r["arch"]
        ),
    ]
    failed = sorted({test for r in emulated for test in r["failed"]})
    lines += ["", "## Failed", "", *(f"* {test}" for test in failed)] if failed else []
    reasons = sorted({reason for r in emulated for reason in r["skipped"]})
    lines += ["", "## Skipped, and why", "", *(f"* {reason}" for reason in reasons)] if reasons else []
    lines += ["", "## Not run yet", "", *(f"* {name}" for name in not_run)] if not_run else []
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="the long form; writes docs/kernels/emulated.md")
    parser.add_argument("--out", type=Path, default=ROOT / "out" / "emulate", help="logs and results")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="jobs at a time")
    parser.add_argument("--page", action="store_true", help="run nothing: the page of what --all has run until now")
    parser.add_argument("--only", default="", metavar="TEXT", help="jobs whose name holds this; no page is written")
    options = parser.parse_args(arguments)
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    if options.page:
        kept = {job.name: _kept(out, job) for job in every()}
        there = [json.loads(path.read_text(encoding="utf-8")) for path in kept.values() if path.is_file()]
        PAGE.write_text(page(there, [name for name, path in kept.items() if not path.is_file()]), encoding="utf-8")
        return 0
    jobs = [job for job in (every() if options.all else quick()) if options.only in job.name]
    found = {job.name: known(job, out) if options.all else None for job in jobs}
    with ThreadPoolExecutor(options.workers) as pool:
        results = list(pool.map(lambda job: found[job.name] or run(job, out), jobs))
    if options.all and not options.only:
        PAGE.write_text(page(results), encoding="utf-8")
    bad = [result["name"] for result in results if not result["ok"]]
    print(f"emulate: {len(results)} runs, {len(bad)} failed{': ' + '; '.join(bad) if bad else ''}; logs in {out}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
