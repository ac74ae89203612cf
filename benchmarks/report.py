"""docs/benchmarks.md and its pictures from the result files; and what changed between two of them.

    python benchmarks/report.py                    writes docs/benchmarks.md and docs/benchmarks/
    python benchmarks/report.py --add FILE         the same, after adding this file's latest results
    python benchmarks/report.py --check            writes nothing; exit status 1 if any of them would change
    python benchmarks/report.py --compare A B      the latest result of each file; exit status 1 for regressions

Reads benchmarks/results/*.json (or --results FOLDER). No number of these pages is typed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _goals import Document, goal_lines, measured_on

from pixelrefer_fast.bench.report import results, tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
OTHERS = {"dispatch.json", "fuzzing.json", "serving.json"}  # of scripts with forms and pages of their own
PAGE, PICTURES = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks"
COMMAND = "python benchmarks/report.py"


def read_all(folder: Path) -> list[dict[str, Any]]:
    """Every document of every result file, the oldest first."""
    files = [path for path in sorted(folder.glob("*.json")) if path.name not in OTHERS]
    documents = [document for path in files for document in results.read(path)]
    return sorted(documents, key=lambda document: document.get("date", ""))


def latest(documents: Sequence[Document], benchmark: str) -> list[Document]:
    """The last document of a benchmark for each machine and model, with and without a reference; the latest first."""
    found: dict[tuple[Any, ...], Document] = {}
    for document in documents:
        if document["benchmark"] == benchmark:
            key = measured_on(document), document.get("model"), document.get("reference") is not None
            found[key] = document
    return sorted(found.values(), key=lambda document: document["date"], reverse=True)


def write_pictures(documents: Sequence[Document], folder: Path) -> dict[str, list[str]]:
    """The pictures of each document by its name; `folder` holds them and nothing else afterwards."""
    from pixelrefer_fast.bench.report import plots

    folder.mkdir(parents=True, exist_ok=True)
    drawn: dict[str, list[str]] = {}
    kept = set()
    for document in documents:
        name = name_of(document)
        own = folder / name
        own.mkdir(exist_ok=True)
        files = [file for file in plots.every_plot(document, own) if file.suffix == ".svg"]  # what the page shows
        kept |= {own, *files}
        drawn[name] = sorted(file.stem for file in files)
    for old in sorted(folder.rglob("*"), reverse=True):
        if old not in kept:
            old.rmdir() if old.is_dir() else old.unlink()
    return drawn


def name_of(document: Document) -> str:
    """Of a document of whole questions, as a folder: machine, model, and whether the reference is in it."""
    words = f"{measured_on(document)}-{document.get('model', '')}"
    words += "-reference" if document.get("reference") is not None else ""
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def pictures_of(document: Document) -> list[str]:
    """Which pictures there are of a document, by name, without drawing them."""
    suites = {row["suite"] for row in document["rows"] if row["ok"] and "seconds" in row}
    have = {"against": bool(tables.against_pairs(document)), "whole": "whole" in suites, "scaling": "scaling" in suites}
    have["reference"] = any(
        row["suite"] == "reference" and row["ok"] and row["by"] == "ours" for row in document["rows"]
    )
    return sorted(name for name, there in have.items() if there)


def _unmeasured(documents: Sequence[Document]) -> list[str]:
    missing = [goal for goal, _, met in goal_lines(documents) if met is None]
    if not missing:
        return []
    where = {"cuda": "a GPU", "cpu": "a CPU"}
    listed = "; ".join(f"{goal.what} ({goal.wanted})" for goal in missing)
    places = " and ".join(where[place] for place in dict.fromkeys(goal.where for goal in missing))
    return [
        f"**Still unmeasured**, goals on {places}: {listed}. `make gpu-check` takes them on a machine with a GPU, "
        "`pixelrefer-fast estimate` predicts them without one."
    ]


def page(documents: Sequence[Document]) -> str:
    """docs/benchmarks.md."""
    lines = [
        "# Benchmarks",
        "",
        f"Made by `{COMMAND}` from benchmarks/results/; do not edit. How the numbers come about and how to read them: "
        "[benchmarking.md](benchmarking.md).",
        "",
        "## Goals",
        tables.markdown(
            ["", "goal", "on", "measured", ""],
            [
                [
                    goal.what,
                    goal.wanted,
                    {"cuda": "an H200, bfloat16", "cpu": "a CPU"}[goal.where],
                    found or "not yet",
                    "" if met is None else "met" if met else "missed",
                ]
                for goal, found, met in goal_lines(documents)
            ],
        ),
        *_unmeasured(documents),
    ]
    for document in latest(documents, "bench"):
        lines += _section(document)
    for place in ("cuda", "cpu"):
        lines += _estimates([d for d in documents if d["benchmark"] == "estimate" and measured_on(d) == place])
    lines += [
        "## Elsewhere",
        "[Region stage and pixels to tokens against the reference's code](region_stage.md), [objects a second in "
        "batches](throughput.md), [quantised weights](quantized.md), [launches, waits, FLOPs and bytes of the region "
        "stage](kernels/launches.md), [registers and shared memory of every kernel](kernels/resources.md), [the "
        "extension's C++](kernels/packing_cpu.md).",
        "",
    ]
    return "\n".join(lines)


def _estimates(documents: Sequence[Document]) -> list[str]:
    """What was estimated for one kind of machine beside what was measured there, each case as it was measured last."""
    last = {(row["case"], row.get("model"), row.get("dtype")): row for d in documents for row in d["rows"]}
    if not last:
        return []
    headings, rows = tables.estimate_table(list(last.values()))
    return [
        f"## What `pixelrefer-fast estimate` says, against what was measured: {tables.machine_name(documents[-1])}",
        f"`{documents[-1]['command']}`; {tables.provenance_line(documents[-1])}. Estimated / measured (error).",
        "",
        tables.markdown(headings, rows),
    ]


def _section(document: Document) -> list[str]:
    folder = f"benchmarks/{name_of(document)}"
    rates = ", ".join(
        f"copy {rate / 1e9:,.0f} GB/s" if name == "copy" else f"{name} products {rate / 1e9:,.0f} GFLOP/s"
        for name, rate in document["rates"].items()
    )
    lines = [
        f"## {document.get('model')} on {tables.machine_name(document)}",
        f"`{document['command']}`; {tables.provenance_line(document)}. Measured in the same run: {rates}.",
        "",
    ]
    if clocks := document.get("clocks"):
        lines += [f"Clocks: {', '.join(f'{name} {value}' for name, value in clocks.items() if value is not None)}.", ""]
    drawn = pictures_of(document)
    for title, table in tables.every_table(document):
        lines += [f"### {title}", tables.markdown(*tables.without_empty(table))]
        for name in drawn:
            if title == _PICTURED[name]:
                lines += [f"![{title}]({folder}/{name}.svg)", ""]
    if "scaling" in drawn:
        lines += ["### Scaling", f"![time against each size]({folder}/scaling.svg)", ""]
    return lines


_PICTURED = {
    "against": "Full against Lite",
    "whole": "Whole questions",
    "reference": "Against the reference's own code",
    "scaling": "",
}


def add(file: Path, folder: Path) -> None:
    """Append the latest result of each benchmark in a file to the folder's file of that benchmark.

    Raises:
        ValueError: there is nothing to add, or it is there already.
    """
    found = {document["benchmark"]: document for document in results.read(file)}
    known = [document for document in read_all(folder) if document["benchmark"] in found]
    for name, document in found.items():
        if document in known:
            raise ValueError(f"--add {file}: its result of {name!r} is in {folder} already")
        results.append(folder / f"{name}.json", document)
    if not found:
        raise ValueError(f"--add {file}: expected a result, there is none in it")


def write(folder: Path, check: bool) -> list[str]:
    """Write all pages (or, with `check`, none); the names of those that change."""
    documents = read_all(folder)
    text = page(documents)
    changes = not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text
    if not check:
        write_pictures(latest(documents, "bench"), PICTURES)
        PAGE.write_text(text, encoding="utf-8")
    return [str(PAGE.relative_to(ROOT))] if changes else []


def compare(before: Path, after: Path, threshold: float) -> int:
    """Print what differs between the latest results of two files; 1 if something is worse beyond noise."""
    old = results.latest(before)
    new = results.latest(after, old["benchmark"])
    # what a run had no time for is neither better nor worse
    unrun = {_case(row) for document in (old, new) for row in document["rows"] if "reason" in row}
    old, new = ({**of, "rows": [row for row in of["rows"] if _case(row) not in unrun]} for of in (old, new))
    changes = [change for change in results.compare(old, new, threshold) if change.significant]
    for words in results.differing(old, new):
        print(f"not the same machine: {words}")
    if changes:
        tables.terminal(f"{before} -> {after}", ["", "", "before", "after", "ratio", ""], list(map(_line, changes)))
    if unrun:
        print(f"{len(unrun)} cases were not run on either side")
    worse = results.regressions(changes)
    print(f"{len(worse)} regressions, {len(changes) - len(worse)} other changes beyond noise")
    return 1 if worse else 0


def _case(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row.get("suite"), row.get("case"), row.get("by"), row.get("model"), row.get("dtype")


def _line(change: results.Change) -> list[str]:
    numbers = ("" if x is None else tables.short(x) for x in (change.before, change.after))
    times = "" if change.ratio is None else f"{change.ratio:.2f}x"
    return [change.case, change.what, *numbers, times, "WORSE" if change.worse else "better"]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="docs/benchmarks.md and its pictures from result files.")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="default: benchmarks/results")
    parser.add_argument("--add", type=Path, metavar="FILE", help="add the latest results of this file first")
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 if a page would change")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two result files instead")
    parser.add_argument(
        "--threshold",
        type=float,
        default=results.THRESHOLD,
        help="ratio below which a change is none (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    try:
        if options.compare:
            before, after = options.compare
            return compare(before, after, options.threshold)
        if options.add:
            add(options.add, options.results)
        changed = write(options.results, options.check)
    except ValueError as error:
        parser.error(str(error))
    for name in changed:
        print(f"{name}: {'is not what the results say' if options.check else 'written'}")
    return 1 if options.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
