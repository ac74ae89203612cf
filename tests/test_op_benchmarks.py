"""Every operation has a benchmark whose cases hold, and what is wrong shows no speed-up."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pixelrefer_fast.ops
from pixelrefer_fast.ops import registry

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OPS = sorted(registry())


@pytest.fixture(scope="module")
def ops_bench() -> Iterator[ModuleType]:
    """The benchmark as a module, with the folders that it imports from as it has them as a script."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        for name in ("_harness", "_case"):
            patch.delitem(sys.modules, name, raising=False)
        spec = importlib.util.spec_from_file_location("ops_bench", BENCHMARKS / "ops_bench.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


def test_every_operation_has_a_benchmark(ops_bench: ModuleType) -> None:
    assert sorted(ops_bench.op_files()) == OPS


@pytest.mark.kernel
@pytest.mark.parametrize("name", OPS)
def test_smoke_cases_hold(ops_bench: ModuleType, name: str) -> None:
    """The definition and every provider that runs here agree on the small cases; the others are stated in full."""
    op = getattr(pixelrefer_fast.ops, name)
    cases = ops_bench.load_cases(name)
    small = [case for case in cases if case.smoke]
    assert small
    assert len(small) < len(cases)
    assert len({case.name for case in cases}) == len(cases)
    for case in cases:
        assert case.op == name
        assert case.flops >= 0
        assert all(case.moved(dtype) > 0 for dtype in case.dtypes)
    for case in small:
        for dtype in set(case.dtypes) & {torch.float32, torch.float16}:
            row = ops_bench.measure(op, case, dtype, torch.device("cpu"), 1, ops_bench.wall_clock)
            assert row["candidates"]["torch"]["ok"], row
            for backend, result in row["candidates"].items():
                assert result["ok"] or "BackendError" in result.get("reason", ""), (case.name, backend, result)


def halve(x: torch.Tensor) -> torch.Tensor:
    return x / 2


def wrong(x: torch.Tensor) -> torch.Tensor:
    return x / 2 + (x > 0.99 * x.max())


class Halving:
    """As much of an operation as the benchmark asks for."""

    name, definition, mutates, tolerance = "halve", staticmethod(halve), (), {torch.float32: 1e-6}
    operator = type("", (), {"_schema": type("", (), {"arguments": ()})})

    def __call__(self, x: torch.Tensor, backend: str) -> torch.Tensor:
        if backend == "cuda":
            raise ValueError("declined")
        return wrong(x)

    def providers(self) -> list[tuple[str, bool, str]]:
        return [("torch", True, ""), ("triton", True, ""), ("cuda", True, ""), ("xformers", False, "not installed")]


def test_what_is_wrong_shows_no_speed_up(ops_bench: ModuleType) -> None:
    def arguments(device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
        return (sys.modules["_case"].normal((8, 9), 1, device, dtype),)

    case = sys.modules["_case"].Case("halve", "72 numbers", arguments, flops=72, moved=lambda dtype: 576, smoke=True)
    row = ops_bench.measure(Halving(), case, torch.float32, torch.device("cpu"), 7, ops_bench.wall_clock)
    assert list(row["candidates"]) == ["torch", "triton", "cuda"]
    assert row["candidates"]["torch"]["ok"]
    assert row["candidates"]["torch"]["calls"] == 7
    assert not row["candidates"]["triton"]["ok"]
    assert row["candidates"]["triton"]["error"] >= 1
    assert row["candidates"]["cuda"]["reason"] == "ValueError: declined"
    lines = ops_bench.table({"rates": {}, "rows": [row]})
    assert [line[6] for line in lines] == ["", "none: wrong", ""]
    assert [line[8:] for line in lines] == [["", ""]] * 3


def test_errors_are_judged_by_the_worst_result(ops_bench: ModuleType) -> None:
    case = sys.modules["_case"]

    x = torch.randn(5)
    wanted = case.expected(Halving(), (x,))

    def check(result: torch.Tensor) -> Any:
        return case.check(Halving(), wanted, [result])

    assert check(x / 2).ok
    assert check(x / 2).error < 1e-6
    assert not check(x / 2 + 1e-3).ok
    assert not check(torch.full_like(x, float("nan"))).ok
    assert not check(x[:4] / 2).ok
    assert not check((x / 2).double()).ok
    ranks = Halving()
    ranks.definition = lambda x: (x / 2, x.argsort())
    wanted = case.expected(ranks, (x,))
    assert case.check(ranks, wanted, [x / 2, x.argsort()]).ok
    assert not case.check(ranks, wanted, [x / 2, x.argsort().flip(0)]).ok


def test_what_there_is_no_time_for_is_said(ops_bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first case of every operation comes before the second of any."""
    names, device = ["add_norm", "rope2d"], torch.device("cpu")
    result = ops_bench.benchmark(names, device, 1, smoke=True, seconds=-1)
    assert result["rows"] == []
    assert [x.split(":")[0] for x in result["left_out"]][:2] == names

    measured = []
    monkeypatch.setattr(ops_bench, "measure", lambda op, case, *rest: measured.append(op.name) or {"op": op.name})
    result = ops_bench.benchmark(names[::-1], device, 1, smoke=False)
    assert measured[:4] == names[::-1] * 2
    assert [row["op"] for row in result["rows"]] == sorted(measured, reverse=True)
    assert result["left_out"] == []

    def without_memory(*arguments: Any) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ops_bench, "measure", without_memory)
    result = ops_bench.benchmark(["rope2d"], device, 1, smoke=True)
    assert [x.endswith("(no memory)") for x in result["left_out"]] == [True]


@pytest.mark.slow
def test_a_run_writes_its_result(ops_bench: ModuleType, tmp_path: Path) -> None:
    out, page = tmp_path / "ops.json", tmp_path / "ops.md"
    assert ops_bench.main(["--op", "add_norm", "--repeats", "2", "--json", str(out), "--markdown", str(page)]) == 0
    (result,) = json.loads(out.read_text())
    assert {row["op"] for row in result["rows"]} == {"add_norm"}
    assert bool(result["rates"]) == torch.cuda.is_available()
    assert "| add_norm |" in page.read_text()
