"""The command `profile`: tables, one document, files, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import ASSETS, FakeModel, one_error_line

from pixelrefer_fast.bench.measure import rates, timing
from pixelrefer_fast.bench.profile import calls
from pixelrefer_fast.cli import profile
from pixelrefer_fast.device.stages import STAGES

LITE = ("--model", str(ASSETS / "lite"), "--max-new-tokens", "2", "--repeats", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "quiet", nullcontext)  # a collection takes longer than all that is timed
    monkeypatch.setattr(rates, "COPY", {"cpu": 1 << 20})
    monkeypatch.setattr(rates, "SIZES", {"cpu": 64})
    monkeypatch.setattr(profile, "PICTURE", (80, 100))


def test_json_says_it_all(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    trace, kept = tmp_path / "trace.json", tmp_path / "calls.safetensors"
    result = run("profile", "--objects", "2", *LITE, "--trace", str(trace), "--calls", str(kept), "--json")
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert document["benchmark"] == "profile"
    assert document["objects"] == 2
    assert document["question"].count("<region>") == 2
    assert [stage["stage"] for stage in document["stages"]] == list(STAGES)
    assert all(stage["seconds"]["median"] > 0 for stage in document["stages"])
    assert {stage["device_seconds"] is None for stage in document["stages"]} == {True}
    assert document["rates"]["copy"] > 0
    assert {"encoder", "decode"} <= {line["stage"] for line in document["kernels"]}
    assert json.loads(trace.read_text())["traceEvents"]
    assert "infuse" in {call.op for call in calls.load(kept)}


def test_tables_and_a_kernel(run: Callable[..., SimpleNamespace], image: str) -> None:
    result = run(
        "profile", image, "--box", "5,5,60,50", "--question", "What is <region>?", *LITE, "--kernel", "aten.mm"
    )
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    starts = [line.split()[0] for line in lines if line.split()]
    headings = [line for line in lines if line.startswith("stage ")]
    assert len(headings) == 2
    assert "device ms" in headings[0]
    assert "occupancy" in headings[1]
    assert [start for start in starts if start in STAGES][: len(STAGES)] == list(STAGES)
    assert {"sum", "at"} <= set(starts)
    (command,) = [line for line in lines if line.startswith("  ncu: ")]
    assert "--nvtx-include" in command
    assert command.endswith("--once")


def test_a_kernel_of_ours_comes_with_its_launch(run: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    kept = str(tmp_path / "calls.safetensors")
    result = run("profile", *LITE, "--kernel", "infuse.scores_float32", "--calls", kept, "--json")
    assert result.code == 0, result.err
    facts = json.loads(result.out)["kernel"]
    assert f"run_kernel infuse --device cuda --calls {kept} --case infusion/infuse/0" in facts["commands"]["ncu"]
    assert "regex:^scores$" in facts["commands"]["ncu"]
    assert facts["compiled"] or "TRITON_INTERPRET" in facts["not_compiled"]


def test_once_measures_nothing(run: Callable[..., SimpleNamespace], image: str) -> None:
    result = run("profile", image, *LITE, "--once")
    assert (result.code, result.out) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--objects", "2", "--box", "1,1,40,40"), "--objects 2"),
        (("--objects", "0"), "--objects"),
        (("--trace", "nowhere/trace.json"), "--trace"),
        (("--trace", "trace.txt"), "--trace"),
        (("--calls", "calls.json"), "--calls"),
        (("--kernel", "infuse.dance"), "infuse.scores"),
        (("--frame", "3", "--box", "1,1,9,9"), "--frame"),
        (("--box", "900,900,999,999"), "--box"),
    ],
)
def test_refused_before_a_model_is_loaded(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, arguments: tuple[str, ...], words: str
) -> None:
    one_error_line(run("profile", image, *arguments), words)
    assert model.loads == []  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--question", "What?"), "region"),
        (("--kernel", "aten.dance"), "--kernel"),
        (("--backend", "dance"), "backend"),
    ],
)
def test_refused_by_the_model(
    run: Callable[..., SimpleNamespace], image: str, arguments: tuple[str, ...], words: str
) -> None:
    one_error_line(run("profile", image, *LITE, *arguments), words)


def test_the_command_line_is_said_again() -> None:
    words = [
        "/bin/pixelrefer-fast",
        "profile",
        "a.png",
        "--trace",
        "t.json",
        "--kernel=aten.mm",
        "--json",
        "--box",
        "1",
    ]
    assert profile.command_of(words) == ("pixelrefer-fast", "profile", "a.png", "--box", "1")
    assert profile.command_of(["pytest"]) == ("pixelrefer-fast", "profile")
