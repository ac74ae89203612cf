"""The command prepared for a GPU: what it would run exists, parts do not stop each other; and the tuner's search."""

from __future__ import annotations

import functools
import importlib.util
import json
import math
import os
import shlex
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from pixelrefer_fast.ops import registry

REPOSITORY = Path(__file__).parents[2]


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    return load(REPOSITORY / "benchmarks" / "gpu_check.py")


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    return load(REPOSITORY / "tools" / "tune.py")


def test_a_dry_run_lists_every_part_and_every_command_knows_its_options() -> None:
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu_check.py"), "--dry-run"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = {line.split(" (at most")[0]: shlex.split(line.partition("): ")[2]) for line in printed}
    core = [line.split(" (at most")[0] for line in printed if ", by name)" not in line]
    assert " ".join(core) == "build machine kernels extension waits-graphs verify launches decode bench ops"
    others = {"ops-compiled", "tune", "region_stage", "decode-eager", "memcheck-kernels", "racecheck-kernels", "tests"}
    assert others <= lines.keys() - core
    every = sorted(registry())
    for names in [("kernels", "extension")] + [(f"{t}-kernels", f"{t}-extension") for t in ("memcheck", "initcheck")]:
        operations = [own for name in names for own in lines[name][lines[name].index("--op") + 1 :]]
        assert sorted(operations) == every
    usage: dict[str, str] = {}
    for line in lines.values():
        words = line[line.index(sys.executable) :] if sys.executable in line else []
        asked = asks_for_help(words)
        if not asked:
            continue
        own = " ".join(asked)
        if own not in usage:
            usage[own] = subprocess.run([*asked, "--help"], capture_output=True, text=True, check=True, env=WIDE).stdout
        missing = [o for o in words[len(asked) :] if o.startswith("--") and o not in usage[own]]
        assert not missing, (own, missing)
    assert len(usage) == 9  # eight scripts and `bench`


def test_what_runs_unasked_fits_into_the_nine_minutes(gpu_check: ModuleType, tmp_path: Path) -> None:
    """If every part took all that it may take."""
    core = [part for part in gpu_check.parts(tmp_path) if part.core]
    first_that_waits = next(i for i, part in enumerate(core) if part.waits and not part.beside)
    beside = max(part.limit for part in core if part.beside)
    before = sum(part.limit for part in core[:first_that_waits] if not part.beside)
    after = sum(part.limit for part in core[first_that_waits:])
    assert beside > 0 < before
    assert max(beside, before) + after + gpu_check.PAGE_SECONDS <= 60 * gpu_check.MINUTES


WIDE = {**os.environ, "COLUMNS": "200"}


def asks_for_help(words: list[str]) -> list[str]:
    """The beginning of a command that takes options of ours."""
    if words[1:3] == ["-m", "pixelrefer_fast.cli"]:
        return words[:4]
    return [words[0], str(REPOSITORY / words[1])] if words[1:] and words[1].endswith(".py") else []


def fake_parts(gpu_check: ModuleType, survived: Path) -> list[Any]:
    python, part = gpu_check.PYTHON, gpu_check.Part
    hangs = f'import time; time.sleep(3); open("{survived}", "w")'
    broken = (python, "-c", "print('Error: no such device'); raise SystemExit(7)")
    return [
        part("fails", (python, "-c", "print('first'); raise SystemExit(3)"), 60, core=True),
        part("hangs", ("sh", "-c", f"{python} -c '{hangs}'; true"), 1, core=True),
        part("lacks", ("no-such-tool",), 60, core=True, lacking="no-such-tool is not here"),
        part("absent", ("no-such-tool",), 60, core=True),
        part("refused", ("true",), 60, core=True, probe=broken),
        part("imports", (python, "-c", "import pixelrefer_fast as p; print(p.__file__)"), 60, core=True),
        part("asked", (python, "-c", "print('by name')"), 60),
    ]


@pytest.fixture
def faked(gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    survived = tmp_path / "survived"
    monkeypatch.setattr(gpu_check, "parts", lambda *_: fake_parts(gpu_check, survived))
    monkeypatch.setattr(gpu_check, "has_device", lambda: True)
    monkeypatch.setattr(gpu_check, "write_page", lambda *_: "answers\n")
    monkeypatch.setattr(gpu_check.signal, "signal", lambda *_: None)
    return gpu_check


def outcomes(out: Path) -> dict[str, str]:
    return {o["part"]: o["outcome"] for o in json.loads((out / "summary.json").read_text())}


def test_a_part_that_fails_stops_no_other(
    faked: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    start = time.monotonic()
    assert faked.main(["--out", str(out)]) == 1
    assert outcomes(out) == {
        "fails": "failed with 3",
        "hangs": "ended after 1 s",
        "lacks": "left out: no-such-tool is not here",
        "absent": "could not be started: No such file or directory",
        "refused": f"left out: {faked.PYTHON} does not work here: Error: no such device",
        "imports": "passed",
    }
    assert "first" in (out / "log.txt").read_text()
    table, _, told = capsys.readouterr().out.split("parts, in the order of their ends")[1].rpartition("\n\n")
    assert told == "answers\n"
    table = table.splitlines()[1:]
    assert [line.split()[0] for line in table] == list(outcomes(out))
    assert "hangs" in table[1]
    assert "ended after 1 s" in table[1]
    assert "pixelrefer_fast/__init__.py" in table[-1]  # what a part has said last
    assert sorted(p.name for p in out.iterdir()) == ["log.txt", "summary.json"]
    time.sleep(max(0.0, 5 - (time.monotonic() - start)))
    assert not (tmp_path / "survived").exists()  # what a part has started ends with it


def test_parts_by_name_and_without_time(faked: ModuleType, tmp_path: Path) -> None:
    assert faked.main(["--out", str(tmp_path), "--only", "asked", "lacks"]) == 0
    assert outcomes(tmp_path) == {"lacks": "left out: no-such-tool is not here", "asked": "passed"}
    assert faked.main(["--out", str(tmp_path), "--only", "asked", "--minutes", "0.2"]) == 0
    assert outcomes(tmp_path) == {"asked": "left out: no time"}


def test_without_a_device_nothing_is_run(
    faked: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(faked, "has_device", lambda: False)
    with pytest.raises(SystemExit) as stop:
        faked.main(["--out", str(tmp_path / "out")])
    assert stop.value.code == 2
    assert "no torch that sees a CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert faked.main(["--out", str(tmp_path / "out"), "--device", "cpu", "--only", "asked"]) == 0


def test_a_build_runs_beside_what_does_not_wait_for_it(gpu_check: ModuleType, tmp_path: Path) -> None:
    """The build ends when another part has run, which it would wait for in vain if that came after it."""
    python, flag = gpu_check.PYTHON, tmp_path / "flag"
    waiting = f"import os, time\nwhile not os.path.exists({str(flag)!r}): time.sleep(0.01)"
    touch = f"open({str(flag)!r}, 'w')"
    parts = [
        gpu_check.Part("build", (python, "-c", waiting), 60, beside=True),
        gpu_check.Part("beside", (python, "-c", touch), 60, waits=False),
        gpu_check.Part("after", (python, "-c", touch), 60),
    ]
    found = gpu_check.run_all(parts, {}, tmp_path, time.monotonic() + 120)
    assert [(o["part"], o["outcome"]) for o in found] == [
        ("beside", "passed"),
        ("build", "passed"),
        ("after", "passed"),
    ]


def test_a_rehearsal_leaves_out_what_needs_a_gpu(gpu_check: ModuleType, tmp_path: Path) -> None:
    parts = {part.name: part for part in gpu_check.parts(tmp_path, "cpu", golden=tmp_path)}
    left_out = [name for name, part in parts.items() if part.core and part.lacking == "it needs a GPU"]
    assert left_out == ["build"]
    for name in ("kernels", "extension", "verify", "launches", "decode", "bench", "ops"):
        words = parts[name].command
        assert words[words.index("--device") + 1] == "cpu"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_real_vllm_is_asked_where_it_is_installed(
    gpu_check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    find = importlib.util.find_spec

    def part(installed: bool) -> Any:
        spec = find("json") if installed else None
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec if name == "vllm" else find(name))
        (found,) = [own for own in gpu_check.parts(tmp_path, device) if own.name == "vllm"]
        return found

    assert part(True).lacking is None
    assert part(True).command[1] == "benchmarks/vllm_engine.py"
    (told,) = gpu_check.run_all([part(False)], {}, tmp_path, time.monotonic() + 60)
    assert told["outcome"] == "left out: vllm is not installed"


@pytest.mark.usefixtures("gpu_check")
def test_tests_that_cannot_be_imported_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lent machine without hypothesis runs the files that do without."""
    import _gpu_parts

    everything = _gpu_parts.readable_tests()
    assert {"tests/test_device_pass.py", "tests/ops/test_infuse_kernel.py", "tests/device/test_graphs.py"} <= set(
        everything
    )
    find = importlib.util.find_spec
    missing = {"hypothesis", "av", "cv2", "pycocotools"}
    monkeypatch.setattr(_gpu_parts.importlib.util, "find_spec", lambda name: None if name in missing else find(name))
    left = _gpu_parts.readable_tests()
    assert {"tests/test_device_pass.py", "tests/ops/test_infuse_kernel.py"} <= set(left) < set(everything)
    for path in left:
        assert not missing & set(_gpu_parts._imported((REPOSITORY / path).read_text())), path


def test_results_and_pictures_come_back_as_one_file_each(gpu_check: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    for name in ("whole.png", "whole.svg"):
        (folder / name).write_text(name)
    (folder / "bench.json").write_text('[{"benchmark": "bench"}]')
    (tmp_path / "results.json").write_text('[{"benchmark": "ops"}]')
    gpu_check.collect(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pictures.tar.gz", "results.json"]
    assert [found["benchmark"] for found in json.loads((tmp_path / "results.json").read_text())] == ["ops", "bench"]
    with tarfile.open(tmp_path / "pictures.tar.gz") as archive:
        assert {"pictures/whole.png", "pictures/whole.svg"} <= set(archive.getnames())
    gpu_check.collect(tmp_path)  # nothing more to do


def test_wheels_that_do_not_fit_keep_no_other_out(
    gpu_check: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository, folder, log = tmp_path / "repository", tmp_path / "folder", tmp_path / "log.txt"
    for path in (repository / ".whl", repository / "pixelrefer_fast", folder):
        path.mkdir(parents=True)
    (repository / ".whl" / "bad-1.0-py3-none-any.whl").write_text("no wheel")
    with zipfile.ZipFile(repository / ".whl" / "good_one-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("good_one.py", "here = True")
        info = "good_one-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: good-one\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(gpu_check, "REPOSITORY", repository)
    monkeypatch.setattr(sys, "path", list(sys.path))
    environment = gpu_check.importable(folder, log)
    assert (folder / "site" / "good_one.py").is_file()
    assert str(folder / "site") in environment["PYTHONPATH"]
    assert "bad-1.0" in log.read_text()
    assert environment["HF_HUB_OFFLINE"] == "1"


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
