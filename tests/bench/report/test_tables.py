"""Tables: what stands in them is the rows', and nothing that is wrong shows a speed."""

from __future__ import annotations

import io

import pytest
from bench_rows import against_rows, curve_rows, document, left_out_row, reference_rows, whole_row

from pixelrefer_fast.bench.report import tables
from pixelrefer_fast.bench.report.results import Row


def line(table: tables.Table, name: str) -> dict[str, str]:
    headings, lines = table
    return next(dict(zip(headings, cells, strict=True)) for cells in lines if cells[0] == name)


def test_a_text_goes_between_its_marks() -> None:
    marks = "<!-- a -->", "<!-- b -->"
    assert tables.between("1\n<!-- a -->\nold\n<!-- b -->\n2\n", marks, "| new |") == (
        "1\n<!-- a -->\n| new |\n<!-- b -->\n2\n"
    )
    for page in ("nothing", "<!-- a -->", "<!-- b --> <!-- a -->"):
        with pytest.raises(ValueError, match="page: expected <!-- a --> and <!-- b -->, got"):
            tables.between(page, marks, "| new |")


def test_a_whole_case() -> None:
    table = tables.whole_table(document([whole_row(joules=8.0, extra={"joules_per_object": 8.0})]))
    cells = line(table, "one object")
    assert cells["first token, ms"] == "100 (90 to 110)"
    assert cells["whole answer, ms"] == "400 (360 to 440)"
    assert cells["each further, ms"] == "20"
    assert cells["objects a second"] == "2.5"
    assert (cells["GFLOP"], cells["peak MB"], cells["J an object"]) == ("3", "20", "8")
    assert cells["% of matrix rate"] == "7.5"  # 3 GFLOP in 0.4 s at 100 GFLOP/s
    assert cells["check"] == "ok: 0.0e+00, 1/1 equal"


def test_what_is_wrong_or_was_not_run_shows_no_time() -> None:
    wrong = whole_row("8 objects of one image", ok=False, error=0.25)
    headings, lines = tables.whole_table(document([whole_row(), wrong]))
    cells = line((headings, lines), "8 objects of one image")
    assert cells["check"].startswith("WRONG: 2.5e-01")
    assert not any(cells[h] for h in headings if "ms" in h or "second" in h or "%" in h)
    table = tables.curve_table(document([*curve_rows("objects", (1,)), left_out_row("objects 64")]), "objects")
    assert line(table, "64")["check"] == "no time left of 60 s"
    assert line(table, "64")["first token, ms"] == ""


def test_full_against_lite() -> None:
    table = tables.against_table(document(against_rows(times=4.0, work=8.0)))
    assert table[0] == ["", "image: Full", "Lite", "Full / Lite"]
    rows = {cells[0]: cells[1:] for cells in table[1]}
    assert rows["vision tokens"] == ["144", "0", ""]
    assert rows["GFLOP as the paper counts"] == ["5", "0.1", "50x"]
    assert rows["GFLOP executed"] == ["24", "3", "8x"]
    assert rows["time to first token, ms"] == ["400", "100", "4x"]
    # seven eighths of the FLOPs are saved, three quarters of the time
    assert rows["of the saved FLOPs became time (to first token)"] == ["", "", "86%"]
    assert not any("energy" in name or "waits" in name for name in rows)  # nobody measured them


def test_only_right_pairs_are_compared() -> None:
    lite, full = against_rows()
    full["ok"] = False
    assert tables.against_pairs(document([lite, full])) == {}
    assert tables.against_pairs(document([lite])) == {}


@pytest.mark.parametrize(
    ("work", "time", "share"),
    [(8.0, 8.0, 1.0), (100.0, 1.0, 0.0), (2.0, 1.0, 0.0), (1.0, 2.0, None), (None, 2.0, None), (2.0, 0.5, -2.0)],
)
def test_share_of_a_saving(work: float | None, time: float, share: float | None) -> None:
    assert tables.share_kept(work, time) == (None if share is None else pytest.approx(share))


def test_a_time_that_falls_more_than_the_work_is_all_of_the_saving() -> None:
    assert tables.kept_words(2.28) == "all"
    assert tables.kept_words(0.176) == "18%"
    assert tables.kept_words(None) == ""


def test_against_the_reference() -> None:
    cells = line(tables.reference_table(document(reference_rows(times=3.0))), "one object")
    assert (cells["speed-up"], cells["first token"], cells["answers alike"]) == ("3x", "3x", "1 of 1")
    wrong = line(tables.reference_table(document(reference_rows(ok=False))), "one object")
    assert (wrong["speed-up"], wrong["first token"], wrong["error"]) == ("none", "", "5.0e-01")


def test_estimates_beside_measurements() -> None:
    def row(case: str, **quantities: float) -> Row:
        found = {name: {"estimated": 9.0, "measured": x, "error": 9.0 / x - 1} for name, x in quantities.items()}
        return whole_row(case, suite="estimate", extra={"quantities": found})

    headings, lines = tables.estimate_table([row("image", flops=10.0), row("video", flops=8.0, bytes=9.0)])
    assert headings == ["", "image, embedded:lite", "video, embedded:lite"]
    assert lines == [["flops", "9 / 10 (-10%)", "9 / 8 (+12%)"], ["bytes", "", "9 / 9 (+0%)"]]


def test_columns_of_nothing_are_left_out_and_markup_is_text() -> None:
    table = tables.without_empty((["", "a", "b"], [["[bold]x", "", "1"], ["y", "", ""]]))
    assert table == (["", "b"], [["[bold]x", "1"], ["y", ""]])
    out = io.StringIO()
    tables.terminal("a [title]", *table, file=out)
    assert "[bold]x" in out.getvalue()
    assert tables.markdown(*table).splitlines()[1] == "| :--- | ---: |"


def test_every_table_of_a_document() -> None:
    rows = [whole_row(), *against_rows(), *reference_rows(), *curve_rows("objects", (1, 8)), *curve_rows("n", (1, 8))]
    titles = [title for title, _ in tables.every_table(document(rows))]
    assert titles == [
        "Whole questions",
        "Full against Lite",
        "Against the reference's own code",
        "Scaling: objects of one image",
        "Scaling: tokens of an object",
    ]
