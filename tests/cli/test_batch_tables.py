"""Files of requests -> rows for a cluster, without Ray; tests/cli/test_cluster.py runs the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pixelrefer_fast.batching import Ask
from pixelrefer_fast.cli.batch.tables import files_of, rows_of_lines, webdataset_row
from pixelrefer_fast.engines.rows import RowReader
from pixelrefer_fast.engines.urls import Urls

BOX = [5, 5, 40, 40]


def test_files_of_one_kind(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.ndjson", "notes.txt"):
        (tmp_path / name).touch()
    assert files_of(str(tmp_path)) == ("lines", [str(tmp_path / "a.ndjson"), str(tmp_path / "b.jsonl")])
    assert files_of(str(tmp_path / "b.jsonl"))[0] == "lines"
    (tmp_path / "c.parquet").touch()
    with pytest.raises(
        ValueError, match=r"--batch .*: expected a file or a folder of files of one kind .*got lines, par"
    ):
        files_of(str(tmp_path))
    with pytest.raises(ValueError, match=r"got \.txt"):
        files_of(str(tmp_path / "notes.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="got none"):
        files_of(str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="got parquet"):
        files_of(str(tmp_path / "nowhere.parquet"))


def test_lines_become_rows_that_ask_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [
        {"id": 7, "image": "a.png", "box": BOX, "max_new_tokens": 3},
        {"id": "x", "image": "/a.png", "regions": [BOX, BOX], "question": "What is <region>?"},
        {"image": "a.png"},
        {"id": [1], "video": "clip.mp4", "frame": 4, "box": BOX, "question": "Does <region> move?"},
    ]
    file = tmp_path / "in.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n")
    bad: list[dict[str, Any]] = []
    rows = list(rows_of_lines([str(file)], None, bad))
    assert [row["row"] for row in rows] == ["0/1/0", "0/2/0", "0/2/1", "0/4/0"]
    assert [(row["line"], row["id"]) for row in rows] == [("1", "7"), ("2", "x"), ("2", "x"), ("4", "[1]")]
    assert [(one["row"], one["text"], one["finish_reason"]) for one in bad] == [("0/3", "", "error")]
    assert "expected at least one region" in str(bad[0]["error"])

    reader = RowReader(None, Urls())
    asks = [reader.read(row) for row in rows]
    assert all(isinstance(ask, Ask) for ask in asks)
    media, questions, regions, options = zip(
        *((a.media, a.question, a.regions, a.options) for a in asks if isinstance(a, Ask)), strict=True
    )
    assert media == (str(tmp_path / "a.png"), "/a.png", "/a.png", str(tmp_path / "clip.mp4"))
    assert questions == (None, "What is <region>?", "What is <region>?", "Does <region> move?")
    assert [region.frames for own in regions for region in own] == [None, None, None, (4,)]
    assert options == ({"max_new_tokens": 3}, {}, {}, {})


def test_rows_of_several_files_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"image": "a.png", "box": BOX}) + "\n")
    rows = list(rows_of_lines([str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")], None, []))
    assert [(row["row"], row["line"]) for row in rows] == [("0/a:1/0", "a:1"), ("1/b:1/0", "b:1")]


@pytest.mark.parametrize(
    ("sample", "row"),
    [
        (
            {"jpg": b"J", "json": json.dumps({"regions": [BOX], "question": "What is <region>?"}).encode()},
            {"image": b"J", "regions": json.dumps([BOX]), "question": "What is <region>?"},
        ),
        ({"MP4": b"M", "json": b'{"regions": {"0": [1, 2, 3, 4]}}'}, {"video": b"M", "regions": '{"0": [1, 2, 3, 4]}'}),
        ({"jpg": b"J", "png": b"P", "json": b"{}"}, {}),
        ({"jpg": b"J", "json": b"{"}, {"image": b"J", "regions": "{"}),
        ({"jpg": b"J"}, {"image": b"J"}),
        ({"jpg": b"J", "json": b'{"question": 7}'}, {"image": b"J", "question": "7"}),
    ],
)
def test_samples_become_rows(sample: dict[str, object], row: dict[str, object]) -> None:
    empty = {"image": None, "video": None, "regions": None, "question": None}
    assert webdataset_row({"__key__": "k", "__url__": "x.tar", **sample}) == {"__key__": "k"} | empty | row
