"""The folder of `--data`: the published files in the places that the authors' scripts read them from.

It holds `benchmarks/` and `data/`, as the folder in which those scripts run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixelrefer_fast.checks.safe_files import brief, reading
from pixelrefer_fast.evaluating.items import BenchmarkItem

HUB = "https://huggingface.co/datasets"
COCO_IMAGES = "https://cocodataset.org (train2017 and val2017)"
COCO_FOLDERS = ("data/COCO", "data/coco", "COCO")
SHOWN = 3  # names of missing files in one message


@dataclass(frozen=True)
class PublishedFile:
    """A published file or folder.

    Attributes:
        paths: below --data, the usual place first.
        origin: where it can be had.
    """

    paths: tuple[str, ...]
    origin: str

    def find(self, data: Path) -> Path | None:
        return next((data / path for path in self.paths if (data / path).exists()), None)


def benchmark_file(name: str, origin: str) -> PublishedFile:
    """A file that stands in `benchmarks/`, or in --data itself."""
    return PublishedFile((f"benchmarks/{name}", name), origin)


def check_sources(data: Path, sources: Sequence[PublishedFile]) -> None:
    """ValueError that names every missing file and where it comes from."""
    if not data.is_dir():
        raise ValueError(f"--data {data}: expected the folder with the published files, got none")
    missing = [source for source in sources if source.find(data) is None]
    if missing:
        named = "; ".join(f"{source.paths[0]} (from {source.origin})" for source in missing)
        raise ValueError(f"--data {data}: missing {named}")


def found(data: Path, source: PublishedFile) -> Path:
    """Where the source lies; ValueError as `check_sources`."""
    check_sources(data, [source])
    path = source.find(data)
    assert path is not None
    return path


def check_media(data: Path, items: Sequence[BenchmarkItem], origin: str) -> None:
    """ValueError that counts the missing images and videos, and names the first and where they come from."""
    missing = sorted({item.media for item in items if not item.media.exists()})
    if missing:
        named = ", ".join(str(path.relative_to(data)) for path in missing[:SHOWN])
        raise ValueError(
            f"--data {data}: missing {len(missing)} of {len({item.media for item in items})} images or videos, "
            f"such as {named} (from {origin})"
        )


def read_list(path: Path) -> list[dict[str, Any]]:
    """A published file that is one JSON list of objects."""
    value = _parsed(path, _text(path))
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise ValueError(f"{path}: expected a list of objects, got {brief(value)}")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """A published file that is one JSON object."""
    value = _parsed(path, _text(path))
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected an object, got {brief(value)}")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A published file with a JSON object a line."""
    rows = [_parsed(path, line) for line in _text(path).splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path}: expected an object in each line, got something else")
    return rows


def entries(path: Path, rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    """Number and content of each entry; ValueError for one that lacks a key."""
    for number, row in enumerate(rows):
        for key in keys:
            if key not in row:
                raise ValueError(f"{path}: entry {number}: expected the key {key!r}, got {brief(sorted(row))}")
        yield number, row


def folder_in(data: Path, paths: Sequence[str]) -> Path:
    """The first of these folders that is there, else where it should be."""
    return next((data / path for path in paths if (data / path).is_dir()), data / paths[0])


def coco_image(data: Path, name: str) -> Path:
    """A COCO image: in train2017 if it is there, else where val2017 should have it."""
    folder = folder_in(data, COCO_FOLDERS)
    train = folder / "train2017" / name
    return train if train.exists() else folder / "val2017" / name


def _text(path: Path) -> str:
    with reading(path):
        return path.read_text(encoding="utf-8")


def _parsed(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got something else ({error})") from None
