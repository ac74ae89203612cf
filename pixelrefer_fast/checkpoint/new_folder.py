"""Folders that are written completely or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pixelrefer_fast.checks.safe_files import brief

LAST = "config.json"  # nothing is taken for a checkpoint without it


def vacant(folder: str | Path) -> Path:
    """`folder`, resolved; ValueError unless it does not exist or is empty."""
    try:
        target = Path(folder).resolve()
        taken = target.exists() and not (target.is_dir() and not any(target.iterdir()))
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(f"{brief(folder)}: expected a folder to write, got {brief(str(error))}") from error
    if taken:
        raise ValueError(f"{target}: expected a new or empty folder, got one with files in it, or a file")
    return target


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into. At the end its files are moved to `target`; after an error they are deleted.

    An existing empty folder remains the same folder, with its mode, mounts and the processes that work in it: it is
    filled from a hidden folder inside it. A new one is made beside its place and renamed.

    Raises:
        ValueError: the operating system refuses to write, or files have appeared in `target` in the meantime.
    """
    filled = target.exists()
    existing = target if filled else next(parent for parent in target.parents if parent.exists())
    new = existing / f".{target.name}.{secrets.token_hex(8)}.partial"
    try:
        new.mkdir()
        yield new
        if filled:
            _fill(target, new)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.rename(new, target)
    except OSError as error:
        raise ValueError(f"{target}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _fill(target: Path, new: Path) -> None:
    """Moves what `new` holds into `target`, the folder that it is in and that must hold nothing else."""
    if list(target.iterdir()) != [new]:
        raise ValueError(f"{target}: expected an empty folder, got one that others have written into meanwhile")
    paths = sorted(new.iterdir(), key=lambda path: (path.name == LAST, path.name))
    try:
        for path in paths:
            os.rename(path, target / path.name)
    except BaseException:  # an interruption too must leave nothing
        for path in reversed(paths):
            moved = target / path.name
            if moved.is_dir():
                shutil.rmtree(moved, ignore_errors=True)
            else:
                moved.unlink(missing_ok=True)
        raise
