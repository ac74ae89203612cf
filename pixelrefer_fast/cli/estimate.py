"""`estimate`: what a question will cost, from sizes alone, and how far that is from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from pixelrefer_fast.bench.estimate import estimate_check, gpus
from pixelrefer_fast.bench.estimate.estimate import ITEMS, Estimate, config_of, estimate, other_kind
from pixelrefer_fast.bench.estimate.estimate_check import EstimateCheck, Quantity
from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.checkpoint.config import KINDS, ModelConfig
from pixelrefer_fast.checks.printable import write_json
from pixelrefer_fast.device.stages import STAGES

MEASURED_STEPS = len(STAGES) + 3  # that --measure tells of

UNITS = {"tokens": (1, ""), "FLOP": (1e-9, "GFLOP"), "bytes": (1e-6, "MB"), "launches": (1, ""), "s": (1e3, "ms")}


def parsed_size(option: str, text: str) -> tuple[int, int]:
    """(height, width) of "HxW" or of one side.

    Raises:
        ValueError: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"{option}: expected HEIGHTxWIDTH in pixels, such as 1080x1920, got {text!r}")
    return int(sides[0]), int(sides[-1])


def boxed(area: float, height: int, width: int) -> tuple[int, int]:
    """The box of that share of a picture, of the picture's shape."""
    if not 0 < area <= 1:
        raise ValueError(f"--area: expected a share above 0, at most 1, got {area:g}")
    side = area**0.5
    return max(1, round(height * side)), max(1, round(width * side))


def against_of(name: str, config: ModelConfig, against: str) -> tuple[str, ModelConfig]:
    """The other model: "full" or "lite" is the same sizes in the other kind, anything else a model's name."""
    if against in KINDS.values():
        return f"{name} as {against}", config if config.kind == against else other_kind(config)
    return against, config_of(against)


def estimated(
    model: str, workload: Workload, gpu: gpus.Gpu | None, dtype: str, graphs: bool, against: str | None
) -> list[Estimate]:
    """The model's estimate, and that of what it is set against.

    Full takes an object in one frame: set against Lite, it is shown the object in one.
    """
    config = config_of(model)
    named = [(model, config)] + ([against_of(model, config, against)] if against else [])
    found = []
    for name, own in named:
        asked = replace(workload, marked=1) if own.kind == "full" and against else workload
        found.append(replace(estimate(own, asked, gpu, dtype, graphs), model=name))
    return found


def print_estimate(found: Sequence[Estimate], file: TextIO) -> None:
    """Tables for people: stages, memory, totals; two models side by side."""
    from rich.table import Table

    console = _console(file)
    for one in found:
        console.print(_headline(one))
        table = Table(box=None, pad_edge=False)
        for heading in ("stage", "GFLOP", "MB moved", "launches", "ms", "share", "limited by"):
            table.add_column(heading, justify="left" if heading in ("stage", "limited by") else "right")
        for stage in one.stages:
            share = "" if stage.seconds is None else f"{stage.seconds / (one.seconds or 1):.0%}"
            seconds, limit = _milli(stage.seconds), stage.limit or ""
            work = _short(stage.flops / 1e9), _short(stage.moved / 1e6), f"{stage.launches:,}"
            table.add_row(stage.name, *work, seconds, share, limit)
        totals = _short(one.flops / 1e9), _short(one.moved / 1e6), f"{one.launches:,}", _milli(one.seconds)
        table.add_row("all", *totals, "", "", style="bold")
        console.print(table)
        console.print(_memory(one))
        if one.gpu is not None:
            console.print(_times(one))
        console.print()
    if len(found) == 2:
        console.print(_comparison(found[0], found[1]))
        console.print()
    first = found[0]
    if first.gpu is not None:
        rates = f"{first.gpu.rate(first.dtype) / 1e12:,.3g} TFLOP/s, {first.gpu.copy / 1e12:,.3g} TB/s"
        issue = f"{first.gpu.issue * 1e6:.2g} µs of the host a launch, {first.gpu.gap * 1e6:.2g} of the device"
        console.print(f"{first.gpu.title}: {rates} ({first.gpu.basis(first.dtype)}); {issue}.")
        console.print("A limit and no promise: every launch at these rates, nothing waiting for anything else.")


def print_checks(checks: Sequence[EstimateCheck], file: TextIO) -> None:
    """Tables of what was estimated and measured, with the error of each number."""
    from rich.table import Table

    console = _console(file)
    for check in checks:
        one = check.estimate
        where = "" if one.gpu is None else f" on {one.gpu.title}"
        console.print(f"{check.case}: {one.model}, {one.dtype}{where}")
        table = Table(box=None, pad_edge=False)
        for heading in ("", "estimated", "measured", "error"):
            table.add_column(heading, justify="right" if heading else "left")
        for unit, (factor, shown) in UNITS.items():
            for quantity in (q for q in check.quantities if q.unit == unit):
                numbers = _short(quantity.estimated * factor), _short(quantity.measured * factor)
                table.add_row(f"{quantity.name}, {shown or unit}", *numbers, _error(quantity))
        console.print(table)
        console.print()


def _console(file: TextIO) -> Any:
    from rich.console import Console

    console = Console(file=file, highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = 140
    return console


def _headline(one: Estimate) -> str:
    workload, tokens = one.workload, one.tokens
    seen = f"{workload.frames}-frame video" if workload.frames is not None else "image"
    article = "a" if workload.frames is not None else "an"
    many = f"{workload.batch} times {article}" if workload.batch > 1 else article
    marked = f", marked in {workload.marked} frames" if workload.marked > 1 else ""
    objects = f"{workload.objects} object{'s' if workload.objects > 1 else ''}{marked}"
    counted = [f"{tokens['patches']:,} patches", f"{tokens['object']:,} object tokens"]
    counted += [f"{tokens['vision']:,} vision tokens"] if one.kind == "full" else []
    counted += [f"{tokens['prompt']:,} tokens of prompt", f"{tokens['answer']:,} of answer"]
    asked = f"{many} {seen} of {workload.height}x{workload.width} with {objects}"
    return f"{one.model} ({one.kind}, {one.dtype}), {asked}: {', '.join(counted)}"


def _memory(one: Estimate) -> str:
    memory = one.memory
    parts = [f"{_giga(memory['weights'])} weights", f"{_giga(memory['cache'])} cache"]
    room = "" if one.fits is None else f", {'fits into' if one.fits else 'DOES NOT FIT into'} "
    room += "" if one.gpu is None else _giga(one.gpu.memory)
    return f"memory: {_giga(memory['peak'])} at the most ({', '.join(parts)}){room}"


def _times(one: Estimate) -> str:
    step = "" if one.step is None else f", then {_milli(one.step)} ms a step"
    return f"time: at least {_milli(one.first_token)} ms to the first token{step}, {_milli(one.seconds)} ms in all"


def _comparison(one: Estimate, other: Estimate) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ("", one.model, other.model, "ratio"):
        table.add_column(heading, justify="right" if heading not in ("",) else "left")
    rows: list[tuple[str, float | None, float | None, float]] = [
        ("tokens of prompt", one.tokens["prompt"], other.tokens["prompt"], 1),
        ("patches", one.tokens["patches"], other.tokens["patches"], 1),
        ("GFLOP, all stages", one.flops, other.flops, 1e-9),
        ("GFLOP to the first token", _until(one), _until(other), 1e-9),
        ("GFLOP of the LLM as the paper counts", one.paper_flops, other.paper_flops, 1e-9),
        ("MB moved", one.moved, other.moved, 1e-6),
        ("launches", one.launches, other.launches, 1),
        ("GB of memory", one.memory["peak"], other.memory["peak"], 1e-9),
        ("ms to the first token", one.first_token, other.first_token, 1e3),
        ("ms in all", one.seconds, other.seconds, 1e3),
    ]
    for name, mine, theirs, factor in rows:
        if mine is not None and theirs is not None:
            ratio = f"{theirs / mine:.2f}x" if mine else ""
            table.add_row(name, _short(mine * factor), _short(theirs * factor), ratio)
    return table


def _until(one: Estimate) -> int:
    return one.flops - one.stage("decode").flops


def _error(quantity: Quantity) -> str:
    if quantity.error is None:
        return "" if not quantity.estimated else "nothing measured"
    return "exact" if quantity.estimated == quantity.measured else f"{quantity.error:+.2%}"


def _milli(seconds: float | None) -> str:
    return "" if seconds is None else _short(seconds * 1e3)


def _giga(number: int) -> str:
    return f"{number / 1e9:,.3g} GB" if number >= 1e8 else f"{number / 1e6:,.3g} MB"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.3g}"


def to_json(found: Sequence[Estimate]) -> dict[str, Any]:
    """The estimate, and under "against" the other model's."""
    return found[0].to_json() | {"against": found[1].to_json() if len(found) > 1 else None}


def machine_of(name: str | None, device: str, dtype: str) -> tuple[gpus.Gpu | None, str]:
    """The GPU that is asked about, and the dtype: "auto" is what would be loaded there.

    Raises:
        ValueError: there is no such GPU.
    """
    if dtype not in ("auto", *ITEMS):
        raise ValueError(f"--dtype: expected one of auto, {', '.join(ITEMS)}, got {dtype!r}")
    if name == gpus.THIS:
        from pixelrefer_fast.loading import auto_device, auto_dtype

        own = str(auto_dtype(dtype, auto_device(device))).removeprefix("torch.")
        return gpus.this_machine(own, device), own
    gpu = None if name is None else gpus.find(name)
    if dtype != "auto":
        return gpu, dtype
    return gpu, "bfloat16" if gpu is None or gpu.computes("bfloat16") else "float32"


def measured(
    model: str, workload: Workload, device: str, dtype: str, tick: Callable[[str], None] | None
) -> estimate_check.EstimateCheck:
    """The estimate held against the model itself, here."""
    return estimate_check.measure(model, workload, device, dtype, tick=tick)


def checks_of_file(path: str) -> list[estimate_check.EstimateCheck]:
    """Of every row of a result file that is known here.

    Raises:
        ValueError: there is none, or no such file.
    """
    return list(estimate_check.check_file(Path(path)))


def tell(checks: Sequence[EstimateCheck], target: Path | None, as_json: bool, file: TextIO) -> None:
    """Print what was held against what, and append it to a result file if one is wanted."""
    from pixelrefer_fast.bench.report import results

    if target is not None or as_json:
        document = estimate_check.document(checks)
        if target is not None:
            results.append(target, document)
        if as_json:
            write_json(document, file)
            return
    print_checks(checks, file)


def checked_target(path: str | None) -> Path | None:
    """The result file to append to, refused before any work if it cannot be."""
    from pixelrefer_fast.bench.report import results

    if path is None:
        return None
    try:
        results.check_path(Path(path))
    except ValueError as error:
        raise ValueError(f"--out {error}") from None
    return Path(path)
