"""The page of a run on a GPU: its answers, from results made up as a GPU would have them; and a run rehearsed."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bench_rows import document, whole_row
from scripts import load_script

from pixelrefer_fast.bench.report import results

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def gpu_page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return load_script(BENCHMARKS / "gpu_page.py")


def op_row(by: str, dtype: str, ok: bool = True, **more: Any) -> Any:
    extra = {"op": "rope2d"} | more.pop("extra", {})
    return {"suite": "ops", "case": "rope2d: small", "by": by, "dtype": dtype, "ok": ok, "extra": extra, **more}


def decode_document(percent: float, graph_bytes: int | None = None, **captured: Any) -> dict[str, Any]:
    """As `decode.py` has it on a GPU."""
    values = {"q10": 1.0, "median": 1.5, "q90": 2.0}
    rows = [{"case": f"decode, {n}", "unit": "ms a step", "values": values, "percent_of_copy": percent} for n in (1, 8)]
    rows.append({"case": "description", "unit": "ms", "values": {"q10": 70.0, "median": 80.0, "q90": 90.0}})
    counts = {"passes": 10, "prompts": 6, "steps": 14, "replays": 9, "refused": {}} | captured
    return {
        "benchmark": "decode",
        "measured_on": "cuda",
        "graph_bytes": graph_bytes,
        "trust": {"bit_for_bit": 28, "within_bar": 2, "dropped": {"the capture failed: why": 1}},
        "models": [{"model": "lite-2b", "weights": 1, "captured": counts, "rows": rows}],
    }


def launch_row(by: str, ok: bool = True, waits: int = 0) -> Any:
    row = {"suite": "launches", "case": "1 of 1 image", "by": by, "sizes": {"objects": 1, "images": 1}, "ok": ok}
    return row | {"launches": 14, "waits": waits, "extra": {"own": {"infuse.scores": 2}}}


def verify_row(by: str, dtype: str, ok: bool, case: str = "lite/case_0") -> Any:
    row = {"suite": "verify", "case": case, "by": by, "dtype": dtype, "ok": ok, "error": 0.5, "limit": 1.0}
    return row | {"extra": {"failed": [] if ok else ["logits"]}}


def asked(gpu_page: ModuleType, documents: list[Any], outcomes: dict[str, str] | None = None) -> dict[str, str]:
    return dict(gpu_page.answers(documents, outcomes or {}))


def of(benchmark: str, rows: list[Any]) -> dict[str, Any]:
    return results.document(benchmark, rows, measured_on="cuda")


def test_everything_as_it_should_be(gpu_page: ModuleType) -> None:
    row = whole_row("batch of 64", extra={"objects_per_second": 500.0})
    row |= {"model": "lite-2b", "sizes": row["sizes"] | {"answer": 64}}
    found = asked(
        gpu_page,
        [
            of("small_ops", [op_row(by, dtype) for by in ("torch", "triton") for dtype in ("float32", "bfloat16")]),
            of("small_ops", [op_row("cuda", "float16")]),
            of("verify", [verify_row("auto", "float32", True), verify_row("triton", "float32", True)]),
            of("launches", [launch_row("counted"), launch_row("seen")]),
            decode_document(86.0),
            document([row], measured_on="cuda"),
        ],
        {"waits-graphs": "passed"},
    )
    assert found["Do all kernels agree with their definitions?"] == (
        "yes: 5 right, 0 wrong, 0 that fail to run, 0 that are not for this machine; float32, bfloat16, float16"
    )
    assert found["Do captured graphs pass the check of their first replay?"] == (
        "tests on small models: passed. lite-2b: 10 passes, 6 prompts, 14 steps. "
        "28 bit for bit, 2 within rounding, 1 of them: the capture failed: why"
    )
    assert found["Do recorded cases hold?"] == "auto in float32 1 of 1, triton in float32 1 of 1"
    assert found["Are launches and waits those that are counted?"] == "yes: 1 as on the page, 1 as seen, 0 waits"
    assert found["Decoding, Lite-2B, 8 sequences at once, likewise: at least 85 %?"] == "86 %: met"
    assert found["64 tokens about one object, Lite-2B: at most 75 ms?"] == "80 ms: MISSED"
    assert found["Objects a second, Lite-2B, batches of 64: at least 400?"] == "500 a second, 64 tokens each: met"
    assert found["64 tokens about one object, Lite-7B: at most 350 ms?"] == "not asked"


def test_what_is_wrong_is_named(gpu_page: ModuleType) -> None:
    broken = op_row("triton", "float16", ok=False, reason="CompilationError: no", extra={"broken": True})
    declined = op_row("cuda", "float16", ok=False, reason="BackendError: it has none")
    found = asked(
        gpu_page,
        [
            of("small_ops", [op_row("triton", "float32", ok=False, error=1.0, limit=0.1), broken, declined]),
            of("verify", [verify_row("cuda", "float32", False), verify_row("cuda", "float32", True, "full/case_0")]),
            of("launches", [launch_row("counted"), launch_row("seen", ok=False, waits=3)]),
            decode_document(86.0, graph_bytes=0),
        ],
    )
    assert found["Do all kernels agree with their definitions?"] == (
        "NO: 0 right, 1 wrong, 1 that fail to run, 1 that are not for this machine; float32, float16. "
        "rope2d: small by triton in float32. rope2d: small by triton in float16. "
        "nobody but the definition computed rope2d: small in float16"
    )
    assert found["Do recorded cases hold?"] == "cuda in float32 1 of 2"
    assert found["Are launches and waits those that are counted?"] == (
        "NO: 1 of 1 image (seen); 1 as on the page, 1 as seen, 3 waits"
    )
    # what was not captured is held against no goal
    assert found["Decoding, Lite-2B, 8 sequences at once, likewise: at least 85 %?"] == "not asked"


def test_nothing_was_asked(gpu_page: ModuleType) -> None:
    found = asked(gpu_page, [])
    first, graphs, *others = found.values()
    assert {first, *others} == {"not asked"}
    assert graphs == "tests on small models: not asked"


def test_the_page_has_the_results_of_the_last_run_alone(gpu_page: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    outcomes = [{"part": "kernels", "outcome": "passed", "seconds": 12.5, "said": "a | b"}]
    (tmp_path / "summary.json").write_text(json.dumps(outcomes))
    for dtype in ("float64", "float32"):
        results.append(path, of("small_ops", [op_row("triton", dtype)]))
        results.append(path, of("verify", [verify_row("auto", dtype, True)]))
        assert gpu_page.main([str(tmp_path)]) == 0
    text = (tmp_path / "page.md").read_text()
    assert "| kernels | 12.5 | passed | a / b |" in text
    assert "1 right, 0 wrong" in text
    assert "float64" not in text
    assert "## Recorded cases" in text
    last = results.read(path)[-1]
    assert (last["benchmark"], last["parts"]) == ("gpu_check", outcomes)
    assert {"commit", "libraries", "device", "command"} <= last.keys()


def test_a_folder_without_a_run(gpu_page: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu_page.main([str(tmp_path)])
    assert stop.value.code == 2
    assert "expected what gpu_check.py leaves there" in capsys.readouterr().err


def test_cases_replayed_by_every_backend(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replayed = load_script(BENCHMARKS / "replayed.py")
    asked: list[tuple[Any, ...]] = []

    def verify(folder: Path | None, backend: str, device: str, dtype: str, progress: Any) -> Any:
        asked.append((folder, backend, device, dtype))
        stages = {
            "logits": {"error": 0.2, "limit": 0.1, "ok": False},
            "text": {"error": None, "limit": None, "ok": True},
        }
        fine = {"name": "case_0", "ok": True, "stages": {"logits": {"error": 0.05, "limit": 0.1, "ok": True}}}
        return {"cases": [fine, {"name": "case_1", "ok": False, "stages": stages}] if folder else [fine]}

    monkeypatch.setattr(replayed, "verify", verify)
    monkeypatch.setattr(replayed.ops, "check_backend", lambda backend: None)
    path = tmp_path / "results.json"
    assert replayed.main(["--device", "cpu", "--golden", str(tmp_path), "--json", str(path)]) == 1
    backends = ("auto", "triton", "cuda")
    folders = (None, tmp_path / "lite", tmp_path / "full")
    assert asked == [(folder, backend, "cpu", "float32") for backend in backends for folder in folders]
    rows = results.latest(path)["rows"]
    assert len(rows) == 15
    wrong = next(row for row in rows if not row["ok"])
    assert (wrong["case"], wrong["error"], wrong["extra"]["failed"]) == ("lite/case_1, recorded", 2.0, ["logits"])
    assert "lite/case_1" in capsys.readouterr().out.replace("\n", "")
    assert [run for run in replayed.runs("cuda") if run[1] != "float32"] == [("auto", "bfloat16"), ("auto", "float16")]


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = load_script(BENCHMARKS / "gpu_check.py")
    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    return module


def rehearsed(gpu_check: ModuleType, out: Path, *only: str) -> dict[str, str]:
    arguments = ["--device", "cpu", "--out", str(out), "--minutes", "60", *(["--only", *only] if only else [])]
    assert gpu_check.main(arguments) == 0, (out / "log.txt").read_text()
    return {part["part"]: part["outcome"] for part in json.loads((out / "summary.json").read_text())}


def test_parts_rehearsed(gpu_check: ModuleType, tmp_path: Path) -> None:
    """A real part, whose rows come to the page."""
    assert rehearsed(gpu_check, tmp_path, "extension") == {"extension": "passed"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "page.md", "results.json", "summary.json"]
    operations, own = results.read(tmp_path / "results.json")
    assert {row["extra"]["op"] for row in operations["rows"] if row["ok"]} >= {"pack_objects", "pack_views"}
    assert own["commit"] is None or len(own["commit"]) == 40
    assert "Do all kernels agree with their definitions? | yes: " in (tmp_path / "page.md").read_text()


@pytest.mark.slow
def test_the_whole_rehearsed(gpu_check: ModuleType, tmp_path: Path) -> None:
    """All that runs when nothing is named, in small: minutes."""
    outcomes = rehearsed(gpu_check, tmp_path)
    here = {name: outcome for name, outcome in outcomes.items() if not outcome.startswith("left out")}
    assert set(here.values()) == {"passed"}
    assert {"kernels", "extension", "waits-graphs", "verify", "launches", "decode", "bench", "ops"} <= here.keys()
    assert outcomes["build"] == "left out: it needs a GPU"
    benchmarks = [own["benchmark"] for own in results.read(tmp_path / "results.json")]
    assert set(benchmarks) == {"small_ops", "verify", "launches", "decode", "bench", "ops", "gpu_check"}
    text = (tmp_path / "page.md").read_text()
    for answer in ("are counted? | yes: 1 as on the page, none seen", "auto in float32", "definitions? | yes: "):
        assert answer in text
