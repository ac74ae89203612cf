"""What `gpu_check.py` has left in its folder, as one result file and one page.

    python benchmarks/gpu_page.py DIR

Reads DIR/summary.json and DIR/results.json, adds to the latter what became of the parts, with where and from what, and
writes DIR/page.md: the answers first, then the parts, then every table. No number of the page is typed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import decode
import launches
import ops_bench
import replayed
from _goals import Document, goal_lines

from pixelrefer_fast.bench.measure import machine
from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.run import ops

OWN = "gpu_check"
NOT_ASKED = "not asked"


def of(documents: Sequence[Document], benchmark: str) -> list[Document]:
    return [document for document in documents if document["benchmark"] == benchmark]


def rows_of(documents: Sequence[Document], benchmark: str) -> list[Any]:
    return [row for document in of(documents, benchmark) for row in document["rows"]]


def answers(documents: Sequence[Document], outcomes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """What had to be answered first, and the answer."""
    yield "Do all kernels agree with their definitions?", _kernels(rows_of(documents, "small_ops"))
    yield "Do captured graphs pass the check of their first replay?", _graphs(of(documents, "decode"), outcomes)
    yield "Do recorded cases hold?", _cases(rows_of(documents, "verify"))
    yield "Are launches and waits those that are counted?", _launches(rows_of(documents, "launches"))
    for goal, found, met in goal_lines(documents):
        if goal.where == "cuda":
            said = NOT_ASKED if met is None else f"{found}: {'met' if met else 'MISSED'}"
            yield f"{goal.what[0].upper()}{goal.what[1:]}: {goal.wanted}?", said


def _kernels(rows: Sequence[Any]) -> str:
    if not rows:
        return NOT_ASKED
    right, wrong, broken, not_run = ops_bench.verdicts(rows)
    dtypes = ", ".join(dict.fromkeys(row["dtype"] for row in rows))
    bad = [f"{row['case']} by {row['by']} in {row['dtype']}" for row in rows if _bad(row)]
    said = f"{right} right, {wrong} wrong, {broken} that fail to run, {not_run} that are not for this machine; {dtypes}"
    own = {(row["case"], row["dtype"]) for row in rows if row["by"] != ops.DEFINITION and "reason" not in row}
    plain = dict.fromkeys(f"{row['case']} in {row['dtype']}" for row in rows if (row["case"], row["dtype"]) not in own)
    more = [*bad, *([f"nobody but the definition computed {', '.join(plain)}"] if plain else [])]
    return f"{'NO' if bad else 'yes'}: {said}" + "".join(f". {words}" for words in more)


def _bad(row: Mapping[str, Any]) -> bool:
    return not row["ok"] and ("reason" not in row or "broken" in row["extra"])


def _graphs(documents: Sequence[Document], outcomes: Mapping[str, str]) -> str:
    tests = outcomes.get("waits-graphs", NOT_ASKED)
    said = [f"tests on small models: {tests}"]
    for document in documents:
        for model in document["models"]:
            own = model["captured"]
            counts = ", ".join(f"{own[name]} {name}" for name in ("passes", "prompts", "steps"))
            said.append(f"{model['model']}: {counts}" + "".join(f"; {why}" for why in own["refused"].values()))
        trust = document["trust"]
        dropped = "; ".join(f"{n} of them: {why}" for why, n in trust["dropped"].items()) or "none dropped"
        said.append(f"{trust['bit_for_bit']} bit for bit, {trust['within_bar']} within rounding, {dropped}")
    return ". ".join(said)


def _cases(rows: Sequence[Any]) -> str:
    if not rows:
        return NOT_ASKED
    held = Counter((row["by"], row["dtype"]) for row in rows if row["ok"])
    asked = Counter((row["by"], row["dtype"]) for row in rows)
    return ", ".join(f"{by} in {dtype} {held[by, dtype]} of {n}" for (by, dtype), n in asked.items())


def _launches(rows: Sequence[Any]) -> str:
    if not rows:
        return NOT_ASKED
    seen = [row for row in rows if row["by"] == "seen"]
    bad = [f"{row['case']} ({row['by']})" for row in rows if not row["ok"]]
    waits = sum(row["waits"] for row in seen)
    found = f"{len(seen)} as seen, {waits} waits" if seen else "none seen"
    said = f"{len(rows) - len(seen)} as on the page, {found}"
    return f"NO: {', '.join(bad)}; {said}" if bad else f"yes: {said}"


def page(documents: Sequence[Document], own: Document) -> str:
    """The page of a run whose parts are in `own`."""
    parts = own["parts"]
    outcomes = {part["part"]: part["outcome"] for part in parts}
    lines = [
        f"# gpu-check on {tables.machine_name(own)}",
        "",
        f"Made by `benchmarks/gpu_page.py` from results.json; do not edit. {tables.provenance_line(own)}.",
        "",
        "## What it had to answer",
        tables.markdown(["", ""], [list(pair) for pair in answers(documents, outcomes)]),
        "## Parts",
        tables.markdown(
            ["", "seconds", "outcome", "said last"],
            [
                [part["part"], *(str(part.get(name, "")).replace("|", "/") for name in ("seconds", "outcome", "said"))]
                for part in parts
            ],
        ),
    ]
    for title, table in every_table(documents):
        lines += [f"## {title}", tables.markdown(*tables.without_empty(table))]
    return "\n".join(lines)


def every_table(documents: Sequence[Document]) -> Iterator[tuple[str, tables.Table]]:
    """All tables of all documents, with their titles."""
    if rows := rows_of(documents, "verify"):
        yield "Recorded cases", replayed.table(rows)
    if rows := rows_of(documents, "launches"):
        yield "Launches and waits of the region stage", launches.row_table(rows)
    for document in of(documents, "decode"):
        captured = "" if document["graph_bytes"] != 0 else ", nothing captured"
        yield f"Decoding and first tokens{captured}", decode.table(document)
    for document in of(documents, "bench"):
        yield from tables.every_table(document)
    for name, title in (("small_ops", "Operations, small cases"), ("ops", "Operations")):
        if found := of(documents, name):
            lines = [line for document in found for line in ops_bench.table(document)]
            yield title, (list(ops_bench.HEADINGS), lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="DIR", help="that gpu_check.py was told")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where it ran (default: cuda)")
    options = parser.parse_args(arguments)
    path = options.folder / "results.json"
    try:
        outcomes = json.loads((options.folder / "summary.json").read_text(encoding="utf-8"))
        before = results.read(path) if path.exists() else []
    except (OSError, ValueError) as error:
        parser.error(f"{options.folder}: expected what gpu_check.py leaves there, got: {error}")
    last = max((i for i, document in enumerate(before) if document["benchmark"] == OWN), default=-1)
    documents = before[last + 1 :]  # of this run
    own = {"benchmark": OWN, **machine.provenance(), "measured_on": options.device, "parts": outcomes}
    results.append(path, own)
    (options.folder / "page.md").write_text(page(documents, own), encoding="utf-8")
    for question, answer in answers(documents, {part["part"]: part["outcome"] for part in outcomes}):
        print(f"{question} {answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
