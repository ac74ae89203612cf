"""Files that are written completely or not at all, and in no other file's place than a regular one's."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixelrefer_fast.checks.safe_files import name_of
from pixelrefer_fast.checks.values import reason_of


def file_to_write(path: str | os.PathLike[str]) -> Path:
    """Where a file of this name is written: links are followed, so that they stay what they are.

    Raises:
        ValueError: there is something else than a regular file, or nothing can be there.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path: expected a path, got {type(path).__name__}")
    name = name_of(str(os.fspath(path)))
    try:
        target = Path(path).resolve()
        mode = os.stat(target).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    except (OSError, RuntimeError, ValueError) as error:  # name too long, a loop of links, a NUL in the name
        reason = reason_of(error)
        raise ValueError(f"{name}: expected the name of a file to write, got one that cannot be: {reason}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a device, pipe or socket"
        raise ValueError(f"{name}: expected the name of a file to write, got {kind}")
    return target


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A hidden name beside `path`, with its suffix, to write to. At the end what is there moves to `path`.

    After an error nothing is left behind, and what was at `path` is as before. A file that is replaced hands on its
    mode.

    Raises:
        ValueError: there is something else than a regular file at `path`, or its folder does not exist.
    """
    target, name = file_to_write(path), name_of(str(path))
    if not target.parent.is_dir():
        raise ValueError(f"{name}: expected an existing folder to write to, got {name_of(str(target.parent))}")
    beside = target.with_name(f".{secrets.token_hex(8)}.part{target.suffix[:20]}")
    try:
        yield beside
        if file_to_write(path) != target:
            raise ValueError(f"{name}: expected the place it was when writing began, got another")
        if target.exists():
            beside.chmod(stat.S_IMODE(target.stat().st_mode))
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
