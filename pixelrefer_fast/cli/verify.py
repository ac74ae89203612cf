"""The report of `pixelrefer-fast verify` for people: cases down, stages across, an error in every cell."""

from __future__ import annotations

from typing import Any, TextIO


def print_report(report: dict[str, Any], file: TextIO) -> None:
    """Writes a table of the report of `verify.verify`; limits stand in the head of a column, or in its cells."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 140
    stages = list(dict.fromkeys(stage for case in report["cases"] for stage in case["stages"]))
    limits = {
        stage: {case["stages"][stage]["limit"] for case in report["cases"] if stage in case["stages"]}
        for stage in stages
    }
    table = Table(box=None, pad_edge=False)
    table.add_column("case", overflow="fold")
    for stage in stages:
        common = next(iter(limits[stage])) if len(limits[stage]) == 1 else None
        table.add_column(f"{stage}\n{_limit(common) if common is not None else ''}", justify="right")
    for case in report["cases"]:
        cells = []
        for stage in stages:
            if stage not in case["stages"]:
                cells.append(Text("-", "dim"))
                continue
            result = case["stages"][stage]
            words = f"{_number(result['error'])}{' ' + _limit(result['limit']) if len(limits[stage]) > 1 else ''}"
            cells.append(Text(words if result["ok"] else f"{words} FAIL", "green" if result["ok"] else "bold red"))
        table.add_row(Text(str(case["name"]), "" if case["ok"] else "bold red"), *cells)
    console.print(table)
    for case in report["cases"]:
        for stage, result in case["stages"].items():
            if "note" in result:
                console.print(Text(f"{case['name']}, {stage}: {result['note']}", "" if result["ok"] else "red"))
    failed = [str(case["name"]) for case in report["cases"] if not case["ok"]]
    where = f"backend {report['backend']}, device {report['device']}"
    console.print(
        Text(f"{len(report['cases'])} cases hold ({where})", "green")
        if report["ok"]
        else Text(
            f"{len(failed)} of {len(report['cases'])} cases do not hold ({where}): {', '.join(failed)}", "bold red"
        )
    )


def _limit(limit: float | None) -> str:
    return "" if limit is None else f"≤ {_number(limit)}"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"
