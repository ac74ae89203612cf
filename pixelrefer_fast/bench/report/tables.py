"""Tables of text from result documents: Markdown for pages, rich for the terminal. Nothing else goes into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from pixelrefer_fast.bench.report.results import Quantiles, Row, speedup

Table = tuple[list[str], list[list[str]]]
"""Headings and lines."""
Document = Mapping[str, Any]

CURVE_HEADINGS = {
    "objects": "objects of one image",
    "frames": "frames, all marked",
    "side": "side of the image",
    "n": "tokens of an object",
    "batch": "images in a batch",
}


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, its first column to the left and all others to the right."""
    rules = [":---"] + ["---:"] * (len(headings) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, rules, *rows)) + "\n"


def between(page: str, marks: tuple[str, str], made: str) -> str:
    """A page with this text between its two marks, each on a line of its own.

    Raises:
        ValueError: the page has no such place.
    """
    before, begin, rest = page.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise ValueError(f"page: expected {marks[0]} and {marks[1]}, got neither or one")
    return f"{before}{begin}\n{made}\n{end}{after}"


def terminal(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], file: TextIO | None = None) -> None:
    """The same table on the terminal (standard output, or `file`)."""
    from rich.console import Console
    from rich.table import Table as Drawn
    from rich.text import Text

    console = Console(file=file, highlight=False)
    if not console.is_terminal:
        console.width = 180
    table = Drawn(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def rows_of(document: Document, suite: str) -> list[Row]:
    return [row for row in document["rows"] if row["suite"] == suite]


def whole_table(document: Document) -> Table:
    """A line for each whole case."""
    headings = ["", "first token, ms", "each further, ms", "whole answer, ms", "objects a second", *_COUNTED, "check"]
    return headings, [[row["case"], *_times(row), *_counted(row), _verdict(row)] for row in rows_of(document, "whole")]


def curve_table(document: Document, curve: str) -> Table:
    """A line for each point of one curve; empty where it was not measured."""
    headings = [CURVE_HEADINGS[curve], "first token, ms", "each further, ms", "whole answer, ms", "objects a second"]
    rows = [row for row in rows_of(document, "scaling") if row["extra"]["curve"] == curve]
    lines = [[f"{row['extra']['value']:,}", *_times(row), *_counted(row), _verdict(row)] for row in rows]
    return [*headings, *_COUNTED, "check"], lines


def stage_table(document: Document) -> Table:
    """A line for each stage of one question, on the device by itself."""
    rows = rows_of(document, "stages")
    total = sum(row["seconds"]["median"] for row in rows) or 1.0
    headings = ["", "ms", "share", "GFLOP", "GB moved", "launches", "% of matrix rate", "% of copy rate"]
    lines = []
    for row in rows:
        lines.append(
            [
                row["extra"]["stage"],
                spread(row["seconds"], 1e3),
                f"{row['seconds']['median'] / total:.0%}",
                giga(row["flops"]),
                giga(row["moved"]),
                _whole(row["launches"]),
                *("" if row.get(name) is None else short(row[name]) for name in ("percent_matrix", "percent_copy")),
            ]
        )
    return headings, lines


def without_empty(table: Table) -> Table:
    """The table without columns in which nothing stands (a CPU's energy, say)."""
    headings, lines = table
    kept = [i for i in range(len(headings)) if i == 0 or any(line[i] for line in lines)]
    return [headings[i] for i in kept], [[line[i] for i in kept] for line in lines]


def against_table(document: Document) -> Table:
    """Full and Lite side by side: a line for each number, three columns for each case."""
    pairs = against_pairs(document)
    headings = [""]
    for case in pairs:
        headings += [f"{case}: Full", "Lite", "Full / Lite"]
    lines = []
    for name, number, shown in _AGAINST:
        cells, known = [], False
        for lite, full in pairs.values():
            values = [_number(row, number) for row in (full, lite)]
            known = known or any(value is not None for value in values)
            times = _ratio(*values)
            cells += [*("" if v is None else shown(v) for v in values), "" if times is None else _times_as(times)]
        if known:
            lines.append([name, *cells])
    kept = [kept_share(*pair) for pair in pairs.values()]
    if any(share is not None for share in kept):
        lines.append(
            ["of the saved FLOPs became time (to first token)", *(c for s in kept for c in ("", "", kept_words(s)))]
        )
    return headings, lines


def against_pairs(document: Document) -> dict[str, tuple[Row, Row]]:
    """(Lite's row, Full's row) of every case that both have answered rightly."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows_of(document, "against"):
        if row["ok"] and "seconds" in row:
            found.setdefault(row["case"], {})[row["extra"]["kind"]] = row
    return {case: (own["lite"], own["full"]) for case, own in found.items() if {"lite", "full"} <= own.keys()}


def kept_share(lite: Row, full: Row) -> float | None:
    """Of the FLOPs that Lite saves until the first token, how much of the time is saved; None where it saves none."""
    work = _ratio(first_flops(full), first_flops(lite))
    return share_kept(work, _ratio(_first(full), _first(lite)))


def share_kept(work: float | None, time: float | None) -> float | None:
    """Of the share of the work that is saved, how much of the time is: 1 where time falls as the work does.

    Args:
        work, time: how many times Lite's Full's are.

    Returns:
        (1 - 1/time) / (1 - 1/work); None where no work is saved.
    """
    if work is None or time is None or work <= 1:
        return None
    return (1 - 1 / time) / (1 - 1 / work)


def kept_words(share: float | None) -> str:
    """The share in words: time that falls by more than the work does is no more than all of it."""
    return "" if share is None else "all" if share >= 1 else f"{share:.0%}"


def first_flops(row: Row) -> float | None:
    """FLOPs until the first token, the vision encoder's included."""
    stages = row["extra"].get("stages")
    return None if stages is None else sum(own["flops"] for name, own in stages.items() if name != "decode")


def reference_table(document: Document) -> Table:
    """A line for each case: ours and the rival's times, in the same process."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows_of(document, "reference"):
        found.setdefault(row["case"], {})["ours" if row["by"] == "ours" else "rival"] = row
    rival = next((row["by"] for row in rows_of(document, "reference") if row["by"] != "ours"), "rival")
    headings = ["", f"{rival}, ms", "ours, ms", "speed-up", "first token", f"{rival}, GFLOP", "ours, GFLOP"]
    lines = []
    for case, own in found.items():
        ours, theirs = own["ours"], own.get("rival")
        if theirs is None or "seconds" not in ours:
            lines.append([case, *[""] * 6, ours.get("reason", ""), ""])
            continue
        times = speedup(ours, theirs)
        first = _ratio(_first(theirs), _first(ours)) if ours["ok"] else None
        lines.append(
            [
                case,
                spread(theirs["seconds"], 1e3),
                spread(ours["seconds"], 1e3),
                "none" if times is None else _times_as(times),
                "" if first is None else _times_as(first),
                giga(theirs["flops"]),
                giga(ours["flops"]),
                f"{ours['error']:.1e}" if ours.get("error") is not None else "not finite",
                f"{ours['extra']['equal']} of {ours['extra']['asked_again']}",
            ]
        )
    return [*headings, "error", "answers alike"], lines


def estimate_table(rows: Sequence[Row]) -> Table:
    """A line for each estimated quantity, a column for each case that was measured."""
    names: list[str] = []
    for row in rows:
        names += [name for name in row["extra"].get("quantities", {}) if name not in names]
    lines = []
    for name in names:
        found = (row["extra"].get("quantities", {}).get(name) for row in rows)
        lines.append([name, *("" if own is None else _estimated(own) for own in found)])
    return ["", *map(_title, rows)], lines


def _estimated(found: Mapping[str, Any]) -> str:
    estimated, measured, error = (found.get(key) for key in ("estimated", "measured", "error"))
    if estimated is None or measured is None:
        return ""
    return f"{short(estimated)} / {short(measured)}" + ("" if error is None else f" ({error:+.0%})")


def provenance_line(document: Document) -> str:
    """Where a result comes from, in one line."""
    commit = document["commit"]
    parts = [
        document["date"],
        "no commit" if commit is None else f"commit {commit[:12]}{' with changes' if document['dirty'] else ''}",
        machine_name(document),
    ]
    parts.append(", ".join(f"{name} {version}" for name, version in document["libraries"].items() if version))
    return "; ".join(parts)


def machine_name(document: Document) -> str:
    device = document.get("device") if document.get("measured_on", "cuda") == "cuda" else None
    if device is not None:
        return f"{device['name']}, driver {device['driver']}"
    return f"{document['cpu']}, {document.get('cores')} cores, {_threads(document)}, no GPU"


def _threads(document: Document) -> str:
    return f"{document['threads']} thread{'s' if document['threads'] != 1 else ''}"


def spread(values: Quantiles, scale: float = 1.0) -> str:
    """A median with the quantiles around it."""
    low, middle, high = (short(value * scale) for value in (values["q10"], values["median"], values["q90"]))
    return f"{middle} ({low} to {high})"


def short(value: float) -> str:
    """A number in three or four digits."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def giga(value: float | None) -> str:
    return "" if value is None else short(value / 1e9)


_COUNTED = ["GFLOP", "GB moved", "launches", "waits", "peak MB", "end MB", "J an object", "% of matrix rate"]


def _counted(row: Row) -> list[str]:
    """What stands under _COUNTED."""
    extra = row.get("extra", {})
    return [
        giga(row.get("flops")),
        giga(row.get("moved")),
        _whole(row.get("launches")),
        _whole(row.get("waits")),
        _mega(row.get("peak_bytes")),
        _mega(row.get("final_bytes")),
        "" if extra.get("joules_per_object") is None else short(extra["joules_per_object"]),
        "" if row.get("percent_matrix") is None else short(row["percent_matrix"]),
    ]


def _times(row: Row) -> list[str]:
    """First token, each further one, whole answer, objects a second; nothing of what was wrong or not run."""
    if "seconds" not in row or not row["ok"]:
        return [""] * 4
    extra = row["extra"]
    token = "" if extra.get("token") is None else short(1e3 * extra["token"])
    return [
        spread(extra["first"], 1e3),
        token,
        spread(row["seconds"], 1e3),
        short(extra["objects_per_second"]),
    ]


def _verdict(row: Row) -> str:
    if "reason" in row:
        return row["reason"]
    extra = row.get("extra", {})
    equal = f", {extra['equal']}/{extra['asked_again']} equal" if "equal" in extra else ""
    error = row.get("error")
    return f"{'ok' if row['ok'] else 'WRONG'}: {'not finite' if error is None else f'{error:.1e}'}{equal}"


def _title(row: Row) -> str:
    return ", ".join(filter(None, (row["case"], row.get("model"))))


def _first(row: Row) -> float | None:
    return row["extra"].get("first", {}).get("median")


def _number(row: Row, number: Callable[[Row], float | None]) -> float | None:
    try:
        return number(row)
    except KeyError:
        return None


def _stage(*names: str) -> Callable[[Row], float | None]:
    def number(row: Row) -> float | None:
        found = [own["flops"] for name, own in row["extra"]["stages"].items() if name in names]
        return sum(found) / 1e9 if found else None

    return number


def _seen(name: str) -> Callable[[Row], float | None]:
    return lambda row: row["extra"]["tokens"][name]


def _ms(name: str) -> Callable[[Row], float | None]:
    def number(row: Row) -> float | None:
        value = row["extra"][name]
        return 1e3 * (value["median"] if isinstance(value, Mapping) else value)

    return number


def _paper(row: Row) -> float | None:
    value = row["extra"].get("paper_flops")
    return None if value is None else value / 1e9


_AGAINST: tuple[tuple[str, Callable[[Row], float | None], Callable[[float], str]], ...] = (
    ("object tokens", _seen("object"), short),
    ("vision tokens", _seen("vision"), short),
    ("prompt tokens", _seen("prompt"), short),
    ("GFLOP as the paper counts", _paper, short),
    ("GFLOP executed", lambda row: row["flops"] / 1e9, short),
    ("of these encoder", _stage("encoder"), short),
    # "region": what results of before 2026-11-28 have for pooling and infusion
    ("object tokens, infusion, projection", _stage("region", "pooling", "infusion", "projector"), short),
    ("prefill", _stage("prefill"), short),
    ("decoding", _stage("decode"), short),
    ("GB moved", lambda row: row["moved"] / 1e9, short),
    ("launches (operations, on a CPU)", lambda row: row["launches"], short),
    ("host waits", lambda row: row["waits"], short),
    ("time to first token, ms", _ms("first"), short),
    ("time for each further token, ms", _ms("token"), short),
    ("whole answer, ms", lambda row: 1e3 * row["seconds"]["median"], short),
    ("peak memory, MB", lambda row: row["peak_bytes"] / 1e6, short),
    ("energy of an object, J", lambda row: row["extra"]["joules_per_object"], short),
)


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _times_as(value: float) -> str:
    return f"{short(value)}x"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,}"


def _mega(value: float | None) -> str:
    return "" if value is None else short(value / 1e6)


def every_table(document: Document) -> Iterable[tuple[str, Table]]:
    """All tables that a document of the benchmark of whole questions has rows for, with their titles."""
    if rows_of(document, "whole"):
        yield "Whole questions", whole_table(document)
    if rows_of(document, "stages"):
        yield f"Stages of a question: {rows_of(document, 'stages')[0]['case'].partition(':')[0]}", stage_table(document)
    if against_pairs(document):
        yield "Full against Lite", against_table(document)
    if rows_of(document, "reference"):
        yield "Against the reference's own code", reference_table(document)
    measured = {row["extra"]["curve"] for row in rows_of(document, "scaling")}
    for curve, heading in CURVE_HEADINGS.items():
        if curve in measured:
            yield f"Scaling: {heading}", curve_table(document, curve)
