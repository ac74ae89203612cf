"""Malformed samples: what is wrong with each, and a log of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Malformed:
    """A sample that is left out.

    Attributes:
        file: the file that contains it.
        index: number of the sample in the file, from 0.
        reason: what was expected and what was given.
    """

    file: str
    index: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, sample {self.index}: {self.reason}"


class MalformedLog:
    """Malformed samples, one JSON line each, appended at once by the process that finds them."""

    def __init__(
        self, path: Path | None, strict: bool = False, tell: Callable[[Malformed], None] | None = None
    ) -> None:
        """
        Args:
            path: the log file; None writes none.
            strict: whether the first malformed sample is an error.
            tell: called with each malformed sample.
        """
        self.path, self.strict, self._tell = path, strict, tell

    def add(self, malformed: Malformed) -> None:
        """
        Raises:
            ValueError: the log is strict.
        """
        if self.strict:
            raise MalformedError(str(malformed))
        if self._tell is not None:
            self._tell(malformed)
        if self.path is not None:
            line = json.dumps(asdict(malformed)) + "\n"
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)

    def count(self) -> int:
        """Number of samples reported, each counted once."""
        if self.path is None or not self.path.is_file():
            return 0
        with self.path.open(encoding="utf-8") as file:
            return len({(entry["file"], entry["index"]) for entry in map(json.loads, file)})


class MalformedError(ValueError):
    """A malformed sample in a strict training."""
