"""Whether the files that answered lines name are still those that were read.

`OUT.stamps` grows beside the result while a batch runs: for each line the stamps of the files it names, written before
its record is. It goes when the result is complete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path


def stamp(path: str) -> str:
    """Size and time of a file; number, total size and newest time of what is in a folder; "" for what is not there."""
    try:
        with os.scandir(path) as entries:
            found = [entry.stat() for entry in entries]
        return f"{len(found)} {sum(s.st_size for s in found)} {max((s.st_mtime_ns for s in found), default=0)}"
    except NotADirectoryError:
        pass
    except (OSError, ValueError):
        return ""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def stamp_line(number: int, stamps: Sequence[str]) -> bytes:
    """What is written of one line."""
    return json.dumps([number, *stamps]).encode() + b"\n"


def read_stamps(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and stamps, in order; a torn or damaged line ends them."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                number, *stamps = json.loads(line if line.endswith(b"\n") else b"")
            except (ValueError, TypeError):
                return
            if type(number) is not int or not all(isinstance(one, str) for one in stamps):
                return
            yield number, stamps


def changed_file(files: Sequence[str], stamps: Sequence[str]) -> str | None:
    """The first of the files that is not as it was when the stamps were made."""
    return next((file for file, before in zip(files, stamps, strict=False) if stamp(file) != before), None)
