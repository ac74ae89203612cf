"""docs/evaluation.md names every published file, where it comes from, and which benchmarks need a judge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pixelrefer_fast.evaluating.benchmarks import BENCHMARKS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
SECTION = TEXT.partition("\n## Getting the files\n")[2].partition("\n## ")[0]
ROWS = [[cell.strip() for cell in line.split("|")[1:5]] for line in SECTION.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_each_file_has_its_row(name: str) -> None:
    benchmark = BENCHMARKS[name]
    own = [row for row in ROWS if f"`{name}`" in row[0]]
    for kind in ("full", "lite"):
        for source in benchmark.sources(kind):
            assert any(
                f"`{source.paths[0].removeprefix('benchmarks/')}`" in files and origin == source.origin
                for _, files, origin, _ in own
            )
    places = re.findall(r"https://[^\s),]+", benchmark.media_origin)
    shown = " ".join(media for *_, media in own)
    assert all(place in shown for place in places) or "the same" in shown


def test_those_without_a_judge_are_told() -> None:
    (sentence,) = re.findall(r"Five need no judge and so no key: (.*?)\.", SECTION)
    assert set(re.findall(r"`([\w-]+)`", sentence)) == {n for n, b in BENCHMARKS.items() if not b.judged}
