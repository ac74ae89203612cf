"""The result file of `describe --batch`: grows beside its place, survives a kill at any moment, is moved when complete.

`OUT.part` holds whole lines, but for a torn last one that a kill may leave; `OUT.run.json` says what they were made
from. A run whose input, model and options are the same goes on behind the last whole line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from pixelrefer_fast.checks.safe_files import brief, read_json

SYNC_SECONDS = 10.0  # at most so much work is lost when the machine itself fails
CHUNK = 1 << 22


@dataclass
class LineCounts:
    """Lines of a result file.

    Attributes:
        lines: all of them.
        bad: those whose input was at fault.
        failed: those that failed for another reason, such as memory.
        texts: answers.
        last: number of the last line of the input that is in it.
    """

    lines: int = 0
    bad: int = 0
    failed: int = 0
    texts: int = 0
    last: int = 0

    def add(self, record: dict[str, Any]) -> None:
        self.lines += 1
        self.bad += record.get("failure") == "input"
        self.failed += record.get("failure") == "run"
        self.texts += sum(text is not None for text in record.get("texts") or ())
        self.last = record["line"]


def fingerprint(path: str, first_bytes: int | None = None) -> tuple[dict[str, Any], int]:
    """What tells an input from others, {"bytes": ..., "blake2b": ...}, and its number of lines.

    Args:
        path: the file.
        first_bytes: look at the beginning only.
    """
    digest, size, lines, last = hashlib.blake2b(digest_size=16), 0, 0, b"\n"
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK if first_bytes is None else min(CHUNK, first_bytes - size)):
            digest.update(chunk)
            size += len(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
    return {"bytes": size, "blake2b": digest.hexdigest()}, lines + (last != b"\n")


class ResultFile:
    """One record a line, in the order of the input; a context in which it may be written.

    Attributes:
        counts: of what is in it.
        resumed: lines that were there already.
        complete: whether it was complete already.
        total: lines of the input.
    """

    def __init__(self, path: str, run: dict[str, Any], source: str) -> None:
        """`run` is what the records depend on, besides the content of `source`, the input file."""
        self.path = Path(path)
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.state = self.path.with_name(f"{self.path.name}.run.json")
        self.counts = LineCounts()
        self.complete = False
        self.resumed = 0
        self.total = 0  # lines of the input
        self._run, self._source = run, source
        self._file: FileIO | None = None
        self._synced = time.monotonic()

    def __enter__(self) -> ResultFile:
        mine, self.total = fingerprint(self._source)
        before = self._before()
        if self.path.exists():
            if before is None:
                raise ValueError(f"{self.path}: expected a free name, got a file that this command did not write")
            self.complete = True
        elif self.part.exists() and before is None:
            raise ValueError(f"{self.part}: expected {self.state} beside it, which says what it is a part of; got none")
        if before is not None:
            self._compare(before, mine)
        if self.complete:
            self._scan(self.path)
        else:
            self._write_state(mine)
            self._file = open(self.part, "a+b", buffering=0)
            try:
                self._lock(self._file)
                self._file.truncate(self._scan(self.part))
            except BaseException:
                self._file.close()
                raise
        self.resumed = self.counts.lines
        return self

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, whose number is larger than those before."""
        assert self._file is not None
        left = memoryview(json.dumps(record).encode() + b"\n")
        while left:
            left = left[self._file.write(left) :]
        self.counts.add(record)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def finish(self) -> None:
        """Everything is written: move it to its place."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        os.replace(self.part, self.path)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()

    def _before(self) -> dict[str, Any] | None:
        return read_json(self.state) if self.state.exists() else None

    def _compare(self, before: dict[str, Any], mine: dict[str, Any]) -> None:
        """Raise a ValueError unless the run that is to be continued is this one; its input may have grown."""
        name = self.path if self.complete else self.part
        free = f"remove {name} and {self.state} to start anew"
        given = before.get("input")
        size = given.get("bytes") if isinstance(given, dict) else None
        if not isinstance(size, int) or not isinstance(before.get("run"), dict):
            raise ValueError(f"{self.state}: expected what this command wrote, got {brief(before)}")
        if (size != mine["bytes"] if self.complete else size > mine["bytes"]) or (
            given != mine and fingerprint(self._source, size)[0] != given
        ):
            raise ValueError(f"{self._source}: expected the lines from which {name} was made, got others; {free}")
        for key in sorted({*self._run, *before["run"]}):
            was, now = before["run"].get(key), self._run.get(key)
            if was != now:
                raise ValueError(f"{name}: expected the {key} it was made with, {brief(was)}, got {brief(now)}; {free}")

    def _write_state(self, mine: dict[str, Any]) -> None:
        beside = self.state.with_name(f".{self.state.name}.{os.getpid()}")
        try:
            beside.write_text(json.dumps({"input": mine, "run": self._run}, indent=1) + "\n", encoding="utf-8")
            os.replace(beside, self.state)
        finally:
            beside.unlink(missing_ok=True)

    def _lock(self, file: FileIO) -> None:
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ValueError(f"{self.part}: another run is writing it") from None

    def _scan(self, path: Path) -> int:
        """Count the records; where the last whole one ends. Only what is last may be damaged."""
        end, damage = 0, ""
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if damage:
                    raise ValueError(f"{path}, {damage}")
                try:
                    record: dict[str, Any] = json.loads(line if line.endswith(b"\n") else b"null")
                    if not record["line"] > self.counts.last:
                        raise ValueError("a number that does not rise")
                    self.counts.add(record)
                except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
                    damage = f"line {number}: expected a result, got something else ({error})"
                else:
                    end += len(line)
        return end
