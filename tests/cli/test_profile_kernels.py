"""`profile --kernels`: a table and a document of what was counted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import ASSETS, FakeModel, one_error_line

from pixelrefer_fast.bench.profile import calls, counted
from pixelrefer_fast.bench.profile.calls import Call
from pixelrefer_fast.bench.profile.counted import CountedCall, KernelCounts
from pixelrefer_fast.cli import profile

LITE = ("--model", str(ASSETS / "lite"), "--max-new-tokens", "2", "--device", "cpu")
NUMBERS = KernelCounts("x.rows", "BLOCK=8", 1, 4, 1000, 3, 32, 60, 40, 16, 16, 2, [["x.py:3", 20, 1, 8, 12]])


@pytest.fixture
def counted_calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """The calls that were given to be counted; each launches one kernel, the first is declined."""
    given: list[Call] = []

    def count(made: Sequence[Call], tick: Callable[[str], None] | None = None) -> list[CountedCall]:
        given.extend(counted.with_kernels(made))
        return [
            CountedCall(c.name, c.op, c.times, 90, [NUMBERS] if i else [], None if i else "x declines")
            for i, c in enumerate(given)
        ]

    monkeypatch.setattr(counted, "count", count)
    monkeypatch.setattr(counted, "check", lambda: None)
    monkeypatch.setattr(profile, "PICTURE", (80, 100))
    return given


def test_counts_of_all_calls_of_a_question(run: Callable[..., SimpleNamespace], counted_calls: list[Call]) -> None:
    result = run("profile", *LITE, "--kernels")
    assert result.code == 0, result.err
    assert {"rope2d", "varlen_attention", "object_pool", "infuse"} <= {call.op for call in counted_calls}
    assert {"encoder", "pooling", "infusion"} <= {call.name.split("/")[0] for call in counted_calls}
    lines = result.out.splitlines()
    assert f"{counted_calls[0].name}, sm_90: x declines" in lines
    often = next(call for call in counted_calls[1:] if call.times > 1)
    times = often.times
    (layers,) = [line for line in lines if line.startswith(f"{often.name}, {times}x ")]
    row = ["90", "x.rows", times, f"{1000 * times:,}", 3 * times, 2 * times, 60 * times, 1.5, 16 * times, "1.00"]
    assert layers.split()[1:] == [f"{times}x", *map(str, [*row[:7], "1.50", *row[8:], 32 * times, 8])]


def test_the_document(run: Callable[..., SimpleNamespace], counted_calls: list[Call], tmp_path: Path) -> None:
    kept = tmp_path / "calls.safetensors"
    result = run("profile", *LITE, "--kernels", "--json", "--calls", str(kept))
    assert result.code == 0, result.err
    document = json.loads(result.out)
    assert (document["benchmark"], document["objects"], document["dtype"]) == ("kernels", 1, "float32")
    assert [(c["name"], c["times"]) for c in document["calls"]] == [(c.name, c.times) for c in counted_calls]
    assert document["calls"][1]["kernels"][0]["loops"] == [["x.py:3", 20, 1, 8, 12]]
    assert {call.name for call in counted_calls} <= {call.name for call in calls.load(kept)}


@pytest.mark.parametrize("others", [("--kernel", "infuse.scores"), ("--trace", "trace.json"), ("--once",)])
def test_what_measures_is_refused(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, others: tuple[str, ...]
) -> None:
    one_error_line(run("profile", image, "--kernels", *others), f"--kernels: expected without {others[0]}")
    assert model.loads == []  # type: ignore[attr-defined]


def test_without_an_emulator(
    run: Callable[..., SimpleNamespace], model: FakeModel, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counted, "MODULE", "no_emulator")
    one_error_line(run("profile", image, "--kernels"), "--kernels: expected the PTX emulator")
    assert model.loads == []  # type: ignore[attr-defined]
