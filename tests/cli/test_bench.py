"""`bench`: a whole run on tiny sizes, and what is refused before anything runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from bench_rows import TINY, document, shrink, whole_row
from command_line import one_error_line

from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.run import against, askers, effort, loads, whole
from pixelrefer_fast.cli import bench

LONG = ("--seconds", "1000000")  # a busy machine leaves nothing out
ALONE = ("--device", "cpu", "--against", "none")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "QUICK_EFFORT", TINY)
    shrink(monkeypatch)
    monkeypatch.setattr("pixelrefer_fast.bench.measure.rates.measured", lambda *_: {"copy": 1e10, "float32": 1e10})


@pytest.mark.usefixtures("tiny")
def test_a_run(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    result = run("bench", "--quick", *LONG, "--device", "cpu", "--out", str(out), "--json")
    assert result.code == 0, result.err
    written = json.loads(result.out)
    saved = written.pop("saved")
    assert results.read(out / "bench.json") == [written]
    assert results.validate(written) == []
    suites = [row["suite"] for row in written["rows"]]
    assert {suite: suites.count(suite) for suite in dict.fromkeys(suites)} == {
        "whole": loads.CASES,
        "stages": 9,
        "against": 2 * len(against.PAIRS),
        "scaling": 6,
    }
    assert all(row["ok"] for row in written["rows"])
    assert written["model"] == "embedded:lite"
    assert written["pair"] == ["embedded:lite", "embedded:full"]
    assert (written["measured_on"], written["dtype"], written["quick"]) == ("cpu", "float32", True)
    assert sorted(map(Path, saved)) == sorted(out.glob("*.[ps][nv]g"))
    assert {path.stem for path in out.glob("*.png")} == {"against", "whole", "scaling"}
    # as many steps as the bar was told
    plan = bench.planned(None, [], None, "cpu", "auto", 0, True, True, None, str(out))
    assert len([line for line in result.err.splitlines() if line.startswith("bench: ")]) == bench.steps(plan)


@pytest.mark.usefixtures("tiny")
def test_the_table_for_people(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    result = run("bench", "--quick", *LONG, "--no-curves", *ALONE, "--out", str(tmp_path))
    assert result.code == 0, result.err
    for words in ("embedded:lite (the small embedded Lite), float32", "Whole questions", "one object", "prefill"):
        assert words in result.out
    assert "Full against Lite" not in result.out
    assert "Scaling" not in result.out
    assert "bench.json" in result.out.replace("\n", "")


@pytest.mark.usefixtures("tiny")
def test_a_wrong_answer_ends_with_1(
    run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "QUICK_EFFORT", replace(TINY, curves={"objects": (1,)}))
    monkeypatch.setattr(whole, "check", lambda *_: askers.AnswerCheck(0.5, 1e-4, 0, 1, False))
    result = run("bench", "--quick", *LONG, *ALONE, "--out", str(tmp_path), "--json")
    assert result.code == 1
    assert "the check of whole: one object, " in result.err
    assert all(not row["ok"] for row in json.loads(result.out)["rows"] if row["suite"] == "whole")


def test_without_matplotlib_there_are_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert bench.draw(document([whole_row()]), tmp_path) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "pixelrefer-fast[bench]" in line


@pytest.mark.usefixtures("tiny")
def test_no_time_for_anything(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    options = ("--quick", "--device", "cpu", "--against", "none", "--seconds", "0.001", "--out", str(tmp_path))
    result = run("bench", *options, "--json")
    assert result.code == 0  # nothing was wrong
    rows = json.loads(result.out)["rows"]
    assert len(rows) == loads.CASES + 6
    assert all("no time left" in row["reason"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--against", "reference"), ("--reference DIR",)),
        (("--reference", "/no/such/folder"), ("--reference", "/no/such/folder")),
        (("--against", "none", "--against", "full"), ("--against", "none", "full")),
        (("--against", "a", "--against", "b"), ("--against", "a", "b")),
        (("--model", "./some-lite", "--against", "full"), ("--against full", "some-lite", "FOLDER|ID")),
        (("--seconds", "0"), ("--seconds", "0")),
        (("--device", "nonsense"), ("device", "nonsense")),
        (("--dtype", "int8"), ("dtype", "int8")),
        (("--graph-bytes", "5"), ("--graph-bytes", "cpu")),
        (("--model", "/no/such/model", "--against", "none"), ("/no/such/model",)),
    ],
)
def test_bad_options(
    run: Callable[..., SimpleNamespace],
    tmp_path: Path,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "telling", _silent)
    monkeypatch.setattr("pixelrefer_fast.bench.measure.rates.measured", lambda *_: {"copy": 1e10, "float32": 1e10})
    device = () if "--device" in arguments else ("--device", "cpu")
    one_error_line(run("bench", "--out", str(tmp_path / "out"), *device, *arguments), *parts)
    assert not (tmp_path / "out").exists()


def test_bad_targets_are_refused_before_work(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    one_error_line(run("bench", "--device", "cpu", "--out", str(tmp_path / "file")), str(tmp_path / "file"))
    (tmp_path / "bench.json").write_text("{}")
    one_error_line(run("bench", "--device", "cpu", "--out", str(tmp_path)), "bench.json", "result file")


def test_the_other_model_must_be_of_the_other_kind(
    run: Callable[..., SimpleNamespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "telling", _silent)
    monkeypatch.setattr("pixelrefer_fast.bench.measure.rates.measured", lambda *_: {"copy": 1e10, "float32": 1e10})
    options = ("--quick", "--device", "cpu", "--seconds", "0.001", "--out", str(tmp_path))
    one_error_line(run("bench", *options, "--against", "embedded:lite"), "--against embedded:lite")
    one_error_line(run("bench", *options, "--model", "embedded:full", "--against", "embedded:lite"), "--model")
    assert not (tmp_path / "bench.json").exists()


def test_pairs_of_models() -> None:
    assert bench._pair("embedded:full", []) == ("embedded:lite", "embedded:full")
    assert bench._pair("lite-7b", ["full"]) == ("lite-7b", "full-7b")
    name = "Alibaba-DAMO-Academy/PixelRefer-Lite-2B"
    assert bench._pair(name, ["full"]) == (name, "Alibaba-DAMO-Academy/PixelRefer-2B")
    assert bench._pair(name, []) is None  # nothing is downloaded unasked
    assert bench._pair("./lite", ["./full"]) == ("./lite", "./full")
    assert bench._pair("embedded:lite", ["none"]) is None


def _silent(plan: bench.BenchPlan) -> object:
    import contextlib

    return contextlib.nullcontext(lambda name: None)
