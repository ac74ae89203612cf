"""The report: pages and pictures from result files, and comparisons of two of them."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bench_rows import against_rows, curve_rows, document, left_out_row, reference_rows, whole_row

from pixelrefer_fast.bench.report import results

ROOT = Path(__file__).parents[2]
ROWS = [whole_row(), *against_rows(), *reference_rows(), *curve_rows("objects", (1, 8)), left_out_row("objects 64")]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, writing into a folder of its own."""
    import sys

    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("benchmark_report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_report", module)
    spec.loader.exec_module(module)
    (tmp_path / "docs").mkdir()
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "PAGE", tmp_path / "docs" / "benchmarks.md")
    monkeypatch.setattr(module, "PICTURES", tmp_path / "docs" / "benchmarks")
    return module


def run(report: ModuleType, tmp_path: Path, *arguments: str) -> int:
    return report.main(["--results", str(tmp_path / "results"), *arguments])


def links(page: Path) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page.read_text())


def test_pages_pictures_and_the_check_of_them(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results.append(tmp_path / "results" / "bench.json", document(ROWS))
    assert run(report, tmp_path, "--check") == 1
    assert not (tmp_path / "docs" / "benchmarks.md").exists()
    assert run(report, tmp_path) == 0
    assert run(report, tmp_path, "--check") == 0
    page = tmp_path / "docs" / "benchmarks.md"
    text = page.read_text()
    assert re.search(r"^\| one object \|.* 100 \(90 to 110\) \|.* 400 \(360 to 440\) \|", text, re.M)
    assert "| 3x |" in text  # the reference's
    assert links(page)
    for link in links(page):
        assert (page.parent / link).is_file(), link
    for name in ("whole", "against", "reference", "scaling"):
        assert f"benchmarks/cpu-embedded-lite/{name}.svg" in page.read_text()
    assert "no time left of 60 s" in page.read_text()
    # what a later result no longer has goes
    results.append(tmp_path / "results" / "bench.json", document([whole_row(seconds=0.2)]))
    assert run(report, tmp_path) == 0
    assert "200 (180 to 220)" in page.read_text()
    assert sorted(p.name for p in (tmp_path / "docs" / "benchmarks").rglob("*.svg")) == ["whole.svg"]
    assert "docs/benchmarks.md: written" in capsys.readouterr().out


def test_what_is_not_measured_is_said(report: ModuleType, tmp_path: Path) -> None:
    results.append(tmp_path / "results" / "bench.json", document(ROWS))
    run(report, tmp_path)
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "Still unmeasured" in text
    assert "first token, Lite-2B, one object, 1080p (at most 10 ms)" in text
    assert "make gpu-check" in text
    assert "| not yet |" in (tmp_path / "docs" / "benchmarks.md").read_text()


def test_goals_are_held_against_a_gpus_rows(report: ModuleType) -> None:
    def of(rows: list[Any], model: str = "lite-2b") -> dict[str, Any]:
        for row in rows:
            row["model"] = model.replace("lite", row["extra"]["kind"])
            row["sizes"] = row["sizes"] | {"answer": 64}
        return document(rows, measured_on="cuda")

    rows = [
        whole_row(seconds=0.070, first=0.012, peak_bytes=11 * 10**6),
        whole_row("batch of 64", extra={"objects_per_second": 500.0}),
        *against_rows("20-frame video", times=6.0),
    ]
    found = {goal.what: (words, met) for goal, words, met in report.goal_lines([of(rows)])}
    assert found["first token, Lite-2B, one object, 1080p"] == ("12 ms", False)
    assert found["64 tokens about one object, Lite-2B"] == ("70 ms", True)
    assert found["64 tokens about one object, Lite-7B"] == ("", None)
    assert found["peak memory, one object, of the weights"] == ("1.10x", True)
    assert found["objects a second, Lite-2B, batches of 64"] == ("500 a second, 64 tokens each", True)
    assert found["first token, 20-frame video, Full-2B against Lite-2B"] == ("6.0x", True)
    # numbers of a CPU meet no goal of a GPU
    slow = document(rows, measured_on="cpu")
    assert all(met is None for goal, _, met in report.goal_lines([slow]) if goal.where == "cuda")


def test_goals_of_earlier_benchmarks(report: ModuleType) -> None:
    region = {"benchmark": "region_stage", "rival": "reference", "date": "2026", "measured_on": "cpu", "device": None}
    region["rows"] = [{"case": "region stage, 16 objects", "ok": True, "speedup": {"median": 6.1}}]
    (found,) = [(words, met) for goal, words, met in report.goal_lines([region]) if goal.where == "cpu"]
    assert found == ("6.1x", True)


def test_the_latest_of_each_machine_and_model(report: ModuleType) -> None:
    documents = [
        {"benchmark": "bench", "measured_on": place, "model": model, "reference": reference, "date": date}
        for date, (place, model, reference) in enumerate(
            [("cpu", "a", None), ("cpu", "b", None), ("cuda", "a", None), ("cpu", "a", None), ("cpu", "a", "2a18ec7")]
        )
    ]
    found = [(d["measured_on"], d["model"], d["date"]) for d in report.latest(documents, "bench")]
    assert found == [("cpu", "a", 4), ("cpu", "a", 3), ("cuda", "a", 2), ("cpu", "b", 1)]


def test_a_run_against_the_reference_stands_beside_the_other(report: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results" / "bench.json"
    results.append(path, document([whole_row(seconds=0.3), *reference_rows()], reference="2a18ec7"))
    results.append(path, document([whole_row(seconds=0.2), *against_rows()]))
    assert run(report, tmp_path) == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert text.count("| one object |") == 3  # ours, and against the reference with ours of that run
    assert "200 (180 to 220)" in text
    assert "300 (270 to 330)" in text
    assert "| 3x |" in text
    folders = sorted(p.name for p in (tmp_path / "docs" / "benchmarks").iterdir())
    assert folders == ["cpu-embedded-lite", "cpu-embedded-lite-reference"]


def test_estimates_of_several_runs_stand_side_by_side(report: ModuleType, tmp_path: Path) -> None:
    for case, measured in (("image", 12.0), ("video", 20.0), ("image", 10.0)):
        quantities = {"encoder flops": {"estimated": 9.0, "measured": measured, "error": 9.0 / measured - 1}}
        row = whole_row(case, suite="estimate", extra={"quantities": quantities})
        results.append(tmp_path / "results" / "estimate.json", document([row]) | {"benchmark": "estimate"})
    assert run(report, tmp_path) == 0
    text = (tmp_path / "docs" / "benchmarks.md").read_text()
    assert "| encoder flops | 9 / 10 (-10%) | 9 / 20 (-55%) |" in text
    assert "9 / 12" not in text  # measured again since


def test_results_carried_back_are_added_once(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carried = tmp_path / "bench.json"
    results.append(carried, document([whole_row(seconds=0.9)]))
    results.append(carried, document([whole_row()]))
    assert run(report, tmp_path, "--add", str(carried)) == 0
    (added,) = results.read(tmp_path / "results" / "bench.json")
    assert added == results.read(carried)[1]
    with pytest.raises(SystemExit) as ended:
        run(report, tmp_path, "--add", str(carried))
    assert ended.value.code == 2
    assert "already" in capsys.readouterr().err


def test_regressions_are_named_and_noise_is_not(
    report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = document(ROWS)

    def compared(change: Any) -> tuple[int, str]:
        after = copy.deepcopy(base)
        change({row["suite"] + row["case"] + row["by"]: row for row in after["rows"]})
        paths = [tmp_path / "a.json", tmp_path / "b.json"]
        for path, own in zip(paths, (base, after), strict=True):
            path.write_text(json.dumps([own]))
        return report.main(["--compare", *map(str, paths)]), capsys.readouterr().out

    def slower(rows: dict[str, Any], times: float = 1.5) -> None:
        seconds = rows["wholeone objectours"]["seconds"]
        for key in seconds:
            seconds[key] *= times

    code, out = compared(slower)
    assert code == 1
    assert "1 regressions" in out
    assert "one object" in out
    assert "1.50x" in out
    assert compared(lambda rows: slower(rows, 1.1))[0] == 0  # the ranges overlap
    code, out = compared(lambda rows: slower(rows, 0.5))
    assert code == 0
    assert "0 regressions, 1 other" in out

    def cut(rows: dict[str, Any]) -> None:
        row = rows["wholeone objectours"]
        row |= {"ok": False, "reason": "no time left of 60 s"}
        del row["seconds"], row["percent_matrix"], row["percent_copy"]

    code, out = compared(cut)  # a run that had no time is no regression
    assert code == 0
    assert "2 cases were not run" in out


def test_bad_input_is_told_in_one_line(report: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results" / "bench.json").write_text("[")
    with pytest.raises(SystemExit) as ended:
        run(report, tmp_path)
    assert ended.value.code == 2
    assert "bench.json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        report.main(["--compare", str(tmp_path / "none.json"), str(tmp_path / "none.json")])
    assert ended.value.code == 2


def test_the_pages_of_this_repository_are_what_its_results_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("own_report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    import sys

    module = sys.modules["own_report"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(["--check"]) == 0, "run: python benchmarks/report.py"
    for link in links(module.PAGE):
        assert (module.PAGE.parent / link).is_file(), link
