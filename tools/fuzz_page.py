"""docs/fuzzing.md: what became of hostile inputs and of runs that were killed, added up over runs.

    make fuzz SECONDS=40 SEED=1; make kills
    python tools/fuzz_page.py --add out/fuzz/1.json out/kills/lite.json out/kills/full.json
    python tools/fuzz_page.py               # the page alone, from what was added

What is added is kept in benchmarks/results/fuzzing.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "fuzzing.json"
PAGE = ROOT / "docs" / "fuzzing.md"
Results = dict[str, list[dict[str, Any]]]
INPUTS = """# Hostile inputs and killed runs

Made by `python tools/fuzz_page.py` from benchmarks/results/fuzzing.json; do not edit.

`make fuzz SECONDS=40 SEED=1` makes inputs by number from a seed, and hands each over: it is read, or refused by a
`ValueError` of at most 600 characters (operations: by any error of Python's or PyTorch's). Anything else fails: another
exception, a signal, more than 30 s, a process that grows by 2 GiB, pixels or values other than those of the whole file
where a check sum could tell. A checkpoint has none: one that loads as another model has another fingerprint.
`make test` makes some of each kind.
"""
KILLS = """
`make kills KILLS=50` ends `describe --batch` over 500 requests, two of them bad, by SIGKILL at moments drawn from a
seed, and starts it again, until it is through. Its file then has every line once, in order, and the bytes of a run that
nobody ended.
"""


def added(results: Results, run: dict[str, Any]) -> Results:
    """With one run more.

    Raises:
        ValueError: it is of changed files, or of the seed of another: the same inputs would count twice.
    """
    if run["commit"] is None or run["dirty"]:
        raise ValueError("run: expected one of a commit without changes")
    if "inputs" in run:
        if any(run["seed"] == other["seed"] for other in results["runs"]):
            raise ValueError(f"run: expected a seed of its own, got {run['seed']} again")
        return {**results, "runs": [*results["runs"], run]}
    others = [other for other in results["kills"] if other["model"] != run["model"]]
    return {**results, "kills": sorted([*others, run], key=lambda kept: kept["model"], reverse=True)}


def table(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for each kind of input: how many, and what became of them."""
    sums: dict[str, Counter[str]] = {}
    for run in runs:
        for name, outcomes in run["inputs"].items():
            sums.setdefault(name, Counter()).update(outcomes)
    lines = ["| inputs | number | what became of them |", "| :--- | ---: | :--- |"]
    for name, outcomes in sorted(sums.items()):
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in outcomes.most_common())
        lines.append(f"| {name} | {outcomes.total():,} | {kinds} |")
    total = sum(outcomes.total() for outcomes in sums.values())
    return [*lines, f"| all | {total:,} | |"]


def page(results: Results) -> str:
    """The page for docs/."""
    heads = [
        "| seed | seconds of each | inputs | found | commit | date |",
        "| ---: | ---: | ---: | :--- | :--- | :--- |",
    ]
    lines = [INPUTS, *table(results["runs"]), "", *heads]
    for run in results["runs"]:
        count = sum(sum(outcomes.values()) for outcomes in run["inputs"].values())
        found = "; ".join(f"{name}, {what}" for name, what in run["failed"].items()) or "nothing"
        seconds = f"{run['seconds']:g}"
        lines.append(f"| {run['seed']} | {seconds} | {count:,} | {found} | {run['commit'][:12]} | {run['date'][:10]} |")
    heads = [
        "| model | kills | with lines before | seed | commit | date |",
        "| :--- | ---: | ---: | ---: | :--- | :--- |",
    ]
    lines += [KILLS, *heads]
    for kept in results["kills"]:
        begun = sum(lines_there > 0 for lines_there in kept["lines"])
        where = f"{kept['seed']} | {kept['commit'][:12]} | {kept['date'][:10]}"
        lines.append(f"| {kept['model']} | {kept['kills']} | {begun} | {where} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FILE", help="results of runs")
    given = parser.parse_args(arguments)
    results: Results = {"runs": [], "kills": []}
    if RESULT.exists():
        results = json.loads(RESULT.read_text(encoding="utf-8"))
    try:
        for file in given.add:
            results = added(results, json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        parser.error(f"{file}: {error}")
    if given.add:
        RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
