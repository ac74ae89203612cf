"""The result file of `describe --batch`: grows beside its place, survives a kill at any moment, is moved when complete.

`OUT.part` holds whole lines, but for a torn last one that a kill may leave; `OUT.run.json` says what they were made
from, `OUT.stamps` which files their lines named. A run whose input, files, model and options are the same goes on
behind the last whole line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from pixelrefer_fast.checks.new_files import file_to_write
from pixelrefer_fast.checks.safe_files import brief, read_json
from pixelrefer_fast.cli.batch.lines import line_facts, read_lines
from pixelrefer_fast.cli.batch.stamps import changed_file, read_stamps, stamp, stamp_line

SYNC_SECONDS = 10.0  # at most so much work is lost when the machine itself fails
CHUNK = 1 << 22
_KEYS = {"line", "id", "texts", "finish", "tokens", "error", "failure"}


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


@dataclass
class _Found:
    """What a result file holds: its counts, the lines that failed for no reason of theirs, where its last record ends,
    and the file's own end."""

    counts: LineCounts = field(default_factory=LineCounts)
    failed: list[int] = field(default_factory=list)
    end: int = 0
    size: int = 0


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
        failed: numbers of the lines in it that failed for no reason of theirs, such as memory: they are to be asked
            again.
        resumed: lines that were answered already.
        complete: whether it was complete already.
        total: lines of the input.
    """

    def __init__(self, path: str, run: dict[str, Any], source: str) -> None:
        """`run` is what the records depend on, besides the content of `source`, the input file."""
        self.path = file_to_write(path) if os.path.islink(path) else Path(path)  # a link stays a link
        self.part = self.path.with_name(f"{self.path.name}.part")
        self.state = self.path.with_name(f"{self.path.name}.run.json")
        self.stamps = self.path.with_name(f"{self.path.name}.stamps")
        self.counts = LineCounts()
        self.failed: list[int] = []
        self.complete = False
        self.resumed = 0
        self.total = 0  # lines of the input
        self._run, self._source = run, source
        self._file: FileIO | None = None
        self._stamps: FileIO | None = None
        self._again: dict[int, list[str]] = {}  # stamps of lines that are asked again
        self._synced = time.monotonic()

    def __enter__(self) -> ResultFile:
        for path in (self.path, self.part, self.state, self.stamps):
            file_to_write(path)  # nothing here opens a pipe, which would wait
            if path.is_symlink():  # but for OUT itself, which was followed: it may lead to a file of another
                raise ValueError(f"{path}: expected a file of this command's own, got a link")
        mine, self.total = fingerprint(self._source)
        before = self._before()
        if self.path.exists():
            if before is None:
                raise ValueError(f"{self.path}: expected a free name, got a file that this command did not write")
            self.complete = True
        elif before is None and self.part.exists() and self.part.stat().st_size:
            raise ValueError(f"{self.part}: expected {self.state} beside it, which says what it is a part of; got none")
        if before is not None:
            self._compare(before, mine)
        try:
            if not self.complete or os.access(self.path, os.W_OK):
                self._file = self._locked(self.path if self.complete else self.part)
                self._remove_strays()
            self._continue(mine)
        except BaseException:
            self._close()
            raise
        self.resumed = self.counts.lines - len(self.failed)
        return self

    def asked(self, number: int, files: tuple[str, ...]) -> None:
        """A line is about to be answered: remember how the files that it names look now."""
        if self._stamps is None or not files:
            return
        stamps = [stamp(file) for file in files]
        if number > self.counts.last:
            _write_all(self._stamps, stamp_line(number, stamps))
        else:
            self._again[number] = stamps

    def write(self, record: dict[str, Any]) -> None:
        """Append a record, whose number is larger than those before."""
        assert self._file is not None
        _write_all(self._file, json.dumps(record).encode() + b"\n")
        self.counts.add(record)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            for file in (self._stamps, self._file):
                if file is not None:
                    os.fsync(file.fileno())
            self._synced = time.monotonic()

    def replace(self, records: Mapping[int, dict[str, Any]]) -> None:
        """Put other records in the place of those of these lines, in one step."""
        assert self._file is not None
        target = self.path if self.complete else self.part
        beside = self._beside(target)
        new = self._locked(beside)
        try:
            with target.open("rb") as old:
                for line in old:
                    number = json.loads(line)["line"]
                    _write_all(new, json.dumps(records[number]).encode() + b"\n" if number in records else line)
            os.fsync(new.fileno())
            if self._stamps is not None:
                self._stamps.close()
                self._stamps = self._new_stamps(dict(read_stamps(self.stamps)) | self._again)
            os.replace(beside, target)
        except BaseException:
            new.close()
            beside.unlink(missing_ok=True)
            raise
        self._file.close()
        self._file = new
        found = self._scan(target)
        self.counts, self.failed = found.counts, found.failed

    def finish(self) -> None:
        """Everything is written: move it to its place."""
        assert self._file is not None
        os.fsync(self._file.fileno())
        if file_to_write(self.path).exists():
            raise ValueError(f"{self.path}: expected a free name, got a file that another program wrote meanwhile")
        os.replace(self.part, self.path)
        self.stamps.unlink(missing_ok=True)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        for file in (self._file, self._stamps):
            if file is not None:
                file.close()

    def _continue(self, mine: dict[str, Any]) -> None:
        found = self._scan(self.path if self.complete else self.part)
        if self.complete:
            if found.end != found.size or self._more_lines(found.counts.last):
                raise ValueError(
                    f"{self.path}: expected a result for every line of {self._source}, got {found.counts.lines}; "
                    f"remove it and {self.state} to start anew"
                )
        else:
            assert self._file is not None
            self._write_state(mine)
            self._file.truncate(found.end)
            self._stamps = self._new_stamps({n: own for n, own in read_stamps(self.stamps) if n <= found.counts.last})
        self.counts, self.failed = found.counts, found.failed if self._file is not None else []

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

    def _beside(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{os.getpid()}")

    def _remove_strays(self) -> None:
        """What a kill left of `_beside`; this run holds the lock, so nobody else is writing one."""
        for stray in self.path.parent.iterdir():
            if stray.name.startswith(f".{self.path.name}.") and stray.suffix[1:].isdigit():
                stray.unlink(missing_ok=True)

    def _new_stamps(self, stamps: Mapping[int, Sequence[str]]) -> FileIO:
        file = FileIO(self.stamps, "wb")
        _write_all(file, b"".join(stamp_line(number, stamps[number]) for number in sorted(stamps)))
        return file

    def _write_state(self, mine: dict[str, Any]) -> None:
        beside = self._beside(self.state)
        try:
            beside.write_text(json.dumps({"input": mine, "run": self._run}, indent=1) + "\n", encoding="utf-8")
            os.replace(beside, self.state)
        finally:
            beside.unlink(missing_ok=True)

    def _locked(self, path: Path) -> FileIO:
        """The file, opened to append; a ValueError where another run has it."""
        file = FileIO(path, "ab")
        with contextlib.suppress(ImportError):  # not on Windows
            import fcntl

            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.close()
                raise ValueError(f"{path}: another run is writing it") from None
        return file

    def _more_lines(self, last: int) -> bool:
        with open(self._source, "rb") as source:
            return next(read_lines(source, last), None) is not None

    def _scan(self, path: Path) -> _Found:
        """Check each record against its line of the input. Only what is last may be damaged.

        Raises:
            ValueError: a line holds no record, or that of another line; or a file that a line names has changed.
        """
        found, damage = _Found(size=path.stat().st_size), ""
        stamps = read_stamps(self.stamps)
        stamped = next(stamps, None)
        with path.open("rb") as file, open(self._source, "rb") as source:
            asked = read_lines(source)
            for row, line in enumerate(file, 1):
                if damage:
                    raise ValueError(f"{path}, {damage}")
                number, data = next(asked, (0, None))
                own_id, files = line_facts(data)
                try:
                    record: dict[str, Any] = json.loads(line if line.endswith(b"\n") else b"null")
                    if reason := _objection(record, number, own_id):
                        raise ValueError(reason)
                except (ValueError, RecursionError) as error:
                    damage = f"line {row}: expected a result of line {number}, got something else ({error})"
                    continue
                while stamped is not None and stamped[0] < number:
                    stamped = next(stamps, None)
                failed = record.get("failure") == "run"  # and is asked again, whatever the files look like now
                known = stamped is not None and stamped[0] == number and not failed
                if stamped is not None and known and (other := changed_file(files, stamped[1])):
                    raise ValueError(
                        f"{path}: expected {brief(other)} as it was when line {number} was answered, got a changed "
                        f"one; remove {path} and {self.state} to start anew"
                    )
                found.counts.add(record)
                if failed:
                    found.failed.append(number)
                found.end += len(line)
        return found


def _objection(record: object, number: int, own_id: object) -> str:
    """Why this is not the record of line `number`, whose id is `own_id`; "" if it is."""
    if not isinstance(record, dict) or not set(record) <= _KEYS:
        return "no record"
    if type(record.get("line")) is not int or record["line"] != number:
        return f"of line {brief(record.get('line'))}"
    if record.get("id") != own_id:
        return f"with the id {brief(record.get('id'))}"
    answered = [record.get(key) for key in ("texts", "finish", "tokens")]
    failure = record.get("failure")
    if failure is not None:
        if failure not in ("input", "run") or not isinstance(record.get("error"), str):
            return "an error of no known kind"
    elif "error" in record or answered[0] is None:
        return "neither texts nor an error"
    if any(part is not None for part in answered):
        texts, finish, tokens = answered
        if not isinstance(texts, list) or not isinstance(finish, list) or not isinstance(tokens, list):
            return "texts, finish and tokens that are no lists"
        if not 0 < len(texts) == len(finish) == len(tokens):
            return "texts, finish and tokens of different lengths"
        if not all(text is None or isinstance(text, str) for text in (*texts, *finish)):
            return "texts that are no text"
        if not all(type(count) is int and count >= 0 for count in tokens):
            return "tokens that are no numbers"
    return ""


def _write_all(file: FileIO, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]
