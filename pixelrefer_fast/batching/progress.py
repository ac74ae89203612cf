"""How far a batch is, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

DELAY = 1.0  # seconds: what is done by then needs no bar


class Tick(Protocol):
    def __call__(self, done: float, total: float | None) -> None: ...


@contextmanager
def batch_progress(label: str, wanted: bool | None = None) -> Iterator[Tick]:
    """A function to call with how many are done, and of how many.

    Args:
        label: what stands before the bar.
        wanted: True and False decide; None: if stderr is a terminal.
    """
    if not (sys.stderr.isatty() if wanted is None else wanted):
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    bar = Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(file=sys.stderr), transient=True
    )
    task = bar.add_task(label, total=None, rate="")
    start = time.monotonic()
    shown = False

    def tick(done: float, total: float | None) -> None:
        nonlocal shown
        spent = time.monotonic() - start
        if not shown and spent >= DELAY:
            shown = True
            bar.start()
        rate = f"{done / spent:.1f}/s" if spent > 0 else ""
        bar.update(task, completed=done, total=total, rate=rate)

    try:
        yield tick
    finally:
        if shown:
            bar.stop()
