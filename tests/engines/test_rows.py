"""Rows of a table -> requests -> columns of answers, without Ray."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from pixelrefer_fast.batching import Answer, Ask
from pixelrefer_fast.engines.rows import RowReader, answer_columns, plain, rows_of
from pixelrefer_fast.engines.urls import Urls
from pixelrefer_fast.regions import Region

QUESTION = "What is <region>?"


@pytest.fixture
def reader() -> RowReader:
    return RowReader(None, Urls())


def asked(reader: RowReader, **row: object) -> Ask:
    ask = reader.read(row)
    assert isinstance(ask, Ask), ask
    return ask


def regions_of(ask: Ask) -> list[dict[str, Any]]:
    assert isinstance(ask.regions, list)
    return [region.to_json() for region in ask.regions]


def refused(reader: RowReader, **row: object) -> str:
    error = reader.read(row)
    assert isinstance(error, ValueError)
    return str(error)


def objects(*values: object) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def test_a_row_is_a_request(reader: RowReader) -> None:
    ask = asked(reader, id=3, image="a.png", regions=[[1, 2, 3, 4]], question=QUESTION)
    assert (ask.media, ask.question, ask.options) == ("a.png", QUESTION, {})
    assert regions_of(ask) == [Region.from_box(xyxy=[1, 2, 3, 4]).to_json()]


def test_a_rows_own_question_comes_first() -> None:
    reader = RowReader("Where is <region>?", Urls())
    assert asked(reader, image="a.png", regions=[1, 2, 3, 4]).question == "Where is <region>?"
    assert asked(reader, image="a.png", regions=[1, 2, 3, 4], question=None).question == "Where is <region>?"
    assert asked(reader, image="a.png", regions=[1, 2, 3, 4], question=QUESTION).question == QUESTION


BOX = Region.from_box(xyxy=[1, 2, 3, 4]).to_json()
RLE = {"size": [4, 5], "counts": [7, 3, 10]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.array([1.0, 2, 3, 4]), [BOX]),
        (objects(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 4])), [BOX, BOX]),
        (np.array([[1, 2, 3, 4], [0, 0, 1, 1]]), [BOX, Region.from_box(xyxy=[0, 0, 1, 1]).to_json()]),
        ("[1, 2, 3, 4]", [BOX]),
        ('[[1, 2, 3, 4], {"size": [4, 5], "counts": [7, 3, 10]}]', [BOX, Region.of(RLE).to_json()]),
        ([Region.from_box(xyxy=[1, 2, 3, 4])], [BOX]),
        (
            objects({"size": np.array([4, 5]), "counts": np.array([7, 3, 10]), "points": None}),
            [Region.of(RLE).to_json()],
        ),
        ({"0": [1, 2, 3, 4]}, [Region.from_frames({0: [1, 2, 3, 4]}).to_json()]),
        (np.eye(4, 5, dtype=np.uint8), [Region.of(np.eye(4, 5, dtype=np.uint8)).to_json()]),
        (np.stack([np.eye(4, 5, dtype=bool)] * 2), [Region.of(np.eye(4, 5, dtype=bool)).to_json()] * 2),
    ],
)
def test_regions_as_columns_hold_them(reader: RowReader, given: object, expected: list[object]) -> None:
    def as_text(regions: object) -> str:
        return json.dumps(regions, default=lambda value: value.decode())

    assert as_text(regions_of(asked(reader, image="a.png", regions=given))) == as_text(expected)


def test_plain_leaves_masks_alone() -> None:
    mask = np.zeros((3, 4), bool)
    assert plain(mask) is mask
    assert plain(np.float32(2)) == 2
    assert plain((np.int64(2), None)) == [2, None]


def test_options_of_a_row(reader: RowReader) -> None:
    assert asked(reader, image="a", regions=[1, 2, 3, 4], options='{"max_new_tokens": 5}').options == {
        "max_new_tokens": 5
    }
    own = {"max_new_tokens": np.int64(5), "temperature": None}
    assert asked(reader, image="a", regions=[1, 2, 3, 4], options=own).options == {"max_new_tokens": 5}
    assert refused(reader, image="a", regions=[1, 2, 3, 4], options=7) == "options: expected a JSON object, got 7"


def test_rows_of_one_image_share_it(reader: RowReader) -> None:
    image = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    others = (image.reshape(4, 2, 3), image.astype(np.float32), image + 1)

    def media(value: object) -> object:
        return asked(reader, image=value, regions=[0, 0, 1, 1]).media

    first = media(image)
    assert media(image.copy()) is first
    assert media(image[::1]) is first
    assert all(media(other) is not first for other in others)
    data = media(b"PNG")
    assert media(bytes(bytearray(b"PNG"))) is data


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "row: expected either image or video, got neither"),
        (
            {"image": np.float32("nan"), "video": None, "regions": [1, 2, 3, 4]},
            "expected either image or video, got neither",
        ),
        ({"image": None, "video": math.nan, "regions": [1, 2, 3, 4]}, "expected either image or video, got neither"),
        ({"image": "a", "video": "b", "regions": [1, 2, 3, 4]}, "got image and video"),
        ({"image": "a"}, "row: expected regions, got none"),
        ({"image": "a", "regions": None}, "row: expected regions, got none"),
        ({"image": "a", "regions": "[1, 2"}, "regions: text: expected JSON, got something else"),
        ({"image": "a", "regions": "[" * 5000}, "regions: text: expected JSON, got something else (nested deeper"),
        ({"image": "a", "regions": [[1, 2, 3]]}, "regions: region 0"),
        ({"image": "a", "regions": [1, 2, 3, 4], "question": 7}, "question: expected"),
        ({"image": "a", "regions": [1, 2, 3, 4], "options": "[]"}, "options: expected a JSON object, got []"),
        ({"image": "http://127.0.0.1:9/a", "regions": [1, 2, 3, 4]}, "image: expected a path or a URL of an allowed"),
    ],
)
def test_bad_rows_say_why(reader: RowReader, row: dict[str, object], reason: str) -> None:
    said = refused(reader, **row)
    assert reason in said
    assert "\n" not in said
    assert len(said) < 300


def test_columns_become_rows_and_answers_columns() -> None:
    assert rows_of({"id": np.array([1, 2]), "image": ["a", "b"]}) == [{"id": 1, "image": "a"}, {"id": 2, "image": "b"}]
    assert rows_of({}) == []
    columns = answer_columns([Answer(0, "red", None, "stop"), Answer(1, None, "row: bad")], 3.0)
    assert columns["text"].tolist() == ["red", ""]
    assert columns["finish_reason"].tolist() == ["stop", "error"]
    assert columns["error"].tolist() == ["", "row: bad"]
    assert columns["seconds"].tolist() == [1.5, 1.5]
    assert all(len(column) == 0 for column in answer_columns([], 1.0).values())
