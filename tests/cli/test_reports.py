"""The command line: verify, doctor, progress."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import one_error_line

import pixelrefer_fast
from pixelrefer_fast.cli.output import progress_bar
from pixelrefer_fast.cli.verify import print_report


def verified(ok: bool) -> dict[str, Any]:
    good = {"error": 3e-7, "limit": 1e-4, "ok": True}
    bad = {"error": None, "limit": 0.0, "ok": ok, "note": "call 0: expected grids"}
    cases = [
        {"name": "case_a", "ok": True, "stages": {"features": good, "text": {"error": 0.0, "limit": 0.0, "ok": True}}},
        {"name": "case_b", "ok": ok, "stages": {"features": {**good, "limit": 1e-3}, "text": bad}},
    ]
    return {"ok": ok, "backend": "auto", "device": "cpu", "cases": cases}


@pytest.mark.parametrize("ok", [True, False])
def test_verify_exit_code_table_and_json(
    run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ok: bool
) -> None:
    asked: list[dict[str, Any]] = []

    def replay(folder: str, **options: Any) -> dict[str, Any]:
        asked.append({"folder": folder, **options})
        return verified(ok)

    monkeypatch.setattr(pixelrefer_fast.verify.replay, "verify", replay)
    options = ("--backend", "torch", "--device", "cpu", "--dtype", "float32")
    result = run("verify", str(tmp_path), *options, "--json")
    assert result.code == (0 if ok else 1)
    assert json.loads(result.out) == verified(ok)
    assert asked[0] | {"progress": None} == {
        "folder": str(tmp_path), "backend": "torch", "device": "cpu", "dtype": "float32", "progress": None,
    }  # fmt: skip
    table = run("verify", str(tmp_path))
    assert table.code == result.code
    for part in ("case_a", "case_b", "features", "3e-07", "≤ 0.0001", "call 0: expected grids"):
        assert part in table.out
    assert ("FAIL" in table.out) is not ok


def test_verify_of_a_folder_without_cases_is_bad_input(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    one_error_line(run("verify", str(tmp_path)), str(tmp_path))
    one_error_line(run("verify", str(tmp_path / "gone"), "--json"), "gone")


def test_verify_table_with_many_stages_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("crops", "patches", "features", "object_tokens", "input_ids", "inputs_embeds", "logits", "text")
    stages = {name: {"error": 1.234e-7, "limit": 1e-4, "ok": True} for name in names}
    cases = [{"name": "case_image_two_objects_tall", "ok": True, "stages": stages}]
    print_report({"ok": True, "backend": "auto", "device": "cpu", "cases": cases}, sys.stdout)
    out = capsys.readouterr().out
    assert out.count("1.2e-07") == 8
    assert "case_image_two_objects_tall" in out
    assert "…" not in out


def test_doctor_json(run: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    from pixelrefer_fast.doctor import probes as doctor

    monkeypatch.setattr(doctor, "report", lambda: {"problems": [], "value": float("nan")})
    assert json.loads(run("doctor", "--json").out) == {"problems": [], "value": None}


def test_progress_bars_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    with progress_bar("verify", 3) as moved:
        assert moved is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress_bar("verify", 3) as moved:
        assert moved is not None
        moved("case_a")
