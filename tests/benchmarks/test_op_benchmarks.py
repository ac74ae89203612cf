"""Every operation has a benchmark whose cases hold, and what is wrong shows no speed-up."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from scripts import load_script

import pixelrefer_fast.ops
from pixelrefer_fast.bench.measure.timing import WallClock
from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.run import ops
from pixelrefer_fast.bench.run.cases import Case, Rival, check, expected, normal
from pixelrefer_fast.ops import registry

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
OPS = sorted(registry())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ops_bench() -> ModuleType:
    return load_script(BENCHMARKS / "ops_bench.py")


def test_every_operation_has_a_benchmark(ops_bench: ModuleType) -> None:
    assert sorted(ops_bench.op_files()) == OPS


@pytest.mark.kernel
@pytest.mark.parametrize("name", OPS)
def test_smoke_cases_hold(ops_bench: ModuleType, name: str) -> None:
    """The definition and every provider that runs here agree on the small cases; the others are stated in full."""
    cases = ops_bench.load_cases(name)
    small = [case for case in cases if case.smoke]
    assert small
    assert len(small) < len(cases)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.op == name
        assert case.operation() is getattr(pixelrefer_fast.ops, name)
        assert case.flops >= 0
        assert all(case.moved(dtype) > 0 for dtype in case.dtypes)
    for case in small:
        for dtype in set(case.dtypes) & {torch.float32, torch.float16}:
            with torch.inference_mode():
                rows = ops.measure(case, dtype, CPU, 1, WallClock())
            assert rows[0]["by"] == "torch"
            assert rows[0]["ok"], rows[0]
            for row in rows:
                assert row["ok"] or "BackendError" in row.get("reason", ""), row
                assert row["ok"] == ("seconds" in row)
            assert results.validate(results.document("ops", rows)) == []


def test_the_encoder_and_transformers_own_agree(ops_bench: ModuleType) -> None:
    small, *released = ops_bench.load_cases("encoder")
    with torch.inference_mode():
        rows = {row["by"]: row for row in ops.measure(small, torch.float32, CPU, 1, WallClock())}
    assert {"torch", "auto", "transformers"} <= rows.keys()
    assert all(row["ok"] and row["error"] > 0 for row in rows.values())
    # of a patch through one of 27 released layers, 0.82 GFLOP in all (performance.md), beside attention and embedding
    attention = 4 * 1152 * (150**2 + 256**2 + 576**2)
    assert (released[0].flops - attention) / 982 - 2 * 588 * 1152 == pytest.approx(0.82e9 / 27, rel=0.01)


def test_multihead_attention_gives_what_an_infusion_step_gives(ops_bench: ModuleType) -> None:
    (small,) = (case for case in ops_bench.load_cases("infuse") if case.smoke)
    with torch.inference_mode():
        candidate = ops.JudgedCase(small, torch.float32, CPU).candidate("nn.MultiheadAttention")
    assert candidate.row["ok"]
    assert 0 < candidate.row["error"] < 1e-5
    assert "partial" not in candidate.row["extra"]  # the norm is part of both


def test_flash_kmeans_is_given_the_clustering_alone(ops_bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the library that clusters as the definition does; without it, it is said to be missing."""
    from pixelrefer_fast.ops.object_pool import kmeans

    cases = {case.name: case for case in ops_bench.load_cases("object_pool")}
    assert [name for name, case in cases.items() if not case.rivals] == [
        "2 objects of 9 and 3 patches",
        "16 objects of 150 patches on finer grids",
        "16 objects of 20 to 395 patches",
    ]

    def batch_kmeans_Euclid(
        x: torch.Tensor, clusters: int, max_iters: int, tol: float, init_centroids: torch.Tensor
    ) -> tuple[None, torch.Tensor, int]:
        starts = [
            torch.stack([(own == c).all(1).nonzero()[0, 0] for c in first])
            for own, first in zip(x, init_centroids, strict=True)
        ]
        assert clusters == len(starts[0])
        assert tol == 0
        return None, torch.stack([kmeans(own, s, max_iters) for own, s in zip(x, starts, strict=True)]), max_iters

    library = ModuleType("flash_kmeans")
    library.batch_kmeans_Euclid = batch_kmeans_Euclid  # type: ignore[attr-defined]
    with torch.inference_mode():
        work = ops.JudgedCase(cases["1 object of 150 patches"], torch.float32, CPU)
        monkeypatch.setitem(sys.modules, "flash_kmeans", None)
        missing = work.candidate("flash-kmeans")
        monkeypatch.setitem(sys.modules, "flash_kmeans", library)
        found = work.candidate("flash-kmeans")
    assert not missing.runs
    assert "flash_kmeans" in missing.row["reason"]
    assert found.row["ok"]
    assert found.row["extra"]["partial"] == "clustering alone"


def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def wrong(x: torch.Tensor) -> torch.Tensor:
    return x / 2 + (x > 0.99 * x.max())


class Halving:
    """As much of an operation as the benchmark asks for."""

    name, definition, mutates, tolerance = "halve", staticmethod(halve), (), {torch.float32: 1e-6}

    def __call__(self, x: torch.Tensor, backend: str) -> torch.Tensor:
        if backend == "cuda":
            raise ValueError("declined")
        return wrong(x)

    def providers(self) -> list[tuple[str, bool, str]]:
        return [("torch", True, ""), ("triton", True, ""), ("cuda", True, ""), ("xformers", False, "not installed")]


def halving_case(**more: Any) -> Case:
    def arguments(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        return (normal((8, 9), 1, device, dtype),)

    return Case("halve", "72 numbers", arguments, 72, lambda dtype: 576, smoke=True, owner=Halving(), **more)


def rival(factor: float) -> Any:
    return lambda arguments: Rival(lambda: factor * arguments[0], lambda result: [result])


def test_what_is_wrong_shows_no_speed_up(ops_bench: ModuleType) -> None:
    rivals = {"right": rival(0.5), "bad": rival(0.6), "unchecked": lambda arguments: Rival(lambda: None)}
    rows = ops.measure(halving_case(rivals=rivals), torch.float32, CPU, 7, WallClock())
    by = {row["by"]: row for row in rows}
    assert list(by) == ["torch", "triton", "cuda", "right", "bad", "unchecked"]
    assert by["torch"]["ok"]
    assert by["torch"]["calls"] == 7
    assert not by["triton"]["ok"]
    assert by["triton"]["error"] >= 1
    assert by["cuda"]["reason"] == "ValueError: declined"
    assert by["right"]["ok"]
    assert not by["bad"]["ok"]
    assert "error" not in by["unchecked"]
    result = results.document("ops", rows, {"copy": 1e9, "float32": 1e9})
    lines = {line[2]: line for line in ops_bench.table(result)}
    assert [lines[name][5] for name in ("torch", "triton", "bad")] == ["", "none: wrong", "none: wrong"]
    assert lines["right"][5].endswith("x")
    assert lines["unchecked"][6] == "not checked"
    assert lines["cuda"][3] == "not run: ValueError: declined"
    shown = {name: line[7:] for name, line in lines.items()}
    assert shown["bad"] == shown["triton"] == ["", ""]
    assert all(part.endswith(" %") for part in shown["right"])


def test_inputs_in_turn_and_fresh_where_they_are_written_to() -> None:
    case = next(case for case in load_script(BENCHMARKS / "ops" / "scatter_tokens.py").cases() if case.smoke)
    candidate = ops.JudgedCase(case, torch.float32, CPU).candidate("torch")
    (_, first), (_, second), (_, third) = (candidate.prepare() for _ in range(3))
    embeds, tokens = 0, 1
    assert first[tokens].data_ptr() == third[tokens].data_ptr() != second[tokens].data_ptr()
    assert len({given[embeds].data_ptr() for given in (first, second, third)}) == 3
    assert candidate.row["final_bytes"] >= first[embeds].nbytes


def test_errors_are_judged_by_the_worst_result() -> None:
    x = torch.randn(5)
    wanted = expected(Halving(), (x,))

    def judged(*given: torch.Tensor | None) -> Any:
        return check(Halving(), wanted, given)

    assert judged(x / 2).ok
    assert judged(x / 2).error < 1e-6
    assert 0.5e-6 < judged(x / 2 + 6e-7).error < 1.2e-6  # what is right has an error too
    assert not judged(x / 2 + 1e-3).ok
    assert not judged(torch.full_like(x, float("nan"))).ok
    assert not judged(x[:4] / 2).ok
    assert not judged((x / 2).double()).ok
    assert judged(None).ok
    ranks = Halving()
    ranks.definition = lambda x: (x / 2, x.argsort())
    wanted = expected(ranks, (x,))
    assert check(ranks, wanted, [x / 2, x.argsort()]).ok
    assert not check(ranks, wanted, [x / 2, x.argsort().flip(0)]).ok
    assert not check(ranks, wanted, [x, x.argsort()]).ok


def test_what_there_is_no_time_for_is_said(ops_bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first case of every operation comes before the second of any."""
    names = ["add_norm", "rope2d"]
    result = ops_bench.benchmark(names, CPU, 1, smoke=True, seconds=-1)
    assert result["rows"] == []
    assert [x.split(":")[0] for x in result["left_out"]][:2] == names

    measured = []

    def measure(case: Case, *rest: Any) -> list[results.Row]:
        measured.append(case.op)
        return [{"suite": "ops", "case": case.name, "by": "torch", "ok": True, "extra": {"op": case.op}}]

    monkeypatch.setattr(ops, "measure", measure)
    monkeypatch.setattr(ops_bench.rates, "measured", lambda *_: {})
    result = ops_bench.benchmark(names[::-1], CPU, 1, smoke=False)
    assert measured[:4] == names[::-1] * 2
    assert [row["extra"]["op"] for row in result["rows"]] == sorted(measured, reverse=True)
    assert result["left_out"] == []

    def without_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ops, "measure", without_memory)
    result = ops_bench.benchmark(["rope2d"], CPU, 1, smoke=True)
    assert [x.endswith("(no memory)") for x in result["left_out"]] == [True]

    def without_library(name: str) -> None:
        raise ModuleNotFoundError("No module named 'cv2'")

    monkeypatch.setattr(ops_bench, "load_cases", without_library)
    result = ops_bench.benchmark(["rope2d"], CPU, 1, smoke=True)
    assert result["left_out"] == ["rope2d (No module named 'cv2')"]


def test_a_bad_result_file_is_refused_before_work(
    ops_bench: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        ops_bench.main(["--json", str(tmp_path)])
    assert stop.value.code == 2
    assert "got a folder" in capsys.readouterr().err


def test_a_run_writes_its_result(ops_bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ops_bench.rates.COPY, "cpu", 1 << 16)
    monkeypatch.setitem(ops_bench.rates.SIZES, "cpu", 16)
    out, page = tmp_path / "ops.json", tmp_path / "ops.md"
    arguments = ["--op", "add_norm", "--repeats", "2", "--device", "cpu", "--json", str(out), "--markdown", str(page)]
    assert ops_bench.main([*arguments, "--seconds", "0.01"]) == 0
    (result,) = results.read(out)
    assert results.validate(result) == []
    assert {row["extra"]["op"] for row in result["rows"]} == {"add_norm"}
    assert result["rates"].keys() == {"copy", "float32"}
    assert "percent_copy" in result["rows"][0]
    assert "| add_norm: " in page.read_text()


def test_the_encoder_and_a_rival_are_measured_by_name(
    ops_bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")  # the interpreter has its own tests
    out = tmp_path / "ops.json"
    arguments = ["--op", "infuse", "encoder", "--smoke", "--repeats", "1", "--device", "cpu", "--json", str(out)]
    assert ops_bench.main(arguments) == 0
    (document,) = results.read(out)
    assert results.validate(document) == []
    by = {(row["extra"]["op"], row["by"]) for row in document["rows"]}
    assert {("infuse", "torch"), ("infuse", "nn.MultiheadAttention"), ("encoder", "transformers")} <= by
    assert all(row["ok"] and row["calls"] == 1 and "error" in row for row in document["rows"])
