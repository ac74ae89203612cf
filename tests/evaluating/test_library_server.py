"""Our own server as a judge who sees the image: the whole way, over HTTP."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from published_files import texts
from served import running

import pixelrefer_fast as pf
from pixelrefer_fast.cli import main
from pixelrefer_fast.evaluating.judging.endpoint import KEY_VARIABLE
from pixelrefer_fast.serving import create_app


def test_dlc_judged_by_our_server(
    published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    where = ("--data", str(published), "--out", str(tmp_path / "out"), "--model", "embedded:full")
    arguments = ["eval", "dlc", *where, "--device", "cpu", "--backend", "torch", "--max-new-tokens", "8"]
    with running(create_app({"lite": pf.load("embedded:lite")}, keys=["secret"])) as address:
        arguments += ["--judge-url", f"{address}/v1", "--judge-model", "lite", "--judge-image"]
        assert main([*arguments, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        monkeypatch.setenv(KEY_VARIABLE, "another")
        (tmp_path / "out/judge.jsonl").unlink()
        code = main(["eval", "score", "--out", str(tmp_path / "out"), *arguments[-5:]])
        said = capsys.readouterr().err
    judge = document["judge"]
    assert (judge["model"], judge["answered_by"], judge["sees_images"]) == ("lite", ["lite"], True)
    questions = sum(1 + len(row["questions"]) for row in texts("dlc").values())
    assert judge["asked"] + judge["reused"] == questions
    assert document["metrics"]["Avg"]["ours"] is not None
    assert (code, "refused: 401" in said) == (1, True)
