"""Full against Lite, and ours against a rival."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_rows import TINY, shrink

from pixelrefer_fast.bench.report import results, tables
from pixelrefer_fast.bench.run import against, loads
from pixelrefer_fast.bench.run.askers import Ours
from pixelrefer_fast.bench.run.effort import Effort, TimeLimit


class Twin:
    """A rival with our own answers, one question after the other, unless it is told to be wrong."""

    name = "twin"

    def __init__(self, model: Any, wrong: bool = False) -> None:
        self.ours, self.wrong, self.asked_starts = Ours(model), wrong, 0
        self.kind, self.device, self.dtype = model.kind, model.device, model.dtype

    def weights(self) -> Any:
        return self.ours.weights()

    def encode(self, media: Any, regions: Any) -> torch.Tensor:
        return self.ours.encode(media, regions) * (1.1 if self.wrong else 1.0)

    def ask(self, media: Any, question: str, regions: Any, max_new_tokens: int) -> tuple[int, ...]:
        return self.ours.ask(media, question, regions, max_new_tokens)

    def starts(self, media: Any, regions: Any) -> Any:
        self.asked_starts += 1
        return None


@pytest.fixture(scope="module")
def pair_rows(small_lite: Any, small_full: Any) -> dict[str, list[results.Row]]:
    """The rows of either model."""
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        return {
            model.kind: against.run_pairs(model, model.kind, TINY, TimeLimit()) for model in (small_lite, small_full)
        }


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_rows_of_either_model(kind: str, pair_rows: dict[str, list[results.Row]]) -> None:
    rows = pair_rows[kind]
    assert results.validate(results.document("bench", rows)) == []
    assert tuple(row["case"] for row in rows) == against.PAIRS
    assert all(row["ok"] and row["extra"]["kind"] == kind for row in rows)
    image, video, one = rows
    assert [row["sizes"]["marked"] for row in rows] == ([1, 2, 1] if kind == "lite" else [1, 1, 1])
    assert (video["extra"]["tokens"]["vision"] > 0) == (kind == "full")
    # Full is asked the video once, Lite with either number of marked frames
    assert (one["seconds"] == video["seconds"]) == (kind == "full")
    assert image["extra"]["paper_flops"] > 0
    assert kind == "full" or video["extra"]["paper_flops"] > image["extra"]["paper_flops"]


def test_full_takes_more_and_the_table_says_how_much(pair_rows: dict[str, list[results.Row]]) -> None:
    document = results.document("bench", [*pair_rows["lite"], *pair_rows["full"]])
    pairs = tables.against_pairs(document)
    assert tuple(pairs) == against.PAIRS
    for lite, full in pairs.values():
        assert full["extra"]["paper_flops"] > lite["extra"]["paper_flops"]
        assert full["extra"]["tokens"]["prompt"] > lite["extra"]["tokens"]["prompt"]
    assert len(tables.against_table(document)[0]) == 1 + 3 * len(against.PAIRS)


def test_no_time_for_it(small_lite: Any, tiny: Effort) -> None:
    rows = against.run_pairs(small_lite, "m", tiny, TimeLimit(-1.0))
    assert results.validate(results.document("bench", rows)) == []
    assert all("reason" in row for row in rows)


def test_a_rival_that_says_the_same(small_lite: Any, tiny: Effort) -> None:
    rival = Twin(small_lite)
    rows = against.run_against_rival(rival, small_lite, "embedded:lite", tiny, TimeLimit())
    document = results.document("bench", rows)
    assert results.validate(document) == []
    assert [row["by"] for row in rows] == ["twin", "ours"] * loads.CASES
    for row in rows:
        assert row["ok"]
        assert row["extra"]["equal"] == row["extra"]["asked_again"] == row["sizes"]["objects"]
    headings, lines = tables.reference_table(document)
    assert headings[1] == "twin, ms"
    assert all(line[3].endswith("x") for line in lines)
    # once for each question and once for all objects of an image together, not for each call
    assert rival.asked_starts == 1 + (8 + 1) + 1 + 2


def test_a_rival_that_says_something_else_shows_no_speed_up(
    small_lite: Any, tiny: Effort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(against, "case_loads", lambda model: [loads.image_load("one object", (112, 112))])
    rows = against.run_against_rival(Twin(small_lite, wrong=True), small_lite, "m", tiny, TimeLimit())
    theirs, ours = rows
    assert theirs["ok"]
    assert not ours["ok"]
    assert ours["error"] == pytest.approx(0.1 / 1.1, rel=1e-3)
    assert tables.reference_table(results.document("bench", rows))[1][0][3] == "none"
