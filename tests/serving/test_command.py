"""`pixelrefer-fast serve`: it says where it listens, answers, and ends at once when it is asked to."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from served import get

COMMAND = (sys.executable, "-m", "pixelrefer_fast.cli", "serve")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--api-key-file", "none.txt"], "--api-key-file 'none.txt': expected a text file"),
        (["--media-root", "none"], "roots: expected folders, got 'none'"),
        (["--model", "a=embedded:lite", "--model", "a=embedded:full"], "--model: expected a name of its own"),
        (["--engine", "none"], "--engine: expected one of native, vllm, got 'none'"),
        (["--engine", "native", "--engine-option", "a=1"], "--engine-option: expected --engine vllm"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    found = subprocess.run([*COMMAND, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_a_server_starts_answers_and_stops(tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("first\n\nsecond\n")
    models = ["--model", "lite=embedded:lite", "--model", "embedded:full", "--api-key-file", "keys.txt"]
    models += ["--engine", "native"]
    server = subprocess.Popen(
        [*COMMAND, *models, "--port", "0"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stderr is not None
        told = ""
        while (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", told)) is None:
            line = server.stderr.readline()
            assert line, told
            told += line
        status, listed = get(found[1], "/v1/models", "second")
        assert status == 200
        assert [model["id"] for model in json.loads(listed)["data"]] == ["lite", "embedded:full"]
        assert get(found[1], "/v1/models", "third")[0] == 401
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.communicate()
