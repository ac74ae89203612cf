"""Whole cases and curves: rows that the schema takes, limits of time that hold."""

from __future__ import annotations

from typing import Any

import pytest

from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.run import loads, whole
from pixelrefer_fast.bench.run.askers import Ours, as_measured
from pixelrefer_fast.bench.run.effort import Effort, TimeLimit


def test_cases_and_their_rows(small_lite: Any, tiny: Effort) -> None:
    told: list[str] = []
    rows = whole.run_cases(small_lite, "embedded:lite", tiny, TimeLimit(), told.append)
    assert told == [row["case"] for row in rows]
    assert len(told) == loads.CASES
    document = results.document("bench", rows, {"copy": 1e10, "float32": 1e10})
    assert results.validate(document) == []
    for row in document["rows"]:
        assert row["ok"], row
        extra = row["extra"]
        assert row["sizes"]["answer"] == 3
        assert row["flops"] == sum(own["flops"] for own in extra["stages"].values()) > 0
        assert row["peak_bytes"] > row["final_bytes"] > extra["weights"] > 10**7
        assert extra["equal"] == extra["asked_again"] == row["sizes"]["objects"] or row["sizes"]["objects"] > 8
        assert extra["tokens"]["object"] == 4 * row["sizes"]["objects"] * row["sizes"]["marked"]
        assert extra["tokens"]["prompt"] > extra["tokens"]["object"]
        assert extra["tokens"]["answer"] == 3 * row["sizes"]["objects"]
        assert extra["objects_per_second"] == pytest.approx(row["sizes"]["objects"] / row["seconds"]["median"])
        assert ("encode" in extra) == (row["sizes"]["batch"] == 1)
        assert "joules" not in row  # nobody measures a CPU's
        assert row["percent_matrix"] > 0


def test_stages_of_a_question(small_lite: Any, tiny: Effort) -> None:
    rows = whole.run_stages(small_lite, "embedded:lite", tiny, TimeLimit())
    assert results.validate(results.document("bench", rows)) == []
    names = [row["extra"]["stage"] for row in rows]
    assert names[-2:] == ["prefill", "decode"]
    assert rows[-1]["sizes"]["steps"] == tiny.tokens - 1
    assert whole.run_stages(small_lite, "embedded:lite", tiny, TimeLimit(-1.0)) == []


def test_curves_and_their_rows(small_lite: Any, tiny: Effort) -> None:
    rows = whole.run_curves(small_lite, "embedded:lite", tiny, TimeLimit())
    assert results.validate(results.document("bench", rows)) == []
    points = [(row["extra"]["curve"], row["extra"]["value"]) for row in rows]
    assert points == [("objects", 1), ("objects", 2), ("frames", 2), ("side", 112), ("n", 2), ("batch", 2)]
    by_point = dict(zip(points, rows, strict=True))
    assert all(row["ok"] for row in rows)
    assert by_point["n", 2]["extra"]["tokens"]["object"] == 2
    assert by_point["frames", 2]["extra"]["tokens"]["object"] == 8
    assert by_point["objects", 2]["flops"] > 1.3 * by_point["objects", 1]["flops"]
    assert small_lite.config.mask_num == 4


def test_what_there_is_no_time_for_has_a_reason(small_lite: Any, tiny: Effort) -> None:
    rows = whole.run_cases(small_lite, "m", tiny, TimeLimit(-1.0))
    rows += whole.run_curves(small_lite, "m", tiny, TimeLimit(-1.0))
    assert results.validate(results.document("bench", rows)) == []
    assert all("no time left" in row["reason"] and not row["ok"] and "seconds" not in row for row in rows)


def test_the_next_point_is_expected_to_take_as_much_more_as_it_is_larger(
    small_lite: Any, tiny: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    clock = iter(range(0, 1000, 3))  # each measurement takes three seconds
    asked: list[float] = []

    class Watched(TimeLimit):
        def refuses(self, expected: float = 0.0) -> str | None:
            asked.append(expected)
            return "too long" if expected > 100 else None

    monkeypatch.setattr(whole, "measure", lambda *_, **__: {"ok": True})
    monkeypatch.setattr(whole.time, "monotonic", lambda: next(clock))
    effort = replace(tiny, curves={"side": (112, 224, 1120), "objects": (1, 8)})
    rows = whole.run_curves(small_lite, "m", effort, Watched())
    assert asked == [0, 12, 75, 0, 24]
    asked.clear()
    effort = replace(tiny, curves={"side": (112, 1120)})
    rows = whole.run_curves(small_lite, "m", effort, Watched())
    assert rows[-1]["reason"] == "too long"


def test_a_point_that_does_not_fit_ends_its_curve(
    small_lite: Any, tiny: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("prompt: expected fewer tokens\nand more")

    monkeypatch.setattr(whole, "measure", refuse)
    effort = replace(tiny, curves={"objects": (1, 2), "n": (1,)})
    rows = whole.run_curves(small_lite, "m", effort, TimeLimit())
    assert [row["reason"] for row in rows] == ["ValueError: prompt: expected fewer tokens"] * 3
    assert small_lite.config.mask_num == 4


def test_short_answers_are_refused(small_lite: Any, tiny: Effort) -> None:
    class Short(Ours):
        def answers(self, requests: Any, max_new_tokens: int, batch_size: int | None = None) -> Any:
            return super().answers(requests, max(1, max_new_tokens - 1), batch_size)

    with as_measured(small_lite), pytest.raises(RuntimeError, match=r"3 tokens of ours, got \[2\]"):
        whole.time_in_turn([Short(small_lite)], loads.image_load("x", (112, 112)), 3, tiny)
