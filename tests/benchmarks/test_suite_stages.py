"""The pytest-benchmark front-end of stages, on tiny sizes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.run import stages
from pixelrefer_fast.device.stages import STAGES

SUITE = Path(__file__).parents[2] / "benchmarks" / "suite"


def test_smoke_run(tmp_path: Path) -> None:
    out = tmp_path / "suite.json"
    options = ["--smoke", "--device", "cpu", "--models", "embedded:lite", "-q", "-p", "no:cacheprovider"]
    command = [str(Path(sys.executable).with_name("pytest")), str(SUITE / "test_stages.py"), *options]
    command += ["--results", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    (document,) = results.read(out)
    assert results.validate(document) == []
    assert document["benchmark"] == "stages"
    found = [(row["case"].split(": ")[0], row["extra"]["stage"]) for row in document["rows"]]
    assert found == [(case, stage) for case in ("one object", "20-frame video") for stage in STAGES]
    for row in document["rows"]:
        assert row["ok"]
        assert row["seconds"]["median"] > 0
        assert ("error" in row) == (row["extra"]["stage"] not in stages.HOST + stages.DECODER)
