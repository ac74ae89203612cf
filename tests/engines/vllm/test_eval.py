"""`eval --engine vllm`: the answers of this package's own engine, with the speed beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_files import make_published
from vllm_requests import SMALL

from pixelrefer_fast import cli
from pixelrefer_fast.world.evaluate import evaluate

OPTIONS = tuple(f"--engine-option={name}={json.dumps(value)}" for name, value in SMALL.items() if name != "dtype")


def test_the_world_is_answered_alike(engine: Any, own: Any) -> None:
    found, expected = (evaluate(model, 45) for model in (engine, own))
    assert [one.answer for one in found.results] == [one.answer for one in expected.results]
    assert found.accuracy == expected.accuracy > 0.5
    assert found.seconds > 0


def test_a_published_benchmark_is_answered_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_published(tmp_path / "published")
    command = ["eval", "videorefer-q", "--data", str(data), "--model", "embedded:lite", "--dtype", "float32"]
    command += ["--max-new-tokens", "6"]
    documents, answers = [], []
    for engine in ("native", "vllm"):
        out = tmp_path / engine
        options = () if engine == "native" else OPTIONS
        assert cli.main([*command, "--out", str(out), "--engine", engine, *options]) == 0, capsys.readouterr().err
        documents.append(json.loads((out / "scores.json").read_text()))
        answers.append((out / "answers.jsonl").read_bytes())
    assert answers[0] == answers[1]
    native, vllm = documents
    assert vllm["metrics"] == native["metrics"]
    assert (vllm["asked"]["engine"], native["asked"]["engine"]) == ("vllm", "native")
    assert vllm["speed"]["objects"] == native["speed"]["objects"] == 14
    assert vllm["speed"]["objects_a_second"] == pytest.approx(14 / vllm["speed"]["seconds"])
    assert vllm["speed"]["sessions"][0]["engine_options"] == {n: v for n, v in SMALL.items() if n != "dtype"}
    (tmp_path / "vllm" / "answers.jsonl").unlink()  # another engine does not go on with it
    assert cli.main([*command, "--out", str(tmp_path / "vllm"), "--resume"]) == 2
    assert "expected the engine it was begun with, 'vllm', got 'native'" in capsys.readouterr().err
