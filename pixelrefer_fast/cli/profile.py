"""`profile`: where the time of one question goes, as tables for people and one document for programs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pixelrefer_fast.cli.options import Computing

if TYPE_CHECKING:
    from pixelrefer_fast.bench.profile.profile import OperationLine, Profile

PICTURE = (448, 616)  # height, width, where none is given
SEED = 1
SHOWN = 24  # lines of the table of operations
OWN_PICTURE = "a seeded picture"
RATES = ("% of copy", "% of matrix")
WRITTEN = ("--trace", "--calls", "--kernel")


@dataclass(frozen=True)
class Asked:
    """What is profiled.

    Attributes:
        media, regions, question: of the question.
        name: of the media, for people.
        model: its name.
        command: the command line that asks the same again, without what it writes.
    """

    media: Any
    regions: list[Any]
    question: str
    name: str
    model: str
    command: tuple[str, ...]


def seeded_boxes(media: Any, objects: int) -> list[Any]:
    """As many boxes on an image, or on the first frame of a video.

    Raises:
        ValueError: fewer than one.
    """
    from pixelrefer_fast.bench.run import workloads
    from pixelrefer_fast.media.video import Video

    if objects < 1:
        raise ValueError(f"--objects: expected at least 1, got {objects}")
    height, width = (media.height, media.width) if isinstance(media, Video) else media.shape[:2]
    boxes: list[Any] = workloads.boxes(objects, height, width, SEED)
    return [{0: box} for box in boxes] if isinstance(media, Video) else boxes


def own_picture() -> Any:
    """A picture from a seed."""
    from pixelrefer_fast.bench.run import workloads

    return workloads.picture(*PICTURE, SEED)


def default_question(objects: int) -> str:
    """About so many objects."""
    from pixelrefer_fast.batching.preparing import DESCRIBE_IMAGE
    from pixelrefer_fast.planning.request import REGION_TAG

    if objects == 1:
        return DESCRIBE_IMAGE
    return f"Please describe {', '.join([REGION_TAG] * (objects - 1))} and {REGION_TAG} in detail."


def load_model(name: str, computing: Computing) -> Any:
    """A checkpoint, or by name a model of a released size with random weights.

    Raises:
        ValueError: as `pixelrefer_fast.load`.
    """
    from pixelrefer_fast.bench.run import workloads
    from pixelrefer_fast.loading import auto_device, auto_dtype
    from pixelrefer_fast.ops import check_backend

    if name not in workloads.NAMES:
        return computing.load(name)[0]
    check_backend(computing.backend)
    place = auto_device(computing.device)
    model = workloads.load_model(name, place, auto_dtype(computing.dtype, place))
    model.network.backend = model.decoder.language_model.backend = computing.backend
    return model


def check_kernel(name: str) -> None:
    """Refuse the name of a kernel of ours that does not exist; of others only a profile knows.

    Raises:
        ValueError: there is no such kernel.
    """
    from pixelrefer_fast.bench.profile import resources
    from pixelrefer_fast.ops import registry

    if name.split(".")[0] in registry() and resources.installed():
        next(resources.shipped_cases(name))


def quiet_profiler() -> None:
    """Keep torch's profiler from telling on stderr that it starts and stops; before torch is imported."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")


def run_profile(
    asked: Asked, model: Any, max_new_tokens: int, repeats: int, trace: str | None, calls: str | None
) -> Profile:
    """Profile, and write what was asked for.

    Raises:
        ValueError: as `model.ask`; a file cannot be written.
    """
    from pixelrefer_fast.bench.profile.calls import save
    from pixelrefer_fast.bench.profile.profile import profile

    with _told() as tick:
        found = profile(
            model,
            asked.media,
            asked.question,
            asked.regions,
            max_new_tokens,
            repeats,
            None if trace is None else Path(trace),
            tick,
        )
    if calls is not None:
        save(found.calls, Path(calls))
    return found


@contextmanager
def _told() -> Iterator[Any]:
    """Says on a terminal what is measured."""
    from pixelrefer_fast.cli.output import progress_bar
    from pixelrefer_fast.device.stages import STAGES

    with progress_bar("profile", len(STAGES) + 4) as tick:
        yield tick


def to_json(asked: Asked, found: Profile, trace: str | None, calls: str | None, kernel: str | None) -> dict[str, Any]:
    """The document of `--json`."""
    document: dict[str, Any] = {
        "benchmark": "profile",
        "model": asked.model,
        "source": asked.name,
        "question": asked.question,
    }
    document |= {"objects": len(asked.regions)} | found.to_json() | {"trace": trace, "calls": calls}
    if kernel is not None:
        document["kernel"] = kernel_facts(asked, found, kernel, calls)
    return document


def kernel_facts(asked: Asked, found: Profile, kernel: str, calls: str | None) -> dict[str, Any]:
    """All about one kernel: its lines, what it takes as compiled, and the commands that look closer.

    Raises:
        ValueError: neither the profile nor this project has such a kernel.
    """
    from pixelrefer_fast.bench.profile import resources
    from pixelrefer_fast.bench.profile.profile import commands, stage_commands
    from pixelrefer_fast.ops import registry

    lines = [line for line in found.lines if kernel in (line.operation, *([line.kernel.name] if line.kernel else []))]
    op = kernel.split(".")[0]
    facts: dict[str, Any] = {"name": kernel, "lines": [found.line(line) for line in lines]}
    if op in registry():
        made = [call for call in found.calls if call.op == op]
        near = [call for call in made if lines and call.name.startswith(f"{lines[0].stage}/")] or made
        function = None
        if resources.installed():
            function = next(resources.shipped_cases(kernel)).kernel.fn.__name__
        case = near[0].name if calls and near else None
        facts["compiled"], facts["not_compiled"] = compiled(kernel, found.dtype, found.arch)
        facts["commands"] = commands(kernel, found.dtype, function, Path(calls) if calls and near else None, case)
        return facts
    if not lines:
        names = ", ".join(dict.fromkeys(line.operation for line in found.lines))
        raise ValueError(f"--kernel: expected one of {names}, or a kernel of {', '.join(registry())}, got {kernel!r}")
    facts["commands"] = stage_commands(lines[0].stage, lines[0].kernel.name if lines[0].kernel else None, asked.command)
    return facts


def compiled(kernel: str, dtype: str, arch: int | None) -> tuple[list[dict[str, Any]], str | None]:
    """What a kernel's shipped configurations take as compiled for a device (9.0 without one), or why nothing is known.

    Args:
        kernel: "file.kernel".
        dtype: of the model.
        arch: compute capability, 90 for 9.0.
    """
    from pixelrefer_fast.bench.profile import resources

    reason = resources.unusable()
    if reason is not None:
        return [], reason
    short = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}[dtype]
    place = arch or 90
    rows = []
    for case in resources.shipped_cases(kernel, short):
        taken = resources.compile_case(case, place)
        rows.append(
            {
                "for": case.shape,
                "configuration": {**case.constants, **case.options},
                "arch": place,
                "registers": taken.registers,
                "spilled": taken.local,
                "shared": taken.shared,
                "matrix": taken.matrix,
                "threads": taken.threads,
                "occupancy": resources.occupancy(place, taken.threads, taken.registers, taken.shared),
            }
        )
    return rows, None


# For people


def print_profile(
    asked: Asked, found: Profile, trace: str | None, calls: str | None, kernel: str | None, file: TextIO
) -> None:
    """Two tables: stages, and the operations and kernels within them; with a kernel's name all about that."""
    from rich.console import Console

    facts = None if kernel is None else kernel_facts(asked, found, kernel, calls)
    console = Console(file=file, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 180
    device = found.device
    where = "the CPU, so columns of a device are empty" if device is None else device["name"]
    console.print(
        f"{asked.model} in {found.dtype} on {where}: {len(asked.regions)} marked in {asked.name}; copy "
        f"{found.rates['copy'] / 1e9:,.0f} GB/s, matrix {found.rates[found.dtype] / 1e12:,.2f} TFLOP/s, measured",
        soft_wrap=True,
    )
    console.print(_stage_table(found))
    console.print(_operation_table(found))
    if facts is not None:
        _print_kernel(facts, console)
    if trace is not None:
        console.print(f"trace for ui.perfetto.dev or chrome://tracing: {trace}", soft_wrap=True)
    if calls is not None:
        console.print(
            f"calls for `python -m pixelrefer_fast.bench.profile.run_kernel OP --calls`: {calls}", soft_wrap=True
        )
    if facts is None:
        best = next((line.operation for line in found.lines if line.own), "infuse.scores")
        console.print(f"closer: --kernel {best} (what it takes, and commands for ncu and nsys)", soft_wrap=True)


def _stage_table(found: Profile) -> Any:
    headings = ("stage", "ms", "10 % to 90 %", "share", "device ms", "host ms", "launches", "waits", "GFLOP", "MB")
    table = _table((*headings, *RATES, "of what"))
    total = sum(stage.seconds["median"] for stage in found.stages)
    for stage in found.stages:
        facts = found.stage(stage)
        seconds = stage.seconds
        sizes = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in stage.sizes.items())
        table.add_row(
            stage.name,
            _ms(seconds["median"]),
            f"{_ms(seconds['q10'])} to {_ms(seconds['q90'])}",
            f"{seconds['median'] / total:.0%}" if total else "",
            *("" if x is None else _ms(x["median"]) for x in (stage.device_seconds, stage.host_seconds)),
            *("" if facts[name] is None else f"{facts[name]:,}" for name in ("launches", "waits")),
            _amount(facts["flops"], 1e9),
            _amount(facts["moved"], 1e6),
            _percent(facts["percent_copy"]),
            _percent(facts["percent_matrix"]),
            sizes,
        )
    table.add_row("sum", _ms(total), style="bold")
    whole = found.whole
    table.add_row("at once", _ms(whole["median"]), f"{_ms(whole['q10'])} to {_ms(whole['q90'])}", style="bold")
    return table


def _operation_table(found: Profile) -> Any:
    headings = ("stage", "operation or kernel", "launches", "ms", "share", "GFLOP", "MB")
    table = _table((*headings, *RATES, "registers", "shared KiB", "occupancy"), left=2)
    total = sum(line.seconds for line in found.lines)
    for line in found.lines[:SHOWN]:
        copy, matrix = found.percent(line.seconds, line.flops, line.moved)
        table.add_row(
            line.stage,
            line.operation,
            f"{line.launches:,.0f}",
            _ms(line.seconds),
            f"{line.seconds / total:.1%}" if total else "",
            _amount(line.flops, 1e9),
            _amount(line.moved, 1e6),
            _percent(copy),
            _percent(matrix),
            *_taken(line),
        )
    rest = found.lines[SHOWN:]
    if rest:
        seconds = sum(line.seconds for line in rest)
        launches = sum(line.launches for line in rest)
        table.add_row(
            "", f"{len(rest)} others", f"{launches:,.0f}", _ms(seconds), f"{seconds / total:.1%}" if total else ""
        )
    return table


def _taken(line: OperationLine) -> tuple[str, str, str]:
    kernel = line.kernel
    if kernel is None or not kernel.threads:
        return "", "", ""
    occupancy = "" if line.occupancy is None else f"{line.occupancy:.0%}"
    return str(kernel.registers), f"{kernel.shared / 1024:.3g}", occupancy


def _print_kernel(facts: dict[str, Any], console: Any) -> None:
    console.print(f"\n{facts['name']}")
    for line in facts["lines"]:
        kernel = line["kernel"]
        grid = f", {kernel['threads']} threads a block, {kernel['blocks']:,} blocks" if kernel else ""
        console.print(
            f"  in {line['stage']}: {line['launches']:,.0f} launches, {_ms(line['seconds'])} ms{grid}", soft_wrap=True
        )
    if facts.get("compiled"):
        table = _table(("compiled for", "registers", "spilled B", "shared KiB", "threads", "occupancy", "matrix by"))
        for row in facts["compiled"]:
            table.add_row(
                f"sm_{row['arch']}: {row['for']}",
                str(row["registers"]),
                str(row["spilled"]),
                f"{row['shared'] / 1024:.3g}",
                str(row["threads"]),
                "" if row["occupancy"] is None else f"{row['occupancy']:.0%}",
                row["matrix"],
            )
        console.print(table)
    if facts.get("not_compiled"):
        console.print(f"  not compiled here: {facts['not_compiled']}", soft_wrap=True)
    for name, command in facts["commands"].items():
        console.print(f"  {name}: {command}", soft_wrap=True)


def _table(headings: Sequence[str], left: int = 1) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < left or heading == "of what" else "right", overflow="fold")
    return table


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:,.3f}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def _amount(number: float | None, unit: float) -> str:
    return "" if not number else f"{number / unit:,.3g}" if number < 100 * unit else f"{number / unit:,.0f}"


def _percent(number: float | None) -> str:
    return "" if number is None else f"{number:.1f}"


def command_of(words: Sequence[str]) -> tuple[str, ...]:
    """The command line that profiles the same again, from this process's words: without what it writes and shows."""
    kept: list[str] = []
    skip = False
    for word in words[words.index("profile") :] if "profile" in words else ("profile",):
        if skip:
            skip = False
        elif word in WRITTEN:
            skip = True
        elif word not in ("--json", "--once") and not word.startswith(tuple(f"{name}=" for name in WRITTEN)):
            kept.append(word)
    return ("pixelrefer-fast", *kept)
