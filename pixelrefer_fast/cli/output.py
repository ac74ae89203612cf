"""What commands print: the answer on stdout, as text or as one JSON document, and everything else on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from pixelrefer_fast.checks.printable import safe_text


@contextlib.contextmanager
def reserved_stdout() -> Iterator[TextIO]:
    """Standard output for the answer alone: what libraries print inside the block goes to stderr."""
    answer = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        yield answer


def print_texts(texts: Sequence[str], file: TextIO) -> None:
    """Texts by number, the further lines of one indented; what cannot be printed as escapes."""
    for i, text in enumerate(texts):
        lead = f"{i}: "
        print(lead + safe_text(text.strip()).replace("\n", "\n" + " " * len(lead)), file=file)


@contextlib.contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[str], None] | None]:
    """A callback to call with the name of each of `total` things before it is done; None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(label, total=total)
        started = 0

        def next_one(name: str) -> None:
            nonlocal started
            bar.update(task, completed=started, description=f"{label} {name}")
            started += 1

        yield next_one
