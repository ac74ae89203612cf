"""The dispatch benchmark measures checkouts in processes of their own, and its last line is one JSON document."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.kernel
def test_a_small_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("triton")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("dispatch")
    path = tmp_path / "dispatch.json"
    assert module.main(["--against", str(ROOT), "--calls", "3", "--rounds", "1", "--json", str(path)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(path.read_text()) == [last]
    for times in (last["dispatch_ms"], last["against_ms"]):
        assert set(times) == {"1", "16"}
        assert all(ms > 0 for ms in times.values())
    assert {"commit", "dirty", "command", "libraries", "date"} <= last.keys()


def test_a_checkout_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("dispatch")
    monkeypatch.setattr(module, "CHILD", "raise SystemExit('no region pass')")
    with pytest.raises(SystemExit, match=r"dispatch: .*no region pass"):
        module.measured(tmp_path, [1], 1)
