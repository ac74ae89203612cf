"""The schema of results, files of them, and what two of them say about a change."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from pixelrefer_fast.bench.report import results

RATES = {"copy": 1000.0, "float32": 500.0}


def quantiles(median: float, spread: float = 0.05) -> dict[str, float]:
    return {"q10": median * (1 - spread), "median": median, "q90": median * (1 + spread)}


def row(case: str = "a case", by: str = "ours", median: float = 2.0, **more: Any) -> Any:
    plain = {"suite": "test", "case": case, "by": by, "dtype": "float32", "ok": True, "seconds": quantiles(median)}
    return plain | more


def document(*rows: Any, **more: Any) -> dict[str, Any]:
    return results.document("test", rows, RATES, **more)


def test_a_document_has_provenance_and_percentages() -> None:
    made = document(row(flops=100, moved=400), row(by="theirs", flops=100, moved=400, ok=False, error=1.0), more=3)
    assert results.validate(made) == []
    right, wrong = made["rows"]
    assert right["percent_copy"] == 100 * 400 / 2.0 / 1000
    assert right["percent_matrix"] == 100 * 100 / 2.0 / 500
    assert not {"percent_copy", "percent_matrix"} & wrong.keys()  # a case whose check fails
    assert {"commit", "dirty", "device", "clocks", "command", "libraries"} <= made.keys()
    assert made["more"] == 3
    assert made["rates"] == RATES


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    made = document(row(ok=False, error=math.inf, limit=1e-3, extra={"deep": [math.nan, 1.0]}))
    assert made["rows"][0]["error"] is None
    assert made["rows"][0]["extra"] == {"deep": [None, 1.0]}
    results.append(tmp_path / "file.json", made)
    assert "Infinity" not in (tmp_path / "file.json").read_text()


def test_speed_up_only_where_both_are_right() -> None:
    assert results.speedup(row(median=0.5), row(median=2.0)) == 4.0
    assert results.speedup(row(ok=False), row()) is None
    assert results.speedup(row(), row(ok=False)) is None
    assert results.speedup({"suite": "a", "case": "a", "by": "b", "ok": True}, row()) is None


PROBLEMS = {
    "suite": (1, "rows[0].suite: expected text, got 1"),
    "ok": ("yes", "rows[0].ok: expected true or false, got yes"),
    "seconds": ({"median": 1.0}, "rows[0].seconds: expected q10 <= median <= q90"),
    "host_seconds": ({"q10": 3.0, "median": 2.0, "q90": 4.0}, "rows[0].host_seconds: expected q10 <= median"),
    "flops": (1.5, "rows[0].flops: expected a whole number from 0, got 1.5"),
    "launches": (True, "rows[0].launches: expected a whole number"),
    "joules": (-1.0, "rows[0].joules: expected a number from 0, got -1.0"),
    "error": ("small", "rows[0].error: expected a number from 0, or null"),
    "sizes": ({"objects": [1]}, "rows[0].sizes: expected an object of numbers and texts"),
    "speedup": (3.0, "rows[0].speedup: no field of a row"),
    "reason": ("declined", "rows[0].ok: a row that was not run"),
}


@pytest.mark.parametrize("field", PROBLEMS)
def test_what_is_wrong_with_a_row_is_named(field: str) -> None:
    value, message = PROBLEMS[field]
    made = document(row())
    made["rows"][0][field] = value
    if field == "reason":
        del made["rows"][0]["seconds"]
    (problem,) = results.validate(made)
    assert problem.startswith(message)
    with pytest.raises(ValueError, match=r"test: rows\[0\]"):
        document(made["rows"][0])


@pytest.mark.parametrize("field", ["suite", "case", "by", "ok"])
def test_what_a_row_needs(field: str) -> None:
    made = document(row())
    del made["rows"][0][field]
    assert f"rows[0].{field}: expected, but it is not there" in results.validate(made)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 0}, "schema: expected 1, got 0"),
        ({"benchmark": None}, "benchmark: expected a name, got nothing"),
        ({"rates": {"copy": 0}}, "rates.copy: expected a number above 0, got 0"),
        ({"rates": []}, "rates: expected an object, got list"),
        ({"rows": {}}, "rows: expected a list, got dict"),
        ({"rows": [3]}, "rows[0]: expected an object, got int"),
    ],
)
def test_what_is_wrong_with_a_document_is_named(change: dict[str, Any], message: str) -> None:
    assert results.validate(document(row()) | change) == [message]


def test_provenance_must_be_there() -> None:
    made = document(row())
    del made["commit"]
    assert results.validate(made) == ["commit: expected, but it is not there"]
    assert results.validate([made]) == ["expected a document (an object), got list"]


def test_rows_are_told_apart() -> None:
    with pytest.raises(ValueError, match=r"rows\[1\]: the same case, rival and sizes as rows\[0\]"):
        document(row(), row())
    document(row(sizes={"objects": 1}), row(sizes={"objects": 2}), row(model="lite-2b"), row(by="torch"))


def test_files_are_appended_to_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    for median in (1.0, 2.0):
        results.append(path, document(row(median=median)))
    results.append(path, {"benchmark": "older", "n": 1})  # from before the schema
    assert len(results.read(path)) == 3
    assert results.latest(path) == {"benchmark": "older", "n": 1}
    assert results.latest(path, "test")["rows"][0]["seconds"]["median"] == 2.0
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]
    with pytest.raises(ValueError, match="there is no result of 'none'"):
        results.latest(path, "none")


def test_a_wrong_document_changes_no_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.append(path, document(row()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="rows: expected a list"):
        results.append(path, document(row()) | {"rows": None})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    results.append(path, document(row()))
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(results.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        results.append(path, document(row()))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def _append_some(path: Path, number: int) -> None:
    for i in range(5):
        results.append(path, {"benchmark": "many", "who": number, "i": i})


def test_writers_beside_each_other_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_some, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(results.read(path)) == 15


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"rows": []}]', "not json"])
def test_files_of_something_else_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    for act in (results.read, results.check_path, lambda path: results.append(path, document(row()))):
        with pytest.raises(ValueError, match=r"file\.json: expected a result file"):
            act(path)
    assert path.read_text() == text


def test_bad_paths_are_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    results.check_path(tmp_path / "new" / "deeper" / "results.json")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="got a folder"):
        results.check_path(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        results.check_path(tmp_path / "file" / "results.json")


def changed(before: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A copy of a document whose first row has other fields."""
    after = copy.deepcopy(before)
    after["rows"][0] |= fields
    return after


def test_a_comparison_tells_noise_from_change() -> None:
    before = document(row(), row(by="theirs"))

    def of(median: float, spread: float = 0.05) -> results.Change:
        first, second = results.compare(before, changed(before, seconds=quantiles(median, spread)))
        assert second.ratio == 1.0
        assert not second.significant
        assert first.what == "seconds"
        return first

    slower = of(3.0)
    assert (slower.ratio, slower.significant, slower.worse) == (1.5, True, True)
    faster = of(1.0)
    assert (faster.ratio, faster.significant, faster.worse) == (0.5, True, False)
    assert not of(3.0, spread=0.5).significant  # the ranges overlap
    quiet = document(row(seconds=quantiles(2.0, 0.001)))
    (little,) = results.compare(quiet, changed(quiet, seconds=quantiles(2.06, 0.001)))
    assert not little.significant  # apart, but by less than the threshold
    (enough,) = results.compare(quiet, changed(quiet, seconds=quantiles(2.06, 0.001)), threshold=1.02)
    assert enough.significant


def test_regressions_are_more_than_times() -> None:
    before = document(row(peak_bytes=1000, launches=19, waits=0), row(case="goes"))
    after = changed(before, peak_bytes=1200, launches=20, waits=1)
    after["rows"][1]["case"] = "comes"
    found = results.regressions(results.compare(before, after))
    assert [change.what for change in found] == ["peak_bytes", "launches", "waits", "there"]
    assert "goes" in found[-1].case
    back = results.regressions(results.compare(after, before))
    assert [change.what for change in back] == ["there"]
    assert results.regressions(results.compare(before, changed(before, peak_bytes=1001))) == []


def test_a_check_that_fails_is_a_regression_and_has_no_time() -> None:
    before = document(row())
    after = changed(before, ok=False, seconds=quantiles(0.1))
    (change,) = results.compare(before, after)
    assert (change.what, change.significant, change.worse) == ("check", True, True)
    (change,) = results.compare(after, changed(after, ok=True))[:1]
    assert (change.what, change.worse) == ("check", False)


def test_only_results_of_one_benchmark_are_compared() -> None:
    with pytest.raises(ValueError, match="expected two results of one benchmark, got 'test', 'other'"):
        results.compare(document(row()), results.document("other", [row()]))
    with pytest.raises(ValueError, match="after: schema: expected 1"):
        results.compare(document(row()), {"benchmark": "test"})


def test_other_machines_are_named() -> None:
    before = document(row())
    after = copy.deepcopy(before)
    assert results.differing(before, after) == []
    after["cpu"], after["device"] = "another", {"name": "NVIDIA H200"}
    after["libraries"]["triton"] = "9.9"
    words = results.differing(before, after)
    assert len(words) == 3
    assert words[0].endswith("then another")
    assert words[1].endswith("then NVIDIA H200")
    assert words[2].startswith("triton: ")


def test_operations_of_earlier_sessions_stay_readable() -> None:
    file = Path(__file__).parents[3] / "benchmarks" / "results" / "packing_cpu.json"
    old = json.loads(file.read_text())[0]
    assert "candidates" in old["rows"][0]
    new = results.modern(old)
    assert results.validate(new) == []
    assert len(new["rows"]) == sum(len(row["candidates"]) for row in old["rows"])
    assert new["rows"][0]["extra"] == {"op": "pack_objects"}
    assert results.modern(new) == new
    assert not results.regressions(results.compare(old, new))


def test_errors_of_wrong_shapes_and_values_are_infinite() -> None:
    want = torch.tensor([1.0, -4.0])
    assert results.relative_error(torch.tensor([1.0, -3.0]), want) == 0.25
    assert math.isinf(results.relative_error(torch.tensor([1.0]), want))
    assert math.isinf(results.relative_error(torch.tensor([1.0, float("nan")]), want))
