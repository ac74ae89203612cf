"""The pytest-benchmark front-end of stages, on tiny sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.run import stages
from pixelrefer_fast.device.stages import STAGES

SUITE = Path(__file__).parents[2] / "benchmarks" / "suite"


def test_smoke_run(tmp_path: Path) -> None:
    out, own = tmp_path / "suite.json", tmp_path / "own.json"
    options = ["--smoke", "--device", "cpu", "--models", "embedded:lite", "-q", "-p", "no:cacheprovider"]
    command = [str(Path(sys.executable).with_name("pytest")), str(SUITE / "test_stages.py"), *options]
    command += ["--results", str(out), "--benchmark-json", str(own)]
    # pytest-benchmark measures nothing where a worker of xdist is at work
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=alone)
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
    benchmarks = json.loads(own.read_text())["benchmarks"]
    assert len(benchmarks) == len(document["rows"])
    assert all(b["extra_info"]["ok"] and b["group"] and "by" in b["extra_info"] for b in benchmarks)


def test_a_bad_result_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_text("{}")
    command = [sys.executable, "-m", "pytest", str(SUITE / "test_stages.py"), "--results", str(tmp_path / "file.json")]
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "expected a result file" in done.stderr
    assert "Traceback" not in done.stderr
