"""Files of requests as tables that Ray reads: parquet as it is, lines of JSON written anew, samples of webdataset."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pixelrefer_fast.checks.safe_files import parse_json
from pixelrefer_fast.cli.batch.lines import BadLine, parse_line, read_lines
from pixelrefer_fast.media.dispatch import VIDEO_SUFFIXES

if TYPE_CHECKING:
    from pyarrow import Schema

KINDS = {".parquet": "parquet", ".jsonl": "lines", ".ndjson": "lines", ".tar": "webdataset"}
ID_COLUMN = {"parquet": "id", "lines": "row", "webdataset": "__key__"}
KEPT = {"parquet": ("id",), "lines": ("row", "line", "id"), "webdataset": ("__key__",)}
ROWS_A_FILE = 4096  # of lines that are written anew; a file is what is lost at most when a run breaks off
Row = dict[str, object]


def files_of(source: str) -> tuple[str, list[str]]:
    """A file of requests, or those in a folder: what kind they are, a value of KINDS, and their names in order.

    Raises:
        ValueError: there are none, or some of another kind.
    """
    path = Path(source)
    found = sorted(file for file in path.iterdir() if file.suffix in KINDS) if path.is_dir() else [path]
    kinds = {KINDS.get(file.suffix, file.suffix or "no suffix") for file in found}
    if len(kinds) != 1 or not kinds <= set(KINDS.values()) or not all(file.is_file() for file in found):
        endings = ", ".join(KINDS)
        raise ValueError(
            f"--batch {source}: expected a file or a folder of files of one kind ({endings}), "
            f"got {', '.join(sorted(kinds)) or 'none'}"
        )
    return kinds.pop(), [str(file) for file in found]


def write_lines_as_rows(
    files: list[str], folder: Path, bad_rows: Path, question: str | None, rows_a_file: int = ROWS_A_FILE
) -> int:
    """Write the requests of lines into files of rows; lines that hold none become answers with an error.

    Args:
        files: lines of JSON, as `describe --batch` takes them. A line that asks of several regions in turn becomes as
            many rows.
        folder: of the rows.
        bad_rows: a file of answers.
        question: of lines without one.
        rows_a_file: at most.

    Returns:
        How many lines were bad.
    """
    from pyarrow import Table
    from pyarrow.parquet import write_table

    rows, answers = _schemas()
    bad: list[Row] = []
    requests = rows_of_lines(files, question, bad)
    for number, first in enumerate(requests):
        part = [first, *islice(requests, rows_a_file - 1)]
        write_table(Table.from_pylist(part, schema=rows), folder / f"{number:06}.parquet")
    if bad:
        write_table(Table.from_pylist(bad, schema=answers), bad_rows)
    return len(bad)


def rows_of_lines(files: list[str], question: str | None, bad: list[Row]) -> Iterator[Row]:
    """The rows of lines; the answers to those that hold no request are appended to `bad`."""
    for at, file in enumerate(files):
        prefix = f"{Path(file).stem}:" if len(files) > 1 else ""
        with open(file, "rb") as lines:
            for number, data in read_lines(lines):
                name = f"{prefix}{number}"
                try:
                    line = parse_line(number, data, question)
                except BadLine as error:
                    own = _own_id(error.id)
                    told = {"text": "", "finish_reason": "error", "error": str(error), "seconds": 0.0}
                    bad.append({"row": f"{at}/{name}", "line": name, "id": own, **told})
                    continue
                for turn, ask in enumerate(line.asks):
                    regions = ask.regions if isinstance(ask.regions, list) else []
                    yield {
                        "row": f"{at}/{name}/{turn}",
                        "line": name,
                        "id": _own_id(line.id),
                        "image": os.path.abspath(str(ask.media)),  # workers stand in folders of their own
                        "regions": json.dumps([region.to_json() for region in regions]),
                        "question": ask.question,
                        "options": json.dumps(ask.options),
                    }


def webdataset_row(sample: Mapping[str, object]) -> Row:
    """The row of a sample: one image or video, and a .json with regions and, if it likes, a question.

    What is missing or damaged stays so, for the reader of rows to tell of it.
    """
    row: Row = {"__key__": sample["__key__"], "image": None, "video": None, "regions": None, "question": None}
    media = [name for name in sample if not name.startswith("__") and name != "json"]
    if len(media) == 1:
        row["video" if f".{media[0].lower()}".endswith(VIDEO_SUFFIXES) else "image"] = sample[media[0]]
    text = sample.get("json")
    if isinstance(text, bytes):
        try:
            fields = parse_json(text, "json")
        except ValueError:
            row["regions"] = text.decode(errors="replace")
        else:
            row["regions"] = None if fields.get("regions") is None else json.dumps(fields["regions"])
            question = fields.get("question")
            row["question"] = question if question is None or isinstance(question, str) else json.dumps(question)
    return row


def _own_id(own: object) -> str | None:
    """A line's own name: text as it is, anything else as JSON."""
    return own if own is None or isinstance(own, str) else json.dumps(own)


def _schemas() -> tuple[Schema, Schema]:
    """Of rows and of answers."""
    import pyarrow

    text, number = pyarrow.string(), pyarrow.float64()
    named = [(name, text) for name in ("row", "line", "id")]
    rows = [*named, *((name, text) for name in ("image", "regions", "question", "options"))]
    answers = [*named, *((name, text) for name in ("text", "finish_reason", "error")), ("seconds", number)]
    return pyarrow.schema(rows), pyarrow.schema(answers)
