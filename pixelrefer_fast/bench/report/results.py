"""Result files: their schema, appending, reading, checking, and comparing two of them.

A file is a JSON list of documents, the latest last; a document is one run of one benchmark: where it ran, the rates
measured beside it, and a row for each case and whoever computed it.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from pixelrefer_fast.bench.measure import machine
from pixelrefer_fast.checks.new_files import file_to_write, new_file

SCHEMA = 1
THRESHOLD = 1.05  # a change by less is none, whatever the quantiles say


class Quantiles(TypedDict):
    """Of repeated calls, in seconds where nothing else is said."""

    q10: float
    median: float
    q90: float


class Row(TypedDict, total=False):
    """One case as one of its rivals computes it. What was not measured is left out.

    suite: "ops", "stages", "whole", "scaling", ...; case: the work, in words; by: who does it ("torch", "triton",
    "reference"); model and dtype: where a case has them; sizes: numbers that tell cases apart ({"objects": 8}).

    seconds: of the device (by a CPU, of the call); host_seconds: of the host to issue it; calls: how many were timed.
    flops and moved: operations and bytes that the case must do and move; launches and waits: counted.
    error: of the same call that is timed, None where it is not finite; limit: what it may be; ok: whether the check
    holds. reason: why there is no time.
    joules: of one call. percent_copy, percent_matrix: of the rates of the same run; only where the check holds.
    """

    suite: str
    case: str
    by: str
    model: str
    dtype: str
    sizes: dict[str, int | float | str]
    seconds: Quantiles
    host_seconds: Quantiles
    calls: int
    flops: int
    moved: int
    launches: int
    waits: int
    error: float | None
    limit: float | None
    ok: bool
    reason: str
    peak_bytes: int
    final_bytes: int
    joules: float
    percent_copy: float
    percent_matrix: float
    extra: dict[str, Any]


TEXTS = ("suite", "case", "by", "model", "dtype", "reason")
COUNTS = ("calls", "flops", "moved", "launches", "waits", "peak_bytes", "final_bytes")
NUMBERS = ("joules", "percent_copy", "percent_matrix")
JUDGED = ("error", "limit")
TIMES = ("seconds", "host_seconds")
NEEDED = ("suite", "case", "by", "ok")
PROVENANCE = ("date", "commit", "dirty", "command", "cpu", "threads", "libraries", "device", "clocks")
KEY = ("suite", "case", "by", "model", "dtype")


def document(benchmark: str, rows: Sequence[Row], rates: Mapping[str, float] | None = None, **more: Any) -> dict:
    """One run: its rows with the percentages of `rates` that they reach, and where it ran.

    Args:
        benchmark: its name.
        rates: as `rates.measured` gives them; they belong to the same run.
        more: further fields of the document.

    Raises:
        ValueError: what `validate` says of it.
    """
    rates = dict(rates or {})
    made = {
        "schema": SCHEMA,
        "benchmark": benchmark,
        **machine.provenance(),
        "rates": rates,
        **more,
        "rows": [_plain(_rated(row, rates)) for row in rows],
    }
    problems = validate(made)
    if problems:
        raise ValueError(f"{benchmark}: {'; '.join(problems[:5])}")
    return made


def _rated(row: Row, rates: Mapping[str, float]) -> Row:
    median = row.get("seconds", {}).get("median")
    if not median or not row.get("ok"):
        return row
    row = row.copy()
    if row.get("moved") and rates.get("copy"):
        row["percent_copy"] = 100 * row["moved"] / median / rates["copy"]
    if row.get("flops") and rates.get(row.get("dtype", "")):
        row["percent_matrix"] = 100 * row["flops"] / median / rates[row["dtype"]]
    return row


def _plain(value: Any) -> Any:
    """Numbers that JSON lacks become None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(own) for key, own in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(own) for own in value]
    return value


def speedup(row: Row, base: Row) -> float | None:
    """How many times the time of `base` is that of `row`; None where either was not timed or is wrong."""
    if not (row.get("ok") and base.get("ok") and "seconds" in row and "seconds" in base):
        return None
    return base["seconds"]["median"] / row["seconds"]["median"]


def relative_error(got: Any, want: Any) -> float:
    """Largest difference of two tensors over the largest wanted value; infinite for another shape or for NaN."""
    if got.shape != want.shape or not bool(got.isfinite().all()):
        return math.inf
    return ((got - want).abs().max() / want.abs().max()).item()


def validate(document: Any) -> list[str]:
    """What is wrong with a document, each as one line that names the place; nothing where it is fine."""
    if not isinstance(document, Mapping):
        return [f"expected a document (an object), got {_kind(document)}"]
    problems = []
    if document.get("schema") != SCHEMA:
        problems.append(f"schema: expected {SCHEMA}, got {document.get('schema')!r}")
    if not isinstance(document.get("benchmark"), str):
        problems.append(f"benchmark: expected a name, got {_kind(document.get('benchmark'))}")
    problems += [f"{name}: expected, but it is not there" for name in PROVENANCE if name not in document]
    rates = document.get("rates", {})
    if not isinstance(rates, Mapping):
        problems.append(f"rates: expected an object, got {_kind(rates)}")
    else:
        problems += [f"rates.{k}: expected a number above 0, got {v!r}" for k, v in rates.items() if not _positive(v)]
    rows = document.get("rows")
    if not isinstance(rows, Sequence) or isinstance(rows, str):
        return [*problems, f"rows: expected a list, got {_kind(rows)}"]
    keys: dict[tuple[Any, ...], int] = {}
    for i, row in enumerate(rows):
        own = list(_row_problems(row))
        problems += [f"rows[{i}]{problem}" for problem in own]
        if not own:
            first = keys.setdefault(_key(row), i)
            if first != i:
                problems.append(f"rows[{i}]: the same case, rival and sizes as rows[{first}]")
    return problems


def _row_problems(row: Any) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f": expected an object, got {_kind(row)}"
        return
    for name in NEEDED:
        if name not in row:
            yield f".{name}: expected, but it is not there"
    for name, value in row.items():
        if name in TEXTS:
            wanted, fine = "text", isinstance(value, str)
        elif name in COUNTS:
            wanted, fine = "a whole number from 0", isinstance(value, int) and _number(value) and value >= 0
        elif name in NUMBERS:
            wanted, fine = "a number from 0", _number(value) and value >= 0
        elif name in JUDGED:
            wanted, fine = "a number from 0, or null where it is not finite", value is None or _number(value)
        elif name in TIMES:
            wanted = "q10 <= median <= q90 in seconds"
            fine = isinstance(value, Mapping) and set(value) == {"q10", "median", "q90"}
            fine = fine and all(map(_number, value.values())) and 0 <= value["q10"] <= value["median"] <= value["q90"]
        elif name == "ok":
            wanted, fine = "true or false", isinstance(value, bool)
        elif name == "sizes":
            wanted = "an object of numbers and texts"
            fine = isinstance(value, Mapping) and all(isinstance(v, str) or _number(v) for v in value.values())
        elif name == "extra":
            wanted, fine = "an object", isinstance(value, Mapping)
        else:
            yield f".{name}: no field of a row (what is special to a benchmark goes into `extra`)"
            continue
        if not fine:
            yield f".{name}: expected {wanted}, got {str(value)[:80]}"
    if row.get("ok") is False and any(name in row for name in ("percent_copy", "percent_matrix")):
        yield ".ok: a row whose check fails has no percentages"
    if row.get("ok") is True and "seconds" not in row and "reason" in row:
        yield ".ok: a row that was not run (`reason`) cannot be right"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _positive(value: Any) -> bool:
    return _number(value) and value > 0


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def check_path(path: Path) -> None:
    """Refuse, before any work, a file that results cannot be appended to.

    Raises:
        ValueError: it is a folder, its folder cannot be made or written to, or it holds something else.
    """
    if file_to_write(path).exists():
        read(path)
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(f"{path}: cannot be written: {folder} is no folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{path}: cannot be written: no permission in {folder}")


def append(path: Path, document: Mapping[str, Any]) -> None:
    """Add a document to a file, which is replaced in one step; nobody sees half a file, nor loses another's document.

    Raises:
        ValueError: the document is wrong (one of today's schema), or the file holds something else.
    """
    if "schema" in document:
        problems = validate(document)
        if problems:
            raise ValueError(f"{path}: {'; '.join(problems[:5])}")
    file_to_write(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path.parent):
        documents = read(path) if file_to_write(path).exists() else []
        text = json.dumps([*documents, _plain(document)], indent=1, allow_nan=False) + "\n"
        with new_file(path) as beside:
            beside.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One writer in a folder at a time, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read(path: Path) -> list[dict[str, Any]]:
    """All documents of a file, the oldest first; those from before the schema as they are.

    Raises:
        ValueError: it cannot be read, or is no such file.
    """
    try:
        documents = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected a result file (a JSON list), got something else: {error}") from error
    if not isinstance(documents, list) or not all(isinstance(d, dict) and "benchmark" in d for d in documents):
        raise ValueError(f"{path}: expected a result file (a JSON list of documents with a `benchmark`)")
    return documents


def latest(path: Path, benchmark: str | None = None) -> dict[str, Any]:
    """The last document of a file, or the last of that benchmark.

    Raises:
        ValueError: as `read`, or there is none.
    """
    found = [d for d in read(path) if benchmark is None or d["benchmark"] == benchmark]
    if not found:
        raise ValueError(f"{path}: there is no result{f' of {benchmark!r}' if benchmark else ''} in it")
    return found[-1]


def modern(document: Mapping[str, Any]) -> dict[str, Any]:
    """A document of `ops_bench.py` from before the schema in today's form; any other as it is."""
    if "schema" in document or document["benchmark"] != "ops":
        return dict(document)
    rates = document["rates"]
    rows: list[Row] = []
    for old in document["rows"]:
        for by, own in old["candidates"].items():
            row: Row = {"suite": "ops", "case": f"{old['op']}: {old['case']}", "by": by, "dtype": old["dtype"]}
            row |= {"flops": old["flops"], "moved": old["moved"], "extra": {"op": old["op"]}, **own}
            rows.append(_plain(_rated(row, rates)))
    return {"schema": SCHEMA, "clocks": None, **document, "rows": rows}


@dataclass(frozen=True)
class Change:
    """How one number of one case differs between two documents.

    Attributes:
        case: suite, case, rival, model, dtype and sizes, in words.
        what: "seconds" (the median), "peak_bytes", "launches", "waits", or "check" for a case that has become wrong or
            right, "there" for one that only one document has.
        before, after: the numbers, None where there is none.
        ratio: after over before.
        significant: beyond noise: of seconds that the ranges from q10 to q90 do not overlap and the ratio exceeds the
            threshold; of memory the latter; of counts any difference.
        worse: slower, more, wrong or gone.
    """

    case: str
    what: str
    before: float | None
    after: float | None
    ratio: float | None
    significant: bool
    worse: bool


def compare(before: Mapping[str, Any], after: Mapping[str, Any], threshold: float = THRESHOLD) -> list[Change]:
    """Every difference between the rows of two documents, in the order of `after`, those that are gone last.

    Raises:
        ValueError: they are of two benchmarks, or either is no document of today's schema.
    """
    before, after = modern(before), modern(after)
    for name, of in (("before", before), ("after", after)):
        problems = validate(of)
        if problems:
            raise ValueError(f"{name}: {'; '.join(problems[:5])}")
    if before["benchmark"] != after["benchmark"]:
        raise ValueError(f"expected two results of one benchmark, got {before['benchmark']!r}, {after['benchmark']!r}")
    olds, news = ({_key(row): row for row in of["rows"]} for of in (before, after))
    changes: list[Change] = []
    for key, new in news.items():
        old = olds.get(key)
        if old is None:
            changes.append(Change(_words(new), "there", None, None, None, True, False))
        else:
            changes += _changes(_words(new), old, new, threshold)
    gone = (old for key, old in olds.items() if key not in news)
    return [*changes, *(Change(_words(old), "there", None, None, None, True, True) for old in gone)]


def _changes(case: str, old: Row, new: Row, threshold: float) -> Iterator[Change]:
    if old["ok"] != new["ok"]:
        yield Change(case, "check", None, None, None, True, not new["ok"])
    if "seconds" in old and "seconds" in new and new["ok"]:
        a, b = old["seconds"], new["seconds"]
        if a["median"] > 0:
            ratio = b["median"] / a["median"]
            apart = b["q10"] > a["q90"] or a["q10"] > b["q90"]
            beyond = apart and (ratio > threshold or ratio < 1 / threshold)
            yield Change(case, "seconds", a["median"], b["median"], ratio, beyond, ratio > 1)
    for what, least in (("peak_bytes", threshold), ("launches", 1.0), ("waits", 1.0)):
        if what in old and what in new and old[what] != new[what]:  # type: ignore[literal-required]
            x, y = old[what], new[what]  # type: ignore[literal-required]
            beyond = max(x, y) > least * min(x, y)
            yield Change(case, what, x, y, y / x if x else None, beyond, y > x)


def regressions(changes: Iterable[Change]) -> list[Change]:
    """Those that are worse beyond noise."""
    return [change for change in changes if change.significant and change.worse]


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What of the two machines differs, in words: times are then not the code's alone."""
    found = []
    for name in ("cpu", "cores", "threads", "python", "device"):
        if before.get(name) != after.get(name):
            found.append(f"{name}: {_brief(before.get(name))}, then {_brief(after.get(name))}")
    olds, news = before.get("libraries", {}), after.get("libraries", {})
    for name in sorted(olds.keys() | news.keys()):
        if olds.get(name) != news.get(name):
            found.append(f"{name}: {olds.get(name) or 'none'}, then {news.get(name) or 'none'}")
    return found


def _brief(value: Any) -> str:
    return str(value.get("name")) if isinstance(value, Mapping) else str(value)


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return (*(row.get(name) for name in KEY), tuple(sorted(row.get("sizes", {}).items())))


def _words(row: Mapping[str, Any]) -> str:
    sizes = ", ".join(f"{name} {value}" for name, value in row.get("sizes", {}).items())
    parts = [row["suite"], row["case"], row.get("model"), row.get("dtype"), sizes, row["by"]]
    return ", ".join(part for part in parts if part)
