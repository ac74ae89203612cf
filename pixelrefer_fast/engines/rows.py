"""Rows of a table -> requests, and answers -> columns; knows nothing of who holds the table."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from pixelrefer_fast.batching import Answer, Ask
from pixelrefer_fast.checks.safe_files import parse_json, parse_json_value
from pixelrefer_fast.checks.values import labelled, shown
from pixelrefer_fast.decoding.prompt import check_question
from pixelrefer_fast.engines.urls import Urls, is_url
from pixelrefer_fast.regions import as_regions

MEDIA = ("image", "video")
ANSWERS = ("text", "finish_reason", "error", "seconds")
Columns = Mapping[str, Sequence[object] | np.ndarray]


class RowReader:
    """Reads the rows of one batch. Rows that hold the same image share one object, which is then encoded once.

    Args:
        question: of rows without one; None asks for a description of the one region.
        urls: those that rows may name.
    """

    def __init__(self, question: str | None, urls: Urls) -> None:
        self._question = question
        self._urls = urls
        self._known: dict[object, object] = {}

    def read(self, row: Mapping[str, object]) -> Ask | ValueError:
        """The request of a row, or what is wrong with it."""
        try:
            return self._ask({name: value for name, value in row.items() if not _is_missing(value)})
        except (ValueError, OverflowError, RecursionError) as error:
            return ValueError(str(error))

    def _ask(self, row: Mapping[str, object]) -> Ask:
        named = [name for name in MEDIA if name in row]
        if len(named) != 1:
            raise ValueError(f"row: expected either image or video, got {' and '.join(named) or 'neither'}")
        if "regions" not in row:
            raise ValueError("row: expected regions, got none")
        with labelled("regions"):
            given = plain(row["regions"])
            regions = as_regions(parse_json_value(given.encode(), "text") if isinstance(given, str) else given)
        question = row.get("question", self._question)
        if question is not None:
            check_question(question)
        with labelled(named[0]):
            media = self._shared(row[named[0]])
        ask = Ask(media, None if question is None else str(question), regions)
        if "options" in row:
            ask.options = _options(row["options"])
        return ask

    def _shared(self, media: object) -> object:
        """`media`, or the same of an earlier row."""
        if isinstance(media, str):
            if not is_url(media):
                return media  # a path: whoever opens it shares it
            if media not in self._known:
                self._known[media] = self._urls.read(media)
            return self._known[media]
        if isinstance(media, np.ndarray) and media.dtype == object:
            media = plain(media)
        if isinstance(media, bytes):
            key: object = media
        elif isinstance(media, np.ndarray):
            key = media.shape, media.dtype.str, hashlib.blake2b(np.ascontiguousarray(media).data).digest()
        else:
            return media
        return self._known.setdefault(key, media)


def rows_of(batch: Columns) -> list[dict[str, object]]:
    """The rows of a batch that is given by its columns."""
    names = list(batch)
    return [dict(zip(names, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def answer_columns(answers: Sequence[Answer], seconds: float) -> dict[str, np.ndarray]:
    """The columns that a batch of answers adds to its rows.

    Returns:
        "text", "finish_reason" and "error", arrays (N,) of str, and "seconds", (N,) float64, the batch's time divided
        by its rows: the sum over all rows is the time for which models have worked. What is not there is "": a column
        of nothing but None has no type, and a folder with such a file and others cannot be read as one table.
    """
    return {
        "text": _texts([answer.text for answer in answers]),
        "finish_reason": _texts([answer.finish for answer in answers]),
        "error": _texts([answer.error for answer in answers]),
        "seconds": np.full(len(answers), seconds / max(len(answers), 1)),
    }


def plain(value: object) -> object:
    """What a column of Arrow holds, as the objects that regions are read from.

    Lists of boxes and polygons come as arrays of arrays, objects of several kinds as structs with empty fields. Masks,
    arrays of bool or bytes, stay as they are.
    """
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "bu" and value.ndim >= 2:
            return value
        return [plain(one) for one in value] if value.dtype == object else value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {key: plain(one) for key, one in value.items() if one is not None}
    return value.item() if isinstance(value, np.generic) else value


def _options(value: object) -> dict[str, object]:
    options = plain(value)
    if isinstance(options, str):
        return parse_json(options.encode(), "options")
    if not isinstance(options, dict):
        raise ValueError(f"options: expected a JSON object, got {shown(options)}")
    return options


def _is_missing(value: object) -> bool:
    """Whether a cell is empty; pandas writes NaN there, and Ray a float32 one into columns without any value."""
    return value is None or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))


def _texts(values: Sequence[str | None]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = [value or "" for value in values]
    return column
