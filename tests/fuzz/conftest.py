"""One fuzzer for all cases of a session; its table goes to the file that FUZZ_TABLE names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Fuzzer


@pytest.fixture(scope="session")
def fuzzer() -> Iterator[Fuzzer]:
    fuzzer = Fuzzer.from_environment()
    yield fuzzer
    if table := os.environ.get("FUZZ_TABLE"):
        Path(table).parent.mkdir(parents=True, exist_ok=True)
        Path(table).write_text(fuzzer.markdown(), encoding="utf-8")
