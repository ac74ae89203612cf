"""Files of samples: lists and lines, read in pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pixelrefer_fast.train import record_files
from pixelrefer_fast.train.record_files import read_sample, scan

SAMPLES: list[Any] = [
    {"a": 1},
    {"text": 'quotes " and \\ and ]},{', "list": [[1, 2], []]},
    {"umlaut": "Grün 漢字 🙂", "n": None},
    {"long": "x" * 500, "number": -1.5e-3},
    7,
    [1, "b"],
    "text",
]


def written(path: Path, data: str) -> Path:
    path.write_bytes(data.encode())
    return path


LISTS = {
    "compact": json.dumps(SAMPLES, separators=(",", ":")),
    "indented": json.dumps(SAMPLES, indent=3),
    "characters": json.dumps(SAMPLES, ensure_ascii=False),
    "byte order mark": "\ufeff" + json.dumps(SAMPLES, ensure_ascii=False),
    "space": " \n\t" + json.dumps(SAMPLES) + "\n \n",
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("chunk", [1, 7, 64, 1 << 22])
def test_a_list_is_read_in_pieces_of_any_size(
    name: str, chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "CHUNK", chunk)
    path = written(tmp_path / "a.json", LISTS[name])
    found = list(scan(path))
    assert [f.value for f in found] == SAMPLES
    assert all(f.error is None for f in found)
    assert [read_sample(path, f.offset, f.length) for f in found] == SAMPLES


def test_an_empty_list_has_no_samples(tmp_path: Path) -> None:
    assert list(scan(written(tmp_path / "a.json", " [ ] "))) == []


def test_lines_are_read_one_by_one_and_damaged_ones_are_told(tmp_path: Path) -> None:
    text = "\ufeff" + '{"a": 1}\n\n{"b": \n   \n{"ä": "ö"}\r\n{"n": NaN}\n[' + "[" * 100000 + '\n{"last": 1}'
    path = written(tmp_path / "a.jsonl", text)
    found = list(scan(path))
    assert [f.value for f in found] == [{"a": 1}, None, {"ä": "ö"}, None, None, {"last": 1}]
    assert [f.error is None for f in found] == [True, False, True, False, False, True]
    assert "expected a line of JSON, but" in str(found[1].error)
    assert "NaN" in str(found[3].error)
    good = [f for f in found if f.error is None]
    assert [read_sample(path, f.offset, f.length) for f in good] == [f.value for f in good]


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_files, "MAX_SAMPLE", 100)
    path = written(tmp_path / "a.jsonl", '{"a": 1}\n{"b": "' + "x" * 350 + '"}\n{"c": 3}\n')
    found = list(scan(path))
    assert [f.value for f in found] == [{"a": 1}, None, {"c": 3}]
    assert found[1].error == "expected at most 100 bytes, got more"
    assert read_sample(path, found[2].offset, found[2].length) == {"c": 3}


DAMAGED = {
    "breaks off in a sample": ('[{"a": 1}, {"b": "x', "sample 1, byte 11"),
    "breaks off after a sample": ('[{"a": 1}', "expected ',' or ']' in sample 1"),
    "breaks off after a comma": ('[{"a": 1},', "sample 1"),
    "no comma": ('[{"a": 1} {"b": 2}]', "expected ',' or ']' in sample 1, byte 10"),
    "a key without quotes": ('[{"a": 1}, {b: 2}, {"c": "' + "x" * 200 + '"}]', "sample 1"),
    "more behind the list": ('[{"a": 1}] x', "expected an end"),
    "deep brackets": ("[" * 200000, "nested"),
    "NaN": ('[{"a": NaN}]', "NaN"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_list_is_an_error_that_says_where(name: str, tmp_path: Path) -> None:
    text, message = DAMAGED[name]
    path = written(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match="the file is damaged or breaks off") as caught:
        list(scan(path))
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(b'[{"a": "\xff\xfe"}]')
    with pytest.raises(ValueError, match="expected UTF-8"):
        list(scan(path))
    path.write_bytes(b'{"a": "\xff\xfe"}\n{"b": 1}\n')
    found = list(scan(path))
    assert [f.value for f in found] == [None, {"b": 1}]


def test_a_value_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_files, "MAX_SAMPLE", 1000)
    monkeypatch.setattr(record_files, "CHUNK", 64)
    path = written(tmp_path / "a.json", '[{"a": "' + "x" * 100_000)
    with pytest.raises(ValueError, match="expected a value of at most 1000 bytes in sample 0"):
        list(scan(path))


@pytest.mark.parametrize("text", ["", "hello", "<html>", "3"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", text)
    with pytest.raises(ValueError, match="expected a JSON list of samples or one sample a line"):
        list(scan(path))


def test_a_missing_file_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        list(scan(tmp_path / "none.json"))


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", '[{"a": 1}, {"b": 2}]')
    last = list(scan(path))[-1]
    path.write_text("[]")
    with pytest.raises(ValueError, match="expected the file as it was"):
        read_sample(path, last.offset, last.length)
