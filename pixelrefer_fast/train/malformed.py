"""Samples that cannot be learnt from: what is wrong with each, and a log of all of them."""

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
        file: where it stands.
        index: which sample of the file, from 0.
        reason: what was expected and what came.
    """

    file: str
    index: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}, sample {self.index}: {self.reason}"


class MalformedLog:
    """Malformed samples, one JSON line each: appended at once, from whichever process met it."""

    def __init__(
        self, path: Path | None, strict: bool = False, tell: Callable[[Malformed], None] | None = None
    ) -> None:
        """
        Args:
            path: of the log; None writes none.
            strict: the first malformed sample is an error.
            tell: called with each.
        """
        self.path, self.strict, self._tell = path, strict, tell

    def add(self, malformed: Malformed) -> None:
        """
        Raises:
            ValueError: in a strict training.
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
        """Samples that were reported, each once however often it was met."""
        if self.path is None or not self.path.is_file():
            return 0
        with self.path.open(encoding="utf-8") as file:
            return len({(entry["file"], entry["index"]) for entry in map(json.loads, file)})


class MalformedError(ValueError):
    """A malformed sample of a strict training."""
