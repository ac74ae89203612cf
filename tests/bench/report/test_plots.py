"""Pictures: which there are, readable on white and on black, the same from the same document."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from bench_rows import against_rows, curve_rows, document, left_out_row, reference_rows, whole_row

from pixelrefer_fast.bench.report import plots

ROWS = [
    whole_row(),
    *against_rows("image"),
    *against_rows("20-frame video", 0.5, 0.7),  # Lite is slower here: the bars go to the other side
    *reference_rows(),
    *curve_rows("objects", (1, 8, 64)),
    left_out_row("objects 64 more") | {"extra": {"curve": "objects", "value": 256}},
    *curve_rows("batch", (1,)),
]


def luminance(color: str) -> float:
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("ground", ["#ffffff", "#0d1117"])  # a page in light and in dark
def test_colours_stand_out_on_both_grounds(ground: str) -> None:
    assert contrast(plots.INK, ground) > 4
    for color in (plots.FULL, plots.LITE, plots.OURS, plots.RIVAL, plots.WORK, plots.TIME, plots.SPACE):
        assert contrast(color, ground) > 3 or color == plots.WORK
    for color in (plots.WORK, plots.LATER):
        assert contrast(color, ground) > 2.3


def test_pictures_of_all_there_is(tmp_path: Path) -> None:
    written = plots.every_plot(document(ROWS), tmp_path)
    names = ("against", "whole", "reference", "scaling")
    assert written == [tmp_path / f"{name}{suffix}" for name in names for suffix in (".png", ".svg")]
    assert sorted(tmp_path.iterdir()) == sorted(written)  # nothing half-written beside them
    for path in written:
        start = path.read_bytes()[:100]
        assert start.startswith(b"\x89PNG") if path.suffix == ".png" else b"<?xml" in start


def test_the_same_document_gives_the_same_files(tmp_path: Path) -> None:
    own = document(against_rows())
    once = [path.read_bytes() for path in plots.every_plot(own, tmp_path)]
    assert [path.read_bytes() for path in plots.every_plot(own, tmp_path)] == once
    assert len(once) == 2


def test_the_ground_is_transparent(tmp_path: Path) -> None:
    from PIL import Image

    plots.every_plot(document(against_rows()), tmp_path)
    with Image.open(tmp_path / "against.png") as picture:
        assert picture.getchannel("A").getextrema() == (0, 255)
        assert picture.getpixel((1, 1))[3] == 0


def test_only_what_is_right_is_drawn(tmp_path: Path) -> None:
    wrong = [row | {"ok": False, "error": 1.0} for row in (whole_row(), *curve_rows("n", (1,)))]
    lite, full = against_rows()
    assert plots.every_plot(document([*wrong, lite, full | {"ok": False}, reference_rows()[0]]), tmp_path) == []


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"pixelrefer-fast\[bench\]"):
        plots.every_plot(document(ROWS), tmp_path)
