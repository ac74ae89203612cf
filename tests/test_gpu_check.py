"""The command prepared for a GPU: what it would run exists, stages do not stop each other; and the tuner's search."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pixelrefer_fast.ops import registry

REPOSITORY = Path(__file__).parents[1]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu_check() -> ModuleType:
    return load(REPOSITORY / "benchmarks" / "gpu_check.py")


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return load(REPOSITORY / "tools" / "tune.py")


def test_a_dry_run_lists_every_stage_and_every_script_knows_its_options() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu_check.py"), "--dry-run"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = {line.split(" (at most")[0]: shlex.split(line.partition(": ")[2]) for line in printed}
    assert list(lines)[:4] == ["build", "machine", "tests", "ops"]
    tools = ("memcheck", "racecheck", "initcheck")
    sanitized = [[words for name, words in lines.items() if name in (f"{t}-extension", f"{t}-kernels")] for t in tools]
    for own in sanitized:
        operations = [name for words in own for name in words[words.index("--op") + 1 :]]
        assert sorted(operations) == sorted(registry())
    assert {"compiled", "smoke", "tune", "region", "tuned-tests", "tuned-ops"} <= lines.keys()
    usage = {}
    for words in lines.values():
        for i, word in enumerate(words):
            if not word.endswith(".py"):
                continue
            if word not in usage:
                asked = [sys.executable, str(REPOSITORY / word), "--help"]
                usage[word] = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
            assert all(option in usage[word] for option in words[i:] if option.startswith("--"))
    assert len(usage) == 5


def test_a_stage_that_fails_stops_no_other(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    survived = tmp_path / "survived"
    hangs = f'import time; time.sleep(3); open("{survived}", "w")'

    def stages(out: Path, reference: Path | None) -> list:
        python = gpu_check.PYTHON
        return [
            gpu_check.Stage("fails", (python, "-c", "print('first'); raise SystemExit(3)"), 60),
            gpu_check.Stage("hangs", ("sh", "-c", f"{python} -c '{hangs}'; true"), 1),
            gpu_check.Stage("lacks", ("no-such-tool",), 60, "no-such-tool"),
            gpu_check.Stage("imports", (python, "-c", "import pixelrefer_fast as p; print(p.__file__)"), 60),
        ]

    monkeypatch.setattr(gpu_check, "stages", stages)
    start = time.monotonic()
    assert gpu_check.main(["--out", str(tmp_path)]) == 1
    outcomes = {o["stage"]: o["outcome"] for o in json.loads((tmp_path / "summary.json").read_text())}
    assert outcomes == {
        "fails": "failed with 3",
        "hangs": "ended after 1 s",
        "lacks": "left out: no-such-tool is not here",
        "imports": "passed",
    }
    assert "first" in (tmp_path / "log.txt").read_text()
    assert "hangs: ended after 1 s" in capsys.readouterr().out
    assert (tmp_path / "configs.tar.gz").stat().st_size > 0
    assert gpu_check.main(["--out", str(tmp_path), "--only", "imports"]) == 0
    time.sleep(max(0.0, 5 - (time.monotonic() - start)))
    assert not survived.exists()  # what a stage has started ends with it
    assert gpu_check.main(["--out", str(tmp_path), "--only", "imports", "--minutes", "0.01"]) == 1


def test_the_search_goes_down_to_the_least_and_keeps_to_the_ranges(tune: ModuleType) -> None:
    tried = []

    def seconds(entry: dict[str, int]) -> float:
        tried.append(entry)
        if entry["BLOCK"] > 256:
            return math.inf
        return abs(math.log2(entry["BLOCK"] / 128)) + abs(math.log2(entry["num_warps"] / 2)) + entry["num_stages"]

    best, least, first = tune.descend({"BLOCK": 32, "num_warps": 8, "num_stages": 3}, seconds, time.monotonic() + 60)
    assert best == {"BLOCK": 128, "num_warps": 2, "num_stages": 1}
    assert (least, first) == (1, 7)
    assert all(1 <= e["num_warps"] <= 16 and 1 <= e["num_stages"] <= 5 for e in tried)
    assert len({tuple(e.items()) for e in tried}) == len(tried)
    start = {"BLOCK": 32, "num_warps": 8, "num_stages": 3}
    assert tune.descend(start, seconds, time.monotonic() - 1) == (start, 7, 7)


def test_a_size_is_tuned_in_the_entry_that_serves_it(tune: ModuleType) -> None:
    from pixelrefer_fast.kernels import _launch

    for path in sorted((REPOSITORY / "kernels" / "configs").glob("*/default.json")):
        for kernel, entries in json.loads(path.read_text()).items():
            for size in (1, 64, 65, 256, 1024, 100_000):
                entry = dict(entries[tune.entry_index(entries, size)])
                entry.pop("upto", None)
                assert _launch.configuration(f"{path.parent.name}.{kernel}", size) == entry


@pytest.mark.kernel
def test_an_operation_is_tuned_by_its_cases(tune: ModuleType, kernel_device: Any, tmp_path: Path) -> None:
    """In the interpreter, with a clock for which fewer warps are faster and two warps fail."""
    import ops_bench

    from pixelrefer_fast.kernels import _launch, add_norm

    def clock(prepare: Any, run: Any) -> tuple[float, float]:
        run(prepare())
        warps = add_norm.configuration("add_norm.rows", 2048)["num_warps"]
        if warps == 2:
            raise ValueError("too few warps")
        return float(warps), 0.0

    rows = functools.partial(rows_of, 1000)
    case = ops_bench.Case("add_norm", "a row of 1,000", rows, 1, lambda dtype: 1, (torch.float32,))
    before = json.loads((REPOSITORY / "kernels" / "configs" / "add_norm" / "default.json").read_text())["rows"]
    table = tune.tune("add_norm", [case], kernel_device, 60, clock)
    i = tune.entry_index(before, 1000)
    assert before[i]["num_warps"] == 8
    assert table["rows"] == [{**e, "num_warps": 4} if e is before[i] else e for e in before]
    assert add_norm.configuration is _launch.configuration
    tune.write_entries(tmp_path / "device.json", table)
    assert json.loads((tmp_path / "device.json").read_text()) == table


def rows_of(width: int, device: torch.device, dtype: torch.dtype) -> tuple[Any, ...]:
    x, delta = torch.randn(2, 1, width).to(device, dtype)
    return x, delta, torch.ones_like(x[0]), torch.zeros_like(x[0]), 1e-5


def test_without_a_device_there_is_nothing_to_tune(tune: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert tune.main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err
