"""One fuzzer for all cases of a session; its counts go to the file that FUZZ_RESULT names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzzing import Fuzzer
from run_results import write_result


@pytest.fixture(scope="session")
def fuzzer() -> Iterator[Fuzzer]:
    fuzzer = Fuzzer.from_environment()
    yield fuzzer
    if file := os.environ.get("FUZZ_RESULT"):
        write_result(Path(file), fuzzer.result())
