"""`Describer`, which Ray hands batches, called by hand: the same answers as `ask`, and failures by row."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from encoding_batches import look_at_batches

import pixelrefer_fast as pf
from pixelrefer_fast.engines import ray as ray_module
from pixelrefer_fast.engines.ray import Describer

QUESTION = "What is <region>?"
SHORT = {"max_new_tokens": 4}
Make = Callable[..., Describer]


@pytest.fixture
def make(lite: Any, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setattr(ray_module, "load", lambda *_, **__: lite)
    return lambda *args, **kwargs: Describer("lite", *args, **({"options": SHORT} | kwargs))


def table(rows: int, images: int = 1) -> dict[str, Any]:
    """Columns as Ray hands them: equal images lie in one array."""
    pictures = np.random.default_rng(3).integers(0, 256, (images, 60, 70, 3), dtype=np.uint8)
    boxes = np.empty(rows, dtype=object)
    boxes[:] = [np.array([[5.0, 5, 20 + i, 40]]) for i in range(rows)]
    return {"id": np.arange(rows), "image": pictures[np.arange(rows) % images], "regions": boxes}


def test_answers_are_those_of_ask(make: Make, lite: pf.PixelReferLite) -> None:
    batch = table(5)
    done = make(QUESTION)(batch)
    expected = [
        lite.ask(image, QUESTION, regions, **SHORT)
        for image, regions in zip(batch["image"], batch["regions"], strict=True)
    ]
    assert list(done["text"]) == expected
    assert list(done["error"]) == [""] * 5
    assert list(done["finish_reason"]) == ["length"] * 5
    assert all(seconds > 0 for seconds in done["seconds"])
    assert done["image"] is batch["image"]


def test_equal_images_are_encoded_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: set[int] = set()
    look_at_batches(monkeypatch, lambda batch: opened.update(id(one.request.source) for one in batch))
    make(QUESTION)(table(6, images=2))
    assert len(opened) == 2


def test_a_bad_row_disturbs_no_other(make: Make) -> None:
    batch = table(4)
    good = make(QUESTION)(batch)
    batch["regions"][1] = None
    batch["regions"][2] = [[1, 2, 3]]
    batch |= {"question": np.array([QUESTION, None, None, "No tag at all"], dtype=object)}
    done = make(QUESTION)(batch)
    assert done["text"][0] == good["text"][0]
    assert list(done["text"][1:]) == ["", "", ""]
    assert done["error"][1] == "row: expected regions, got none"
    assert done["error"][2].startswith("regions: region 0: ")
    assert "<region>" in done["error"][3]
    assert list(done["finish_reason"])[1:] == ["error"] * 3


def test_a_row_of_ten_thousand_regions_fails_alone(make: Make) -> None:
    batch = table(2)
    batch["regions"][1] = np.tile([5.0, 5, 20, 40], (10_000, 1))
    done = make(QUESTION)(batch)
    assert done["error"][0] == ""
    assert "10000" in done["error"][1]


def test_a_server_that_is_gone_fails_its_rows_alone(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}/cat.png"
    batch = table(3)
    expected = make(QUESTION)(batch)["text"]
    images = np.empty(3, dtype=object)
    images[:] = [batch["image"][0], url, batch["image"][2]]
    done = make(QUESTION, url_schemes=["http"])(batch | {"image": images})
    assert [done["text"][0], done["text"][2]] == [expected[0], expected[2]]
    assert done["text"][1] == ""
    assert "cannot be read" in done["error"][1]
    assert list(done["id"]) == [0, 1, 2]


def test_columns_that_go_on(make: Make) -> None:
    done = make(QUESTION, keep=["id"])(table(1))
    assert list(done) == ["id", "text", "finish_reason", "error", "seconds"]
    with pytest.raises(ValueError, match=r"keep: expected some of \['id', 'image', 'regions'\], got \['name'\]"):
        make(QUESTION, keep=["name"])(table(1))
    with pytest.raises(ValueError, match=r"columns: expected none named as an answer's, got \['text'\]"):
        make(QUESTION)(table(1) | {"text": np.array(["x"])})
    assert make(QUESTION, keep=["id"])(table(1) | {"text": np.array(["x"])})["error"][0] == ""


def test_no_rows(make: Make) -> None:
    assert [len(column) for column in make(QUESTION)(table(0)).values()] == [0] * 7


def test_memory_fails_rows_and_a_broken_machine_the_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(message: str) -> None:
        def look(batch: list[Any]) -> None:
            raise RuntimeError(message)

        look_at_batches(monkeypatch, look)

    monkeypatch.setattr(ray_module, "DEFECTS", 3)
    describer = make(QUESTION)
    failing("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
    assert all("memory" in error for error in describer(table(3))["error"])
    failing("CUDA error: unspecified launch failure")
    done = describer(table(2))
    assert all("CUDA error" in error for error in done["error"])
    with pytest.raises(RuntimeError, match="CUDA error"):
        describer(table(1))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"question": 3}, "question: expected"),
        ({"options": {"beams": 3}}, "options: expected some of"),
        ({"url_schemes": "https"}, "url_schemes: expected"),
    ],
)
def test_arguments_are_checked_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], reason: str
) -> None:
    monkeypatch.delattr(ray_module, "load")
    with pytest.raises(ValueError, match=reason):
        Describer("lite", **arguments)
