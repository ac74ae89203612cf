#!/usr/bin/env python
"""Compile every kernel in every shipped launch configuration for sm_80, sm_90 and sm_100, and what a family of devices
has of its own for its members; no device is needed.

    python tools/compile_check.py               check: what `make compile-check` runs
    python tools/compile_check.py --update      and write docs/kernels/resources.{md,json}
    python tools/compile_check.py --listed      compile nothing: is the table that of the kernels as they are?
    python tools/compile_check.py FILE ...      of these kernel files only, and print their table

A kernel is refused where it

* spills: any byte of local memory a thread, which an array that is indexed at run time takes as well. With another
  Triton than the table's, bytes that `docs/kernels/spills.json` names are let pass, and refused once they are gone;
* takes more shared memory than a block may have (163, 227 and 227 KiB; sm_86, sm_89 and sm_120 have 99, and the largest
  case of each kernel that has no configuration of its own for them is compiled for them as well);
* has a matrix product on 16-bit types that does not reach the tensor cores by the architecture's own instruction
  (mma.sync, wgmma, tcgen05);
* takes more registers or shared memory than in the committed table. Registers count as the hardware allots them, in
  eights a thread: a smaller difference changes nothing. The compiler gives the same numbers for the same source and
  version, so there is no noise to allow for; what is worse on purpose is written with `--update --accept-worse` and
  shows in the table's diff. Numbers of another Triton version are compared with none of this one;
* has a loop that waits for its loads at once, or copies few bytes at a time (`tools/load_rules.py`), read in the first
  case of each kernel, element type and shipped configuration. What `docs/kernels/loads.json` names is held to its
  numbers; of another Triton no loads are read.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import importlib.util
import inspect
import json
import multiprocessing
import os
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import count_tables
import known_loads
import load_rules
import sass

from pixelrefer_fast.bench.profile.resources import compile_case
from pixelrefer_fast.kernels import _launch

REPOSITORY = Path(__file__).resolve().parent.parent
KERNELS = REPOSITORY / "kernels"
BASELINE = REPOSITORY / "docs" / "kernels" / "resources.json"
SPILLS = "spills.json"  # beside it
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # bytes that one block may have
# devices that are compiled for as sm_80 is and give a block less: of each kernel without a configuration of its own for
# them, the case with most shared memory is compiled for them, and takes what it takes on sm_80, so that all others fit
TIGHT = (86, 89, 120)
TIGHT_FAMILY = "sm_86"
TIGHT_LIMIT = 99 * 1024
EXPECTED_MATRIX = {80: ("mma",), 90: ("wgmma",), 100: ("tcgen05", "mma"), **dict.fromkeys(TIGHT, ("mma",))}
REGISTER_UNIT = 8
# what a family's own configurations are compiled for
FAMILIES = {
    family: [a for a in EXPECTED_MATRIX if _launch.FAMILIES[a] == family] for family in _launch.FAMILIES.values()
}


@dataclass(frozen=True)
class Row:
    """One kernel as compiled for one architecture.

    Attributes:
        kernel: `file.kernel`.
        shape: what the case is for.
        configuration: constants and launch options, as text.
        arch: 80, 90 or 100; 86, 89 or 120 for a configuration of their own.
        source: hash of the kernel's source, its file's other kernels, signature and constants.
        registers: a thread.
        local: bytes of local memory a thread: spills.
        shared: bytes of shared memory a program.
        matrix: the matrix instruction in its PTX, "" for none.
    """

    kernel: str
    shape: str
    configuration: str
    arch: int
    source: str
    registers: int
    local: int
    shared: int
    matrix: str

    @property
    def key(self) -> tuple[str, str, str, int]:
        return self.kernel, self.shape, self.configuration, self.arch

    def __str__(self) -> str:
        return f"{self.kernel} ({self.shape}; {self.configuration}) on sm_{self.arch}"


def load(path: Path) -> Any:
    """The module of a kernel file: of the package for the repository's own, else by path."""
    if path.parent == KERNELS:
        return importlib.import_module(f"pixelrefer_fast.kernels.{path.stem}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # Triton looks a kernel's module up by name
    spec.loader.exec_module(module)
    return module


def kernel_files() -> list[Path]:
    return sorted(p for p in KERNELS.glob("*.py") if not p.name.startswith("_"))


def cases_of(path: Path) -> list[Any]:
    """The file's compile cases; a case that several devices' configurations share is one.

    Raises:
        SystemExit: the file has none, or a kernel or a shipped configuration of it has none.
    """
    module = load(path)
    if not hasattr(module, "compile_cases"):
        raise SystemExit(f"{path}: expected a function compile_cases()")
    cases = list({(c.name, c.shape, configuration(c), source_hash(c)): c for c in module.compile_cases()}.values())
    launched = set(re.findall(rf'launch\(\s*\w+,\s*"({path.stem}\.\w+)"', path.read_text(encoding="utf-8")))
    for name in sorted(launched - {c.name for c in cases}):
        raise SystemExit(f"{path}: compile_cases() has none for {name}")
    for device, name, entry in shipped_entries(path.stem):
        if not any(_configured(c, entry) for c in cases):
            raise SystemExit(f"{path}: compile_cases() has none for {name} in the configuration {entry} of {device}")
    return cases


def shipped_entries(stem: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """(device, name, entry) of every committed launch configuration of a kernel file.

    Raises:
        SystemExit: an entry of a family's file does not say why it is there, or a kernel's are the default's.
    """
    folder = KERNELS / "configs" / stem
    tables = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    for device, table in tables.items():
        for name, entries in table.items():
            bare = [{k: v for k, v in entry.items() if k != "reason"} for entry in entries]
            if device in FAMILIES and not all(entry.get("reason") for entry in entries):
                raise SystemExit(f"{folder}/{device}.json: expected a reason in each entry of {name}")
            if device in FAMILIES and bare == tables["default"].get(name):
                raise SystemExit(f"{folder}/{device}.json: {name} has the default's entries")
            for entry in bare:
                yield device, name, entry


def _configured(case: Any, entry: dict[str, int]) -> bool:
    return {k: v for k, v in entry.items() if k != "upto"}.items() <= {**case.constants, **case.options}.items()


def compiled_for(case: Any) -> list[int]:
    """Architectures of a case: those of the families that alone have its configuration, else all but `TIGHT`."""
    stem, _, own = case.name.partition(".")
    devices = {device for device, name, entry in shipped_entries(stem) if name == own and _configured(case, entry)}
    if devices and devices <= set(FAMILIES):
        return sorted(arch for device in devices for arch in FAMILIES[device])
    return sorted(SHARED_LIMIT)


def configuration(case: Any) -> str:
    return ", ".join(f"{k}={v}" for k, v in {**case.constants, **case.options}.items())


def source_hash(case: Any) -> str:
    """Of all kernels that the case's module sees, comments and layout apart, and of how this one is compiled."""
    from triton.runtime.jit import JITFunction

    seen = vars(inspect.getmodule(case.kernel.fn))
    sources = [ast.unparse(ast.parse(f.src)) for _, f in sorted(seen.items()) if isinstance(f, JITFunction)]
    text = "\n".join([*sources, case.kernel.fn.__name__, str(case.signature), configuration(case), str(case.matrix)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def compile_row(case: Any, arch: int, loads: bool = False) -> tuple[Row, dict[str, int]]:
    """Compile, and read what it takes, and if asked which rules of loads it breaks how often."""
    compiled = compile_case(case, arch)
    row = Row(
        kernel=case.name,
        shape=case.shape,
        configuration=configuration(case),
        arch=arch,
        source=source_hash(case),
        registers=compiled.registers,
        local=compiled.local,
        shared=compiled.shared,
        matrix=compiled.matrix,
    )
    return row, load_rules.read(sass.disassemble(compiled.cubin)) if loads else {}


def read_spills(baseline: Path) -> dict[str, dict[str, int]]:
    """By version of Triton that the table is not of: bytes of local memory a thread that cases are known to take."""
    path = baseline.with_name(SPILLS)
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def faults(row: Row, case: Any, spills: dict[str, int]) -> Iterator[str]:
    """Why a compiled kernel is refused whatever it was before."""
    if row.local > spills.get(str(row), 0):
        yield f"{row}: {row.local} bytes of local memory a thread (spills)"
    limit = SHARED_LIMIT.get(row.arch, TIGHT_LIMIT)
    if row.shared > limit:
        yield f"{row}: {row.shared} bytes of shared memory, a block has {limit}"
    halves = any(t in ("*bf16", "*fp16") for t in case.signature.values())
    wanted = EXPECTED_MATRIX[row.arch]
    if case.matrix and halves and row.matrix not in wanted:
        yield f"{row}: expected {' or '.join(wanted)} for its matrix product, got {row.matrix or 'none'}"


def tight(
    jobs: Sequence[tuple[Any, int]], rows: Sequence[Row], spills: dict[str, int], local: dict[str, int]
) -> Iterator[str]:
    """What is refused on devices with little shared memory: what does not fit, and what their compiler makes of each
    kernel's largest case of sm_80, whose local memory is added to `local`."""
    largest: dict[str, tuple[Any, Row]] = {}
    for (case, arch), row in zip(jobs, rows, strict=True):
        if arch != 80 or own_entries(case.name, TIGHT_FAMILY):
            continue
        if row.shared > TIGHT_LIMIT:
            file, _, name = row.kernel.partition(".")
            yield (
                f"{row}: {row.shared} bytes of shared memory, a block of sm_86, sm_89 and sm_120 has {TIGHT_LIMIT}: "
                f"expected {name} in kernels/configs/{file}/{TIGHT_FAMILY}.json"
            )
        elif case.name not in largest or row.shared > largest[case.name][1].shared:
            largest[case.name] = case, row
    tried = [(case, arch) for case, _ in largest.values() for arch in TIGHT]
    for (case, _), (row, _) in zip(tried, _compile_all(tried) if tried else (), strict=True):
        yield from faults(row, case, spills)
        local[str(row)] = row.local
        on_80 = largest[case.name][1].shared
        if row.shared > on_80:
            yield f"{row}: {row.shared} bytes of shared memory, on sm_80 {on_80}: no other case is known to fit"


def own_entries(kernel: str, family: str) -> list[dict[str, Any]]:
    """What a family's file has for a kernel, reasons included."""
    file, _, name = kernel.partition(".")
    path = KERNELS / "configs" / file / f"{family}.json"
    found = json.loads(path.read_text(encoding="utf-8")).get(name, []) if path.is_file() else []
    return list(found)


def worse(row: Row, before: Row) -> Iterator[str]:
    """What a kernel takes more of than before."""
    was, now = (-(-r.registers // REGISTER_UNIT) for r in (before, row))
    if now > was:
        yield f"{row}: {row.registers} registers, {before.registers} before"
    if row.shared > before.shared:
        yield f"{row}: {row.shared} bytes of shared memory, {before.shared} before"


def read_baseline(path: Path) -> tuple[str, dict[tuple[str, str, str, int], Row]]:
    """Triton's version and the rows of the committed table."""
    if not path.is_file():
        return "", {}
    table = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**row) for row in table["rows"]]
    return table["triton"], {row.key: row for row in rows}


def stale(wanted: dict[tuple[str, str, str, int], str], before: Iterable[Row]) -> list[str]:
    """How the committed table differs from the kernels as they are: `wanted` maps each row's key to its source."""
    have = {row.key: row for row in before}
    lines = [f"not in the table: {_name(key)}" for key in wanted if key not in have]
    lines += [f"no kernel is so any more: {row}" for key, row in have.items() if key not in wanted]
    return lines + [f"changed: {have[k]}" for k, source in wanted.items() if k in have and have[k].source != source]


def _name(key: tuple[str, str, str, int]) -> str:
    return f"{key[0]} ({key[1]}; {key[2]}) on sm_{key[3]}"


def write_table(path: Path, triton_version: str, rows: Sequence[Row]) -> None:
    """The JSON, a line for each row, and beside it the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(asdict(row)) for row in rows)
    path.write_text(f'{{"triton": {json.dumps(triton_version)}, "rows": [\n{lines}\n]}}\n', encoding="utf-8")
    write_page(path)


def write_page(path: Path) -> None:
    """The page of a committed table, with what `tools/kernel_counts.py` has counted where its file lies beside."""
    version, rows = read_baseline(path)
    counted = count_tables.read(path.with_name("counts.json"))[2]
    text = page(version, list(rows.values()), counted)
    loads = path.with_name(known_loads.NAME)
    text += "".join(f"{line}\n" for line in known_loads.table(known_loads.read(loads))) if loads.is_file() else ""
    text += "".join(f"{line}\n" for line in _spills(read_spills(path)))
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def _spills(known: dict[str, dict[str, int]]) -> Iterator[str]:
    for version, spills in known.items():
        yield from (
            "",
            f"## With Triton {version}",
            "",
            "All of this compiles and fits too (`make test-newest`). These spill, bytes a thread:",
            "",
        )
        yield from (f"* {name}: {size}" for name, size in spills.items())


def page(triton_version: str, rows: Sequence[Row], counted: Sequence[count_tables.CountRow]) -> str:
    """The page: per kernel a table of its cases, and one of what it does in a call."""
    text = [
        "# What each kernel takes",
        "",
        "Made by `make compile-check UPDATE=1`; do not edit. `make compile-check` fails where a kernel spills, does",
        "not fit, misses the tensor cores or takes more than here (the rules: `tools/compile_check.py`).",
        "",
        f"Triton {triton_version}, compiled without a device. A cell holds registers a thread, KiB of shared memory",
        "and the matrix instruction.",
        *_families(rows),
        *(COUNTED if counted else []),
    ]
    for kernel in dict.fromkeys([*(r.kernel for r in rows), *(r.kernel for r in counted)]):
        text += tables([row for row in rows if row.kernel == kernel])
        own = [row for row in counted if row.kernel == kernel]
        text += ["", "As it runs:", "", *count_tables.table(own)] if own else []
    return "\n".join(text) + "\n"


COUNTED = (
    "",
    "As it runs: counted by `make counts` (`tools/kernel_counts.py`) in one call of the operation at the sizes that",
    "are named, in the emulator. Instructions, barriers, matrix products and waits are those of one warp. A wait is",
    "one for a load that was asked for just before. Sectors are of 32 bytes of global memory, wavefronts those of",
    "shared memory; beside them is how many times the least they are, for what each request asks for. The innermost",
    "loops follow, the one with most instructions first: instructions, barriers and products of a turn, and turns of",
    "a warp.",
)


def _families(rows: Sequence[Row]) -> Iterator[str]:
    yield from (
        "",
        "Launch configurations are the same on all devices (`kernels/configs/*/default.json`) but for those that were",
        "tuned on a device and these of families. A block of sm_86, sm_89 and sm_120 has 99 KiB of shared memory;",
        "all else takes there what it takes on sm_80, and the largest case of each kernel is compiled for them.",
    )
    entries = [
        (k, f, entry) for k in dict.fromkeys(r.kernel for r in rows) for f in FAMILIES for entry in own_entries(k, f)
    ]
    if entries:
        yield from ("", "| kernel | devices | configuration | why |", "| :--- | :--- | :--- | :--- |")
    for kernel, family, entry in entries:
        devices = ", ".join(f"sm_{arch}" for arch in FAMILIES[family])
        shown = ", ".join(f"{k}={v}" for k, v in entry.items() if k != "reason")
        yield f"| {kernel} | {devices} | {shown} | {entry['reason']} |"


def tables(rows: Sequence[Row]) -> list[str]:
    """Per kernel a table of its cases: registers, shared memory and matrix instruction on each architecture."""
    text: list[str] = []
    arches = sorted({row.arch for row in rows})
    for kernel in dict.fromkeys(row.kernel for row in rows):
        cells: dict[tuple[str, str], dict[int, str]] = {}
        for row in (r for r in rows if r.kernel == kernel):
            shared = f"{row.shared / 1024:.3g} KiB" if row.shared >= 1024 else f"{row.shared} B"
            cell = f"{row.registers}, {shared}{', ' + row.matrix if row.matrix else ''}"
            cells.setdefault((row.shape, row.configuration), {})[row.arch] = cell
        headings = ["for", "configuration", *(f"sm_{arch}" for arch in arches)]
        text += ["", f"## {kernel}", "", f"| {' | '.join(headings)} |", "| :--- | :--- |" + " ---: |" * len(arches)]
        text += [f"| {shape} | {c} | {' | '.join(by.get(a, '') for a in arches)} |" for (shape, c), by in cells.items()]
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="kernel files (default: all of kernels/)")
    parser.add_argument("--baseline", type=Path, default=BASELINE, help="the committed table")
    parser.add_argument("--update", action="store_true", help="write the table unless something is refused")
    parser.add_argument("--accept-worse", action="store_true", help="let --update write larger numbers")
    parser.add_argument("--listed", action="store_true", help="compile nothing, compare the table's sources")
    parser.add_argument("--arch", type=int, nargs="+", choices=sorted(EXPECTED_MATRIX), default=sorted(EXPECTED_MATRIX))
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose shape holds this text (a dtype)")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        parser.error("TRITON_INTERPRET is set: interpreted kernels cannot be compiled")
    import triton

    files = [p.resolve() for p in options.files] or kernel_files()
    cases = [case for path in files for case in cases_of(path) if options.only in case.shape]
    jobs = [(case, arch) for case in cases for arch in compiled_for(case) if arch in options.arch]
    wanted = {(c.name, c.shape, configuration(c), arch): source_hash(c) for c, arch in jobs}
    if len(wanted) != len(jobs):
        raise SystemExit("compile-check: two cases of a kernel have the same shape and configuration")

    version, table = read_baseline(options.baseline)
    stems = [p.stem for p in files]

    def covered(kernel: str, place: str) -> bool:
        named = kernel.split(".")[0] in stems or not options.files
        return named and int(place.rpartition("_")[2]) in options.arch

    def chosen(row: Row) -> bool:
        return covered(row.kernel, f"sm_{row.arch}") and options.only in row.shape

    before = {key: row for key, row in table.items() if chosen(row)}
    if options.listed:
        return _report(stale(wanted, before.values()), f"the table's {len(jobs)} rows are those of the kernels")

    comparable = version == triton.__version__
    listed = options.baseline.with_name(known_loads.NAME)  # without it, and of other tables, no loads are read
    held = comparable and listed.is_file() and not options.only
    read = {id(case) for case in load_rules.representatives(cases)} if held else set()
    compiled = _compile_all(jobs, read)
    rows = [row for row, _ in compiled]
    if options.files:
        print("\n".join(tables(rows)) + "\n")
    spills = {} if comparable else read_spills(options.baseline).get(triton.__version__, {})
    local = {str(row): row.local for row in rows}
    lines = [line for (case, _), row in zip(jobs, rows, strict=True) for line in faults(row, case, spills)]
    lines += tight(jobs, rows, spills, local)
    everything = not options.files and not options.only and options.arch == sorted(EXPECTED_MATRIX)
    gone = [name for name in spills if not local.get(name, not everything)]
    lines += [f"{name}: does not spill, though {SPILLS} says so" for name in gone]
    if comparable and not options.accept_worse:
        lines += [line for row in rows if row.key in before for line in worse(row, before[row.key])]
    known = known_loads.read(listed) if held else []
    loads = known_loads.Found(load_rules.COMPILED, covered, _broken(compiled))
    lines += [] if options.accept_worse else known_loads.refused(known, loads)
    if options.update and not lines:
        if held:
            known_loads.write(listed, known_loads.merged(known, loads))
        others = [row for row in table.values() if not chosen(row)] if comparable else []
        write_table(options.baseline, triton.__version__, sorted([*others, *rows], key=lambda row: row.kernel))
    elif not options.update:
        if not comparable:
            print(f"the table is of Triton {version or 'nothing'}, this is {triton.__version__}: no numbers compared")
        lines += [f"{line} (make compile-check UPDATE=1)" for line in stale(wanted, before.values())]
        lines += known_loads.outdated(known, loads)
    found = f"{len(spills)} known spills" if spills else "no spills"
    return _report(lines, f"{len(rows)} compiled: {found}, all fit, none worse")


def _broken(compiled: Sequence[tuple[Row, dict[str, int]]]) -> dict[tuple[str, str, str], dict[str, float]]:
    """By kernel, element type and rule of loads, in which case how often."""
    return known_loads.gather(
        ((row.kernel, load_rules.dtype_of(row.shape), rule), f"{row.shape}, sm_{row.arch}", times)
        for row, rules in compiled
        for rule, times in rules.items()
    )


def _compile_all(jobs: Sequence[tuple[Any, int]], read: Collection[int] = ()) -> list[tuple[Row, dict[str, int]]]:
    # kernels do not travel between processes; forked ones have them, and by their ids which loads to read
    global _jobs
    _jobs = [(case, arch, id(case) in read) for case, arch in jobs]
    workers = min(len(os.sched_getaffinity(0)), max(len(jobs), 1))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        return list(pool.map(_compile_job, range(len(jobs))))


_jobs: Sequence[tuple[Any, int, bool]] = ()


def _compile_job(i: int) -> tuple[Row, dict[str, int]]:
    case, arch, loads = _jobs[i]
    try:
        return compile_row(case, arch, loads)
    except Exception as error:
        raise RuntimeError(f"{case.name} ({case.shape}; {configuration(case)}) on sm_{arch}: {error}") from None


def _report(lines: Sequence[str], fine: str) -> int:
    for line in lines:
        print(line, file=sys.stderr)
    print(f"compile-check: {len(lines)} faults" if lines else f"compile-check: {fine}")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
