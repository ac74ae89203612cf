"""Rows and documents of the benchmark of whole questions, made up; and sizes at which it takes seconds."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from pixelrefer_fast.bench.measure import timing
from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.report.results import Row
from pixelrefer_fast.bench.run import against, loads
from pixelrefer_fast.bench.run.effort import Effort

TINY = Effort(
    repeats=1,
    seconds=0.0,
    tokens=3,
    curve_tokens=2,
    curves={"objects": (1, 2), "frames": (2,), "side": (112,), "n": (2,), "batch": (2,)},
)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Videos of two frames, a batch of two, small pictures, and no garbage collection, which takes longer than they."""
    for module in (loads, against):
        patch.setattr(module, "FRAMES", 2)
    patch.setattr(loads, "BATCH", 2)
    patch.setattr(loads, "SMALL_PICTURE", (112, 112))
    patch.setattr(timing, "quiet", nullcontext)


def quantiles(median: float) -> Any:
    return {"q10": 0.9 * median, "median": median, "q90": 1.1 * median}


def whole_row(
    case: str = "one object", seconds: float = 0.4, first: float = 0.1, suite: str = "whole", **changes: Any
) -> Row:
    """A row as `whole.measure` makes it; `changes` win, those of `extra` field by field."""
    stages = {name: {"flops": 10**9, "moved": 10**8, "launches": 5} for name in ("encoder", "prefill", "decode")}
    stages |= {name: {"flops": 0, "moved": 0, "launches": 0} for name in ("views", "region", "projector", "prompt")}
    extra = {
        "kind": "lite",
        "first": quantiles(first),
        "token": (seconds - first) / 15,
        "encode": quantiles(first / 2),
        "objects_per_second": 1 / seconds,
        "weights": 10**7,
        "tokens": {"object": 4, "vision": 0, "prompt": 20, "answer": 16},
        "stages": stages,
        "equal": 1,
        "asked_again": 1,
    } | changes.pop("extra", {})
    row: Row = {
        "suite": suite,
        "case": case,
        "by": "ours",
        "model": "embedded:lite",
        "dtype": "float32",
        "sizes": {"objects": 1, "frames": 1, "marked": 1, "height": 168, "width": 168, "batch": 1, "answer": 16},
        "seconds": quantiles(seconds),
        "calls": 7,
        "flops": 3 * 10**9,
        "moved": 3 * 10**8,
        "launches": 15,
        "peak_bytes": 2 * 10**7,
        "final_bytes": 10**7,
        "error": 0.0,
        "limit": 1e-4,
        "ok": True,
        "extra": extra,
    }
    row |= changes  # type: ignore[typeddict-item]
    return row


def against_rows(case: str = "image", times: float = 4.0, work: float = 8.0) -> list[Row]:
    """Lite's and Full's row of a case; Full takes so many times the time and the FLOPs until the first token."""
    lite = whole_row(case, suite="against", extra={"paper_flops": 10**8})
    full = whole_row(
        case,
        times * 0.4,
        times * 0.1,
        "against",
        model="embedded:full",
        flops=int(work * 3e9),
        extra={"kind": "full", "paper_flops": 5 * 10**9},
    )
    full["extra"]["tokens"] = {"object": 4, "vision": 144, "prompt": 170, "answer": 16}
    for own in full["extra"]["stages"].values():
        own["flops"] = int(work * own["flops"])
    return [lite, full]


def curve_rows(curve: str, values: tuple[int, ...]) -> list[Row]:
    return [whole_row(f"{curve} {v}", 0.1 * v, 0.05 * v, "scaling", extra={"curve": curve, "value": v}) for v in values]


def reference_rows(case: str = "one object", times: float = 3.0, ok: bool = True) -> list[Row]:
    ours = whole_row(case, suite="reference", ok=ok, error=0.0 if ok else 0.5)
    theirs = whole_row(case, 0.4 * times, 0.1 * times, "reference", by="reference")
    for name in ("error", "limit"):
        theirs.pop(name)  # type: ignore[misc]
    return [theirs, ours]


def left_out_row(case: str) -> Row:
    return {
        "suite": "scaling",
        "case": case,
        "by": "ours",
        "model": "embedded:lite",
        "dtype": "float32",
        "sizes": {"objects": 64},
        "ok": False,
        "reason": "no time left of 60 s",
        "extra": {"curve": "objects", "value": 64},
    }


def document(rows: list[Row], **more: Any) -> dict[str, Any]:
    """A valid document of these rows."""
    rates = {"copy": 1e10, "float32": 1e11}
    more = {"measured_on": "cpu", "model": "embedded:lite", "dtype": "float32", "quick": True} | more
    return results.document("bench", rows, rates, **more)
