"""Goals that the project set itself, and what result files say of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pixelrefer_fast.bench.report import tables

Document = Mapping[str, Any]


def measured_on(document: Document) -> str:
    """ "cuda" or "cpu"."""
    return document.get("measured_on") or ("cuda" if document.get("device") else "cpu")


@dataclass(frozen=True)
class Goal:
    """A number that the project set itself (../shared/performance.md), and where it is found.

    Attributes:
        what: in words.
        wanted: in words.
        where: "cuda" (an H200 in bfloat16) or "cpu".
        find: (measured, in words; whether the goal is met) in a document, None where it is not in it.
    """

    what: str
    wanted: str
    where: str
    find: Callable[[Document], tuple[str, bool] | None]


def _row(document: Document, suite: str, case: str, model: str | None = None, by: str | None = None) -> Any:
    for row in document.get("rows", ()):
        fits = row.get("suite") == suite and row.get("case") == case and row.get("ok") and "seconds" in row
        if fits and model in (None, row.get("model")) and by in (None, row["by"]):
            return row
    return None


def _decode_row(document: Document, case: str, model: str) -> Any:
    """A row of decode.py, as a model decodes that `load` has warmed: captured."""
    for own in document.get("models", ()) if document.get("graph_bytes") != 0 else ():
        for row in own["rows"]:
            if own["model"] == model and row["case"] == case:
                return row
    return None


def _first(limit: float) -> Callable[[Document], tuple[str, bool] | None]:
    def find(document: Document) -> tuple[str, bool] | None:
        row, own = _row(document, "whole", "one object", "lite-2b"), _decode_row(document, "first token", "lite-2b")
        if row is None and own is None:
            return None
        found = 1e3 * row["extra"]["first"]["median"] if row is not None else own["values"]["median"]
        return f"{tables.short(found)} ms", found <= limit

    return find


def _description(model: str, limit: float) -> Callable[[Document], tuple[str, bool] | None]:
    def find(document: Document) -> tuple[str, bool] | None:
        row, own = _row(document, "whole", "one object", model), _decode_row(document, "description", model)
        if row is not None and row["sizes"]["answer"] == 64:
            found = 1e3 * row["seconds"]["median"]
        elif own is not None:
            found = own["values"]["median"]
        else:
            return None
        return f"{tables.short(found)} ms", found <= limit

    return find


def _objects(limit: float) -> Callable[[Document], tuple[str, bool] | None]:
    def find(document: Document) -> tuple[str, bool] | None:
        row = _row(document, "whole", "batch of 64", "lite-2b")
        if row is None:
            return None
        found = row["extra"]["objects_per_second"]
        return f"{tables.short(found)} a second, {row['sizes']['answer']} tokens each", found >= limit

    return find


def _memory(limit: float) -> Callable[[Document], tuple[str, bool] | None]:
    def find(document: Document) -> tuple[str, bool] | None:
        row = _row(document, "whole", "one object", "lite-2b")
        if row is None:
            return None
        found = row["peak_bytes"] / row["extra"]["weights"]
        return f"{found:.2f}x", found <= limit

    return find


def _saving(limit: float) -> Callable[[Document], tuple[str, bool] | None]:
    def find(document: Document) -> tuple[str, bool] | None:
        if "rows" not in document:  # of decode.py
            return None
        pair = tables.against_pairs(document).get("20-frame video")
        if pair is None or pair[0].get("model") != "lite-2b":
            return None
        found = pair[1]["extra"]["first"]["median"] / pair[0]["extra"]["first"]["median"]
        return f"{found:.1f}x", found >= limit

    return find


def _decode(model: str, sequences: int, limit: float) -> Callable[[Document], tuple[str, bool] | None]:
    def find(document: Document) -> tuple[str, bool] | None:
        row = _decode_row(document, f"decode, {sequences}", model)
        if row is None or "percent_of_copy" not in row:
            return None
        return f"{row['percent_of_copy']:.0f} %", row["percent_of_copy"] >= limit

    return find


def _region(case: str, limit: float) -> Callable[[Document], tuple[str, bool] | None]:
    def find(document: Document) -> tuple[str, bool] | None:
        if document.get("benchmark") != "region_stage" or document.get("rival") != "reference":
            return None
        for row in document["rows"]:
            if row.get("case") == case and row.get("ok") and "speedup" in row:
                found = row["speedup"]["median"]
                return f"{found:.1f}x", found >= limit
        return None

    return find


REGION, PIXELS = "region stage, 16 objects", "pixels to tokens, 8 objects"
GOALS = (
    Goal("region stage, 16 objects, against the reference's code", "at least 100x", "cuda", _region(REGION, 100)),
    Goal(
        "pixels to object tokens, 8 objects, against the reference's code", "at least 10x", "cuda", _region(PIXELS, 10)
    ),
    Goal("first token, Lite-2B, one object, 1080p", "at most 10 ms", "cuda", _first(10)),
    Goal("64 tokens about one object, Lite-2B", "at most 75 ms", "cuda", _description("lite-2b", 75)),
    Goal("64 tokens about one object, Lite-7B", "at most 350 ms", "cuda", _description("lite-7b", 350)),
    Goal("objects a second, Lite-2B, batches of 64", "at least 400", "cuda", _objects(400)),
    Goal("decoding, Lite-2B, of the measured copy bandwidth", "at least 70 %", "cuda", _decode("lite-2b", 1, 70)),
    Goal("decoding, Lite-2B, 8 sequences at once, likewise", "at least 85 %", "cuda", _decode("lite-2b", 8, 85)),
    Goal("decoding, Lite-7B, of the measured copy bandwidth", "at least 85 %", "cuda", _decode("lite-7b", 1, 85)),
    Goal("decoding, Lite-7B, 8 sequences at once, likewise", "at least 85 %", "cuda", _decode("lite-7b", 8, 85)),
    Goal("peak memory, one object, of the weights", "at most 1.15x", "cuda", _memory(1.15)),
    Goal("first token, 20-frame video, Full-2B against Lite-2B", "at least 5x", "cuda", _saving(5)),
    Goal("region stage, 16 objects, against the reference's code", "at least 5x", "cpu", _region(REGION, 5)),
)


def goal_lines(documents: Sequence[Document]) -> Iterator[tuple[Goal, str, bool | None]]:
    """Each goal with what was measured for it, last: (goal, in words, met); met is None where nothing was."""
    for goal in GOALS:
        found = None
        for document in reversed(documents):
            if measured_on(document) == goal.where and (found := goal.find(document)) is not None:
                break
        yield goal, "" if found is None else found[0], None if found is None else found[1]
