"""The sizing table of docs/scaling.md."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripts import load_script

from pixelrefer_fast.bench.estimate.estimate import Workload, estimate
from pixelrefer_fast.bench.estimate.gpus import find

sizing = load_script(Path(__file__).parents[2] / "benchmarks" / "sizing.py")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "WORKLOAD", Workload(batch=1, objects=2, each=True, height=120, width=160, answer=8))


def test_cells_are_rates_and_cards() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in sizing.table().splitlines()]
    assert rows[0][1:] == list(sizing.MODELS)
    assert [row[0] for row in rows[2:]] == [find(name).title for name in sizing.GPUS]
    seconds = estimate("lite-2b", sizing.WORKLOAD, find("H200"), graphs=True).seconds
    assert seconds is not None
    rate, cards = (int(number) for number in rows[2][1].split(" / "))
    assert rate == round(2 / seconds)
    assert (cards - 1) * 3600 * 2 / seconds < sizing.MASKS_AN_HOUR <= cards * 3600 * 2 / seconds


def test_a_model_that_does_not_fit_has_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sizing, "GPUS", ("L4",))
    monkeypatch.setattr(sizing, "MODELS", ("full-7b",))
    monkeypatch.setattr(sizing, "WORKLOAD", Workload(batch=8, objects=8, each=True, answer=64))
    assert sizing.table().splitlines()[-1].endswith("| - |")


def test_the_page_has_one() -> None:
    page = sizing.PAGE.read_text(encoding="utf-8")
    made = page.partition(sizing.MARKS[0])[2].partition(sizing.MARKS[1])[0]
    assert all(find(name).title in made for name in sizing.GPUS)
    assert "predicted" in page
