"""The benchmark of the first token: two processes answer in turn, each with the package of its own checkout."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def first_token(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("first_token")


def test_this_checkout_against_itself(
    first_token: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(first_token, "CASES", ("one object",))
    path = tmp_path / "first_token.json"
    assert first_token.main(["--against", str(ROOT), "--repeats", "1", "--json", str(path)]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(path.read_text()) == [last]
    (row,) = last["rows"]
    assert row["equal_texts"] == 1
    assert row["now_ms"] > 0
    assert row["times_as_fast"] == pytest.approx(row["before_ms"] / row["now_ms"])


def test_a_folder_without_the_package_is_refused(
    first_token: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        first_token.main(["--against", str(tmp_path)])
    assert "expected a checkout" in capsys.readouterr().err
