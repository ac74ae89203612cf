"""The pytest-benchmark front-end of whole questions and curves, on tiny sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pixelrefer_fast.bench.report import results

SUITE = Path(__file__).parents[2] / "benchmarks" / "suite"


def test_smoke_run(tmp_path: Path) -> None:
    out = tmp_path / "suite.json"
    files = [str(SUITE / "test_whole.py"), str(SUITE / "test_scaling.py")]
    options = [
        "--smoke",
        "--device",
        "cpu",
        "--models",
        "embedded:lite",
        "--results",
        str(out),
        "-p",
        "no:cacheprovider",
    ]
    command = [str(Path(sys.executable).with_name("pytest")), "-q", *files, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ})
    assert done.returncode == 0, done.stdout + done.stderr
    documents = {document["benchmark"]: document for document in results.read(out)}
    assert {name: len(document["rows"]) for name, document in documents.items()} == {"whole": 4, "scaling": 5}
    for document in documents.values():
        assert results.validate(document) == []
        assert all(row["ok"] and row["seconds"]["median"] > 0 for row in document["rows"])
