"""`profile --kernels`: what the kernels of one question do as they run, counted in the PTX emulator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from pixelrefer_fast.bench.profile.counted import CountedCall, KernelCounts
    from pixelrefer_fast.cli.profile import Asked

HEADINGS = (
    *("call", "sm", "kernel", "launches", "instructions", "barriers", "waits"),
    *("sectors", "of ideal", "wavefronts", "of ideal", "products", "of a turn"),
)


def check(others: Mapping[str, object]) -> None:
    """Refuse before a model is loaded what cannot be counted, or what is measured.

    Args:
        others: options that go with a measurement, None where they are not given.

    Raises:
        ValueError: one of them is given; there is no emulator, no Triton, or kernels are interpreted.
    """
    from pixelrefer_fast.bench.profile import counted

    for option, value in others.items():
        if value is not None:
            raise ValueError(f"--kernels: expected without {option}, which measures; got both")
    counted.check()


def show(asked: Asked, model: Any, max_new_tokens: int, calls: str | None, as_json: bool, file: TextIO) -> None:
    """Run the question once, count each of its calls, and print the table, or one document.

    Raises:
        ValueError: as `model.ask`; a file cannot be written.
    """
    from pixelrefer_fast.bench.profile.calls import save
    from pixelrefer_fast.bench.profile.counted import ARCHITECTURES, count, with_kernels
    from pixelrefer_fast.bench.profile.profile import calls_of
    from pixelrefer_fast.checks.printable import write_json
    from pixelrefer_fast.cli.output import progress_bar

    made = calls_of(model, asked.media, asked.question, asked.regions, max_new_tokens)
    if calls is not None:
        save(made, Path(calls))
    with progress_bar("count", len(with_kernels(made)) * len(ARCHITECTURES)) as tick:
        found = count(made, tick)
    dtype = str(model.dtype).removeprefix("torch.")
    if as_json:
        document: dict[str, Any] = {"benchmark": "kernels", "model": asked.model, "source": asked.name, "dtype": dtype}
        document |= {"question": asked.question, "objects": len(asked.regions)}
        write_json(document | {"calls": [call.to_json() for call in found]}, file)
        return
    _print(f"{asked.model} in {dtype}: {len(asked.regions)} marked in {asked.name}", found, file)


def _print(title: str, found: Sequence[CountedCall], file: TextIO) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(file=file, highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 180
    console.print(f"{title}; counted in the PTX emulator, all launches of a call together", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for i, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if i in (0, 2) else "right", no_wrap=i in (0, 2), overflow="fold")
    for call in found:
        for kernel in call.kernels:
            times = f", {call.times}x" if call.times > 1 else ""
            table.add_row(f"{call.name}{times}", str(call.arch), kernel.kernel, *cells(kernel, call.times))
    console.print(table)
    for call in found:
        if call.declined is not None:
            console.print(f"{call.name}, sm_{call.arch}: {call.declined}", soft_wrap=True)
    console.print(
        "instructions, barriers and products are those of all warps; waits: for loads only just asked for; of ideal: "
        "how many times the least; of a turn: products in one turn of each innermost loop",
        soft_wrap=True,
    )


def cells(kernel: KernelCounts, times: int) -> Iterator[str]:
    """From `launches` on, of so many calls."""
    for name in ("launches", "instructions", "barriers", "waits"):
        yield f"{getattr(kernel, name) * times:,}"
    for name in ("sectors", "wavefronts"):
        moved, ideal = getattr(kernel, name), getattr(kernel, f"ideal_{name}")
        yield f"{moved * times:,}"
        yield f"{moved / ideal:.2f}" if ideal else ""
    yield f"{kernel.products * times:,}"
    yield ", ".join(str(products) for _, _, _, products, _ in kernel.loops)
