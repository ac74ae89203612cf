"""Files of samples: JSON lists and JSON lines of any length, indexed once and then read sample by sample."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pixelrefer_fast.checks.safe_files import brief, reading

CHUNK = 1 << 22
MAX_SAMPLE = 1 << 26
"""Most bytes of one sample."""
_SPACE = " \t\r\n"


class Found(NamedTuple):
    """One sample of a file: its byte range, and its value or the reason why it cannot be read."""

    offset: int
    length: int
    value: Any
    error: str | None


def scan(path: Path) -> Iterator[Found]:
    """Iterate over the samples of a file in order, with at most a few megabytes of it in memory.

    Args:
        path: a JSON list of samples, or one sample per line (empty lines are skipped).

    Raises:
        ValueError: the file cannot be read, has neither form, or is a damaged list, whose samples after the damage
            cannot be separated.
    """
    with reading(path), path.open("rb") as file:
        start = file.read(64).removeprefix(codecs.BOM_UTF8).lstrip()
        file.seek(0)
        if start.startswith(b"["):
            yield from _ListScanner(path, file).samples()
        elif start.startswith(b"{"):
            yield from _lines(file)
        else:
            raise ValueError(f"{path}: expected a JSON list of samples or one sample a line, got {brief(start[:20])}")


def read_sample(path: Path, offset: int, length: int) -> Any:
    """Read the value of one sample that `scan` found.

    Raises:
        ValueError: the file has changed.
    """
    with reading(path), path.open("rb") as file:
        file.seek(offset)
        data = file.read(length)
    try:
        return _loads(data)
    except ValueError as error:
        raise ValueError(f"expected the file as it was when it was first read, got other bytes ({error})") from None


def _lines(file: BinaryIO) -> Iterator[Found]:
    offset = 0
    while line := file.readline(MAX_SAMPLE + 1):
        start, length = offset, len(line)
        offset += length
        if length > MAX_SAMPLE:
            while line and not line.endswith(b"\n"):
                line = file.readline(MAX_SAMPLE)
                offset += len(line)
            yield Found(start, 0, None, f"expected at most {MAX_SAMPLE} bytes, got more")
        elif line.removeprefix(codecs.BOM_UTF8).strip():
            try:
                yield Found(start, length, _loads(line), None)
            except ValueError as error:
                yield Found(start, 0, None, f"expected a line of JSON, but {error}")


def _loads(data: bytes) -> Any:
    try:
        return _DECODER.decode(data.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"it holds {name}")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


class _ListScanner:
    """Finds the values of a JSON list without holding the whole file in memory."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._text = ""
        self._place = 0  # in the text, up to which it is done with
        self._offset = 0  # of that place in the file
        self._ended = False
        self._count = 0

    def samples(self) -> Iterator[Found]:
        if self._file.read(3) == codecs.BOM_UTF8:
            self._offset = 3
        self._file.seek(0)
        self._next("[")
        if self._peek() == "]":
            self._skip(1)
        else:
            while True:
                yield self._value()
                self._count += 1
                if self._next(",]") == "]":
                    break
        if self._peek():
            raise self._damaged("an end")

    def _value(self) -> Found:
        self._peek()
        try:
            wanted = CHUNK
            while True:
                try:
                    value, end = _DECODER.raw_decode(self._text, self._place)
                    if end < len(self._text) or self._ended:
                        break
                except json.JSONDecodeError as error:
                    # within a string that has not ended the place is the string's, else it is where the text ends
                    cut = error.msg.startswith("Unterminated") or error.pos > len(self._text) - 32
                    if self._ended or not cut:
                        raise
                if len(self._text) - self._place > MAX_SAMPLE:
                    raise self._damaged(f"a value of at most {MAX_SAMPLE} bytes")
                self._more(wanted)
                wanted *= 2
        except json.JSONDecodeError as error:
            raise self._damaged(f"JSON ({error.msg})") from None
        except RecursionError:
            raise self._damaged("brackets that are not nested as deeply") from None
        except ValueError as error:
            raise self._damaged(f"JSON ({error})") from None
        start = self._offset
        self._skip(end - self._place)
        return Found(start, self._offset - start, value, None)

    def _next(self, expected: str) -> str:
        char = self._peek()
        if not char or char not in expected:
            raise self._damaged(" or ".join(repr(c) for c in expected))
        self._skip(1)
        return char

    def _peek(self) -> str:
        """The next character that is no space, "" at the end of the file."""
        while True:
            place = self._place
            while place < len(self._text) and self._text[place] in _SPACE:
                place += 1
            self._skip(place - self._place)
            if place < len(self._text):
                return self._text[place]
            if self._ended:
                return ""
            self._more(CHUNK)

    def _skip(self, count: int) -> None:
        text = self._text
        own = count if text.isascii() else len(text[self._place : self._place + count].encode())
        self._place += count
        self._offset += own

    def _more(self, size: int) -> None:
        data = self._file.read(size)
        self._ended = len(data) < size
        try:
            self._text = self._text[self._place :] + self._decode(data, self._ended)
        except UnicodeDecodeError as error:
            raise self._damaged(f"UTF-8 ({error.reason})") from None
        self._place = 0

    def _damaged(self, expected: str) -> ValueError:
        return ValueError(
            f"{self._path}: expected {expected} in sample {self._count}, byte {self._offset}, got something else "
            "(the file is damaged or breaks off, and what follows cannot be read)"
        )
