"""Pictures from result documents, as PNG and SVG, readable on white and on black; no number is from anywhere else."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pixelrefer_fast.bench.report import tables
from pixelrefer_fast.bench.report.results import Quantiles, Row
from pixelrefer_fast.bench.report.tables import Document
from pixelrefer_fast.checks.new_files import new_file

# on a transparent ground: each stands out from white and from the near-black of dark pages
INK, GRID = "#6f7883", "#8b949e"
FULL, LITE, OURS, RIVAL, LATER = "#c9700a", "#2377dd", "#2377dd", "#c9700a", "#7fa8d9"
WORK, TIME, SPACE = "#8b949e", "#2377dd", "#2d9164"
SUFFIXES = (".png", ".svg")


def needed() -> Any:
    """matplotlib's pyplot, with a backend that opens no window.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ValueError(
            "pictures: expected matplotlib, which is not installed: pip install 'pixelrefer-fast[bench]'"
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def every_plot(document: Document, folder: Path) -> list[Path]:
    """All pictures that a document has rows for, in a folder that exists; the files that were written.

    Raises:
        ValueError: matplotlib is not installed.
    """
    written = []
    for name, draw in (("against", against), ("whole", whole), ("reference", reference), ("scaling", scaling)):
        figure = draw(document)
        if figure is not None:
            written += save(figure, folder / name)
    return written


def against(document: Document) -> Any | None:
    """How many times Lite's each of Full's numbers is: work beside time, on one scale; None without such rows."""
    pairs = tables.against_pairs(document)
    if not pairs:
        return None
    bars: list[tuple[str, str, Callable[[Row], float | None]]] = [
        ("FLOPs as the paper counts", WORK, lambda row: row["extra"].get("paper_flops")),
        ("FLOPs to the first token", WORK, tables.first_flops),
        ("time to first token", TIME, lambda row: row["extra"]["first"]["median"]),
        ("FLOPs of the whole answer", WORK, lambda row: row.get("flops")),
        ("time of the whole answer", TIME, lambda row: row["seconds"]["median"]),
        ("peak memory", SPACE, lambda row: row.get("peak_bytes")),
        ("energy", SPACE, lambda row: row.get("joules")),
    ]
    with _style() as pyplot:
        figure, axes = pyplot.subplots(
            len(pairs), 1, figsize=(8.5, 0.7 + 2.1 * len(pairs)), sharex=True, squeeze=False, constrained_layout=True
        )
        for axis, (case, (lite, full)) in zip(axes[:, 0], pairs.items(), strict=True):
            found = []
            for name, color, number in bars:
                a, b = number(full), number(lite)
                if a is not None and b:
                    found.append((name, color, a / b))
            names, colors, values = zip(*found, strict=True)
            # from 1: a bar to the right is a saving, one to the left its opposite
            drawn = axis.barh(range(len(values)), [v - 1 for v in values], left=1, color=colors, height=0.72)
            for bar, value in zip(drawn, values, strict=True):
                place = max(value, 1.0)
                axis.annotate(
                    f"{tables.short(value)}x",
                    (place, bar.get_y() + bar.get_height() / 2),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                )
            axis.set_yticks(range(len(names)), names)
            axis.invert_yaxis()
            axis.set_xscale("log")
            kept = tables.kept_share(lite, full)
            words = tables.kept_words(kept)
            title = f"{case}: {words} of the saved FLOPs became time" if words else case
            axis.set_title(title, loc="left", fontsize=10, fontweight="bold")
            axis.axvline(1, color=INK, linewidth=1)
            axis.margins(x=0.12)
            axis.grid(axis="y", visible=False)
        _plain_numbers(axes[-1, 0].xaxis)
        lite, full = next(iter(pairs.values()))
        axes[-1, 0].set_xlabel(f"Full / Lite: {full.get('model')} / {lite.get('model')}, {_where(document, lite)}")
        return figure


def whole(document: Document) -> Any | None:
    """Time of the whole cases, the way to the first token apart; None without such rows."""
    rows = [row for row in tables.rows_of(document, "whole") if row["ok"] and "seconds" in row]
    if not rows:
        return None
    with _style() as pyplot:
        figure, axis = pyplot.subplots(figsize=(8.5, 1.2 + 0.5 * len(rows)), constrained_layout=True)
        names = [row["case"] for row in rows]
        first = [1e3 * row["extra"]["first"]["median"] for row in rows]
        median = [1e3 * row["seconds"]["median"] for row in rows]
        axis.barh(names, first, color=OURS, label="to the first token")
        later = [max(0.0, m - f) for f, m in zip(first, median, strict=True)]
        bars = axis.barh(names, later, left=first, color=LATER, label="further tokens")
        for bar, row, value in zip(bars, rows, median, strict=True):
            rate = tables.short(row["extra"]["objects_per_second"])
            axis.annotate(
                f"{rate} objects/s",
                (value, bar.get_y() + bar.get_height() / 2),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
        axis.invert_yaxis()
        axis.set_xlim(0, max(median) * 1.2)
        answer = rows[0]["sizes"]["answer"]
        axis.set_xlabel(f"ms for answers of {answer} tokens: {rows[0].get('model')}, {_where(document, rows[0])}")
        axis.grid(axis="y", visible=False)
        axis.legend(frameon=False, loc="upper right")
        return figure


def reference(document: Document) -> Any | None:
    """Ours beside the rival's time, case by case; None without such rows."""
    found: dict[str, dict[str, Row]] = {}
    for row in tables.rows_of(document, "reference"):
        if row["ok"] and "seconds" in row:
            found.setdefault(row["case"], {})["ours" if row["by"] == "ours" else "rival"] = row
    pairs = {case: own for case, own in found.items() if len(own) == 2}
    if not pairs:
        return None
    with _style() as pyplot:
        figure, axis = pyplot.subplots(figsize=(8.5, 1.0 + 0.8 * len(pairs)), constrained_layout=True)
        rival = next(iter(pairs.values()))["rival"]["by"]
        for offset, side, color, label in ((-0.2, "rival", RIVAL, rival), (0.2, "ours", OURS, "ours")):
            values = [1e3 * own[side]["seconds"]["median"] for own in pairs.values()]
            places = [i + offset for i in range(len(pairs))]
            bars = axis.barh(places, values, height=0.38, color=color, label=label)
            for bar, own, value in zip(bars, pairs.values(), values, strict=True):
                times = own["rival"]["seconds"]["median"] / own["ours"]["seconds"]["median"]
                words = f"{tables.short(value)} ms" + (f", {tables.short(times)}x" if side == "ours" else "")
                axis.annotate(
                    words,
                    (value, bar.get_y() + bar.get_height() / 2),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                )
        axis.set_yticks(range(len(pairs)), list(pairs))
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.margins(x=0.15)
        _plain_numbers(axis.xaxis)
        row = next(iter(pairs.values()))["ours"]
        axis.set_xlabel(f"ms for answers of {row['sizes']['answer']} tokens: {row['model']}, {_where(document, row)}")
        axis.grid(axis="y", visible=False)
        axis.legend(frameon=False, loc="lower right")
        return figure


def scaling(document: Document) -> Any | None:
    """Time against each size, both axes logarithmic; None without such rows."""
    rows = [row for row in tables.rows_of(document, "scaling") if row["ok"] and "seconds" in row]
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(row["extra"]["curve"], []).append(row)
    if not curves:
        return None
    with _style() as pyplot:
        columns = min(3, len(curves))
        lines = -(-len(curves) // columns)
        figure, axes = pyplot.subplots(
            lines, columns, figsize=(3.4 * columns, 2.9 * lines), squeeze=False, constrained_layout=True
        )
        for axis in axes.flat[len(curves) :]:
            axis.set_visible(False)
        for axis, (curve, own) in zip(axes.flat, curves.items(), strict=False):
            own = sorted(own, key=lambda row: row["extra"]["value"])
            values = [row["extra"]["value"] for row in own]
            series: dict[str, tuple[list[Quantiles], str, str]] = {
                "whole answer": ([row["seconds"] for row in own], LATER, "o"),
                "first token": ([row["extra"]["first"] for row in own], OURS, "o"),
            }
            if all("encode" in row["extra"] for row in own):
                series["pixels to object tokens"] = ([row["extra"]["encode"] for row in own], SPACE, "s")
            for label, (seconds, color, marker) in series.items():
                axis.plot(values, [1e3 * s["median"] for s in seconds], color=color, marker=marker, ms=4, label=label)
                low, high = [1e3 * s["q10"] for s in seconds], [1e3 * s["q90"] for s in seconds]
                axis.fill_between(values, low, high, color=color, alpha=0.2, linewidth=0)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(values, [f"{v:,}" for v in values], rotation=45 if len(values) > 6 else 0)
            axis.set_xlabel(tables.CURVE_HEADINGS[curve])
            _plain_numbers(axis.yaxis)
        for line in axes:
            line[0].set_ylabel("ms")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
        figure.supxlabel(f"{rows[0]['model']}, {_where(document, rows[0])}", fontsize=9, color=INK)
        return figure


def save(figure: Any, stem: Path) -> list[Path]:
    """Write `stem`.png and `stem`.svg, each in one step; the same figure gives the same files."""
    pyplot = needed()
    written = []
    for suffix in SUFFIXES:
        data = io.BytesIO()
        metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
        with pyplot.rc_context({"svg.hashsalt": "pixelrefer_fast"}):
            figure.savefig(data, format=suffix[1:], dpi=130, transparent=True, metadata=metadata)
        target = stem.with_suffix(suffix)
        with new_file(target) as beside:
            beside.write_bytes(data.getvalue())
        written.append(target)
    pyplot.close(figure)
    return written


@contextlib.contextmanager
def _style() -> Iterator[Any]:
    pyplot = needed()
    style = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
    style |= {"axes.titlecolor": INK, "grid.color": GRID}
    settings = {"font.size": 9.5, "axes.grid": True, "grid.alpha": 0.35, "grid.linewidth": 0.6}
    settings |= {"axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context({**style, **settings}):
        yield pyplot


def _plain_numbers(axis: Any) -> None:
    """1, 10, 100 instead of powers of ten, and between them what there is room for."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value < 1000 else f"{value:,.0f}"))
    axis.set_minor_formatter(NullFormatter())


def _where(document: Document, row: Row) -> str:
    return f"{row.get('dtype')} on {tables.machine_name(document)}"
