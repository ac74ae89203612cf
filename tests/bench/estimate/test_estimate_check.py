"""Estimates held against what was measured here, and against rows of the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pixelrefer_fast.bench.estimate import estimate_check
from pixelrefer_fast.bench.estimate.gpus import Gpu
from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.run import loads, whole
from pixelrefer_fast.bench.run.askers import Ours, as_measured
from pixelrefer_fast.bench.run.effort import Effort
from pixelrefer_fast.device import memory as device_memory

CHECK_GPU = Gpu(
    "this", "a CPU", 10**10, 1e9, {}, "", measured={"copy": 1e9, "float32": 1e9}, measured_source="told", kind="cpu"
)


def test_measuring_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = Workload(objects=2, height=112, width=112, answer=2)
    check = estimate_check.measure("embedded:lite", workload, "cpu", "float32", 1, CHECK_GPU)
    by_name = {(q.name, q.unit): q for q in check.quantities}
    assert all(q.error == 0 for q in check.quantities if q.unit == "FLOP" and q.measured)
    for name in ("patches", "object", "prompt, its text by rule"):
        assert by_name[name, "tokens"].error == 0, name
    assert abs(by_name["memory, at the most", "bytes"].error or 0) < 0.1
    assert by_name["all", "s"].measured > by_name["first token", "s"].measured > 0
    document = estimate_check.document([check])
    assert results.validate(document) == []
    results.append(tmp_path / "estimate.json", document)
    kept = results.latest(tmp_path / "estimate.json")["rows"][0]["extra"]["quantities"]
    assert kept["all, FLOP"]["error"] == 0
    monkeypatch.setattr(device_memory, "free_memory", lambda device: 10**9)
    with pytest.raises(ValueError, match=r"--measure: expected .* GB of free memory for lite-7b, got 1"):
        estimate_check.measure("lite-7b", workload, "cpu", "float32", 1, CHECK_GPU)
    with pytest.raises(ValueError, match="--measure: expected one image or video"):
        estimate_check.measure("embedded:lite", Workload(batch=2), "cpu", "float32", 1, CHECK_GPU)


def test_rows_of_the_benchmarks(models: dict[str, Any], tmp_path: Path) -> None:
    rows = []
    effort = Effort(tokens=2, repeats=1)
    for name, load in (
        ("embedded:lite", loads.image_load("image", (112, 112), 2)),
        ("embedded:full", loads.video_load("video", (112, 112), 2, "full")),
    ):
        with as_measured(models[name]):
            rows.append(whole.measure(Ours(models[name]), load, 2, effort, name, checked=False))
    path = tmp_path / "bench.json"
    results.append(path, results.document("bench", rows, {"copy": 1e10, "float32": 1e10}))
    checks = list(estimate_check.check_file(path))
    assert [check.case for check in checks] == ["whole: image", "whole: video"]
    for check in checks:
        quantities = {(q.name, q.unit): q for q in check.quantities}
        assert quantities["all", "FLOP"].error == 0
        assert quantities["object", "tokens"].error == 0
        assert {"pooling", "encoder", "prefill", "decode"} <= {name for name, unit in quantities if unit == "FLOP"}
        assert ("first token", "s") in quantities
    empty = tmp_path / "empty.json"
    results.append(empty, results.document("bench", [], {}))
    with pytest.raises(ValueError, match=r"expected rows of whole, .*, found none"):
        list(estimate_check.check_file(empty))
