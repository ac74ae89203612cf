"""Operations with bad tables, shapes and memory, with the extension: an error or a result, never a signal."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

from fuzzing import LONGEST, Fuzzer

SCRIPT = Path(__file__).parents[1] / "helpers" / "fuzzed_ops.py"
NAME = "operations and the extension"
AT_ONCE = 400  # of one process


def test_operations(fuzzer: Fuzzer) -> None:
    outcomes = fuzzer.table.setdefault(NAME, Counter())
    for number in fuzzer.numbers(1):
        command = [sys.executable, str(SCRIPT), str(fuzzer.seed), str(number * AT_ONCE), str(AT_ONCE)]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST * AT_ONCE, check=False)
        *numbers, last = ran.stdout.splitlines() or [""]
        said = ran.stderr.strip().splitlines()[-1:]
        with fuzzer.told(NAME, f"input {last} of seed {fuzzer.seed}"):
            assert ran.returncode == 0, f"code {ran.returncode}: {said}"
            assert len(numbers) == AT_ONCE
        outcomes.update(json.loads(last))
