"""`pixelrefer-fast web`: it starts with both embedded models, tells nobody, and ends while a browser looks at it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import get

COMMAND = (sys.executable, "-m", "pixelrefer_fast.cli", "web")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share"], "--share"),
        (["--model", "a=embedded:lite", "--model", "a=embedded:full"], "--model: expected a name of its own"),
    ],
)
def test_bad_options_are_one_line(options: list[str], message: str, tmp_path: Path) -> None:
    found = subprocess.run([*COMMAND, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert found.returncode == 2
    assert message in found.stderr
    assert "Traceback" not in found.stderr


def test_a_page_starts_and_stops_while_it_is_looked_at(visit: Callable[..., Any], tmp_path: Path) -> None:
    server = subprocess.Popen(
        [*COMMAND, "--port", "0"], cwd=tmp_path, env=os.environ | {"TMPDIR": str(tmp_path)}, stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert server.stderr is not None
        told = ""
        while (found := re.search(r"running on (http://127\.0\.0\.1:\d+)", told)) is None:
            line = server.stderr.readline()
            assert line, told
            told += line
        listed = json.loads(get(found[1], "/v1/models")[1])["data"]
        assert [model["id"] for model in listed] == ["lite", "full"]
        config = json.loads(get(found[1], "/config")[1])
        assert config["analytics_enabled"] is False
        assert [one["api_visibility"] for one in config["dependencies"]] == ["private"] * len(config["dependencies"])
        page = visit(found[1])
        page.locator(".examples button").first.click()
        page.wait_for_selector(".stage.filled")
        begin = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 0
        assert time.monotonic() - begin < 30  # and not the minute that a request may take
        assert list(tmp_path.iterdir()) == []  # no pictures stay
    finally:
        server.kill()
        server.communicate()
