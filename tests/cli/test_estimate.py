"""`estimate`: tables and JSON from sizes alone, and errors against what was measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import one_error_line

from pixelrefer_fast.bench.estimate import estimate_check, gpus
from pixelrefer_fast.bench.estimate.estimate import estimate
from pixelrefer_fast.bench.estimate.workload import Workload
from pixelrefer_fast.bench.report import results

Run = Callable[..., SimpleNamespace]


def test_a_table_for_people(run: Run) -> None:
    result = run("estimate", "--gpu", "A100", "--image-size", "448x616", "--objects", "3")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].startswith("lite-2b (lite, bfloat16), an image of 448x616 with 3 objects: ")
    for stage in ("views", "encoder", "pooling", "infusion", "projector", "prefill", "decode", "all"):
        assert any(line.startswith(stage) for line in lines), stage
    assert "fits into 80 GB" in result.out
    assert "ms to the first token" in result.out
    assert "an H200's shares" in result.out


def test_what_is_printed_is_what_is_estimated(run: Run) -> None:
    document = json.loads(
        run(
            *("estimate", "--model", "full-7b", "--frames", "20", "--image-size", "448x616", "--gpu", "h200"),
            *("--answer-tokens", "32", "--prompt-tokens", "10", "--kept", "0.5", "--against", "lite", "--json"),
        ).out
    )
    workload = Workload(frames=20, height=448, width=616, answer=32, question=10, kept=0.5)
    own = estimate("full-7b", workload, gpus.find("H200"))
    assert document["flops"] == own.flops
    assert document["seconds"] == pytest.approx(own.seconds)
    other = document["against"]
    assert (other["kind"], other["model"]) == ("lite", "full-7b as lite")
    assert other["flops"] == estimate("lite-7b", workload, gpus.find("H200")).flops


def test_no_gpu_no_time(run: Run) -> None:
    document = json.loads(run("estimate", "--model", "embedded:lite", "--image-size", "168", "--json").out)
    assert document["seconds"] is document["gpu"] is document["against"] is None
    assert document["workload"]["height"] == document["workload"]["width"] == 168
    assert "time:" not in run("estimate", "--model", "embedded:lite", "--image-size", "168").out


def test_sizes_of_what_is_marked(run: Run) -> None:
    def box(*options: str) -> Any:
        return json.loads(run("estimate", "--image-size", "400x600", "--json", *options).out)["workload"]["box"]

    assert box() is None
    assert box("--area", "0.25") == [200, 300]
    assert box("--box-size", "30x40") == [30, 40]


def test_against_full_by_default_names(run: Run) -> None:
    result = run("estimate", "--against", "full", "--gpu", "H200", "--frames", "4", "--marked", "4")
    assert result.code == 0
    assert "lite-2b as full" in result.out  # Full is shown the object in one frame
    table = result.out[result.out.index("tokens of prompt  ") :]
    assert "GFLOP of the LLM as the paper counts" in table
    assert "ms to the first token" in table


def test_a_gpu_without_bfloat16(run: Run) -> None:
    document = json.loads(run("estimate", "--gpu", "T4", "--json").out)
    assert document["dtype"] == "float32"


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--gpu", "H300"), ("--gpu", "H200", "'H300'")),
        (("--model", "nothing-here"), ("nothing-here", "lite-2b")),
        (("--image-size", "12by3"), ("--image-size", "HEIGHTxWIDTH", "12by3")),
        (("--area", "2"), ("--area", "at most 1")),
        (("--area", "0.1", "--box-size", "3x3"), ("--area", "--box-size")),
        (("--box-size", "5000x5"), ("box", "1080x1920", "5000x5")),
        (("--dtype", "int4"), ("--dtype", "int4")),
        (("--marked", "3"), ("frames",)),
        (("--against", "nobody"), ("nobody",)),
        (("--out", "x.json"), ("--out", "--measure or --check")),
        (("--measure", "--out", f"{__file__}/x.json"), ("--out", "x.json", "is no folder")),
        (("--measure", "--check", "x.json"), ("--check", "--measure")),
        (("--check", "nowhere.json"), ("nowhere.json",)),
        (("--measure", "--batch", "2"), ("--measure", "one image or video")),
    ],
)
def test_what_cannot_be_asked(run: Run, options: tuple[str, ...], parts: tuple[str, ...]) -> None:
    one_error_line(run("estimate", *options), *parts)


def test_errors_are_shown_and_kept(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def measure(name: str, workload: Workload, device: str, dtype: str, **_: Any) -> estimate_check.EstimateCheck:
        assert (device, dtype) == ("cpu", "auto")
        quantities = (
            estimate_check.Quantity("encoder", "FLOP", 2e9, 2e9),
            estimate_check.Quantity("all", "s", 0.5, 1.0),
            estimate_check.Quantity("vision", "tokens", 0, 0),
        )
        return estimate_check.EstimateCheck("a case", estimate(name, workload), quantities)

    monkeypatch.setattr(estimate_check, "measure", measure)
    path = tmp_path / "estimate.json"
    arguments = "estimate", "--model", "embedded:lite", "--image-size", "168", "--measure", "--device", "cpu"
    result = run(*arguments, "--out", str(path))
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert ["encoder,", "GFLOP", "2", "2", "exact"] in lines
    assert ["all,", "ms", "500", "1,000", "-50.00%"] in lines
    row = results.latest(path, "estimate")["rows"][0]
    assert row["extra"]["quantities"]["all, s"] == {"unit": "s", "estimated": 0.5, "measured": 1.0, "error": -0.5}
    document = json.loads(run(*arguments, "--json").out)
    assert document["rows"][0]["extra"] == row["extra"]


def test_no_weights_are_read() -> None:
    """Nor is a model built: transformers is not even imported."""
    code = (
        "import sys; from pixelrefer_fast import cli; "
        "assert cli.main(['estimate', '--model', 'embedded:full', '--image-size', '168', '--gpu', 'L4']) == 0; "
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
