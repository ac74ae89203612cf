"""Reading the small files of a checkpoint folder that may come from anybody.

A folder can hold links out of itself, devices, and JSON that is huge, deep or contradictory. Everything here turns
such input into a `ValueError` that names the file, before memory is spent on it.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 8 << 20
MAX_JSON_DEPTH = 32
MAX_LISTED = 20
_MAX_SHOWN = 160
# the closing quote is optional so that every match succeeds: retrying from each quote would be quadratic
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def brief(value: object) -> str:
    """`value` for an error message: escaped, on one line, at most about 160 characters."""
    text = ascii(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 20]}... ({len(text)} characters)"


def name_of(key: str) -> str:
    """A tensor or file name for an error message: as it is when it is short and printable, else escaped."""
    return key if len(key) <= _MAX_SHOWN and key.isascii() and key.isprintable() else brief(key)


def listed(names: Iterable[str]) -> str:
    """`names` joined by commas, cut after 20 with the number left out."""
    names = list(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses while `path` is read into a `ValueError` that names it."""
    try:
        yield
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error


def _hub_blob_folders(folder: Path) -> list[Path]:
    # huggingface_hub lays a download out as <cache>/models--owner--name/snapshots/<revision>/ whose files are links
    # into the repository's blobs/ or, for files shared by repositories, into <cache>/blobs/
    repository = folder.parent.parent
    if folder.parent.name != "snapshots" or not repository.name.startswith("models--"):
        return []
    return [repository / "blobs", repository.parent / "blobs"]


def file_in(folder: Path, name: str) -> Path | None:
    """The regular file `name` (it may contain `/`) inside the resolved `folder`, or None when there is none.

    Links are followed only to places inside the folder or, for a snapshot of huggingface_hub's cache, to that cache's
    blobs.

    Raises:
        ValueError: the name leads out of the folder, or to something that is not a regular file.
    """
    path = folder / name
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        if path.is_symlink():
            raise ValueError(f"{path}: expected a file, got a link to something that does not exist") from None
        return None
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise ValueError(f"{folder}: {name_of(name)}: cannot be read: {brief(str(error))}") from error
    if not any(target.is_relative_to(base) for base in (folder, *_hub_blob_folders(folder))):
        raise ValueError(f"{path}: expected a file inside the folder, got a link to {target}")
    with reading(path):
        if not stat.S_ISREG(target.stat().st_mode):
            raise ValueError(f"{path}: expected a regular file, got something else")
    return path


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of `path`; ValueError when there are more than `limit` of them."""
    with reading(path), path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{path}: expected at most {limit} bytes, got {path.stat().st_size}")
    return data


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object in the file `path`, at most `limit` bytes long. Raises like `parse_json`."""
    return parse_json(read_limited(path, limit), str(path))


def parse_json(data: bytes, source: str) -> dict[str, Any]:
    """The JSON object in the UTF-8 text `data`. Raises like `parse_json_value`, and where it is no object."""
    value = parse_json_value(data, source, "a JSON object")
    if not isinstance(value, dict):
        raise ValueError(f"{source}: expected a JSON object, got {brief(value)}")
    return value


def parse_json_value(data: bytes, source: str, expected: str = "JSON") -> Any:
    """What the UTF-8 text `data` says; `expected` names it in messages.

    Raises:
        ValueError: not JSON, a key twice in one object, NaN or a number out of float64's range, nested deeper than 32
            levels. The message starts with `source`.
    """
    try:
        _check_depth(data)
        return json.loads(
            data.decode("utf-8-sig"), object_pairs_hook=_unique, parse_float=_finite, parse_constant=_finite
        )
    except ValueError as error:
        raise ValueError(f"{source}: expected {expected}, got something else ({error})") from error


def _check_depth(data: bytes) -> None:
    # before parsing: the parser recurses, and so does everything that later copies or writes what it built
    depth = 0
    for bracket in _STRING.sub(b"", data).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"[{" else -1
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {brief(key)} twice")
        result[key] = value
    return result


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {brief(text)}")
    return value
