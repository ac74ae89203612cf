"""Whole questions, from opened pixels to text: one object, eight of one image, a video, a batch; Lite and Full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import model_names

from pixelrefer_fast.bench.run import whole
from pixelrefer_fast.bench.run.askers import Ours, answer_all, as_measured

# what is not pytest-benchmark's to time is timed once, for the way to the first token
EFFORT = whole.Effort(repeats=3, seconds=1.0)
SMOKE = whole.Effort(repeats=1, seconds=0.0, tokens=2)


def loads(model: Any, smoke: bool) -> Iterator[whole.Load]:
    if not smoke:
        yield from whole.case_loads(model)
        return
    size = whole.SMALL_PICTURE
    yield whole.image_load("one object", size)
    yield whole.image_load("8 objects of one image", size, 2)
    yield whole.video_load("20-frame video", size, 2, model.kind)
    yield whole.batch_load("batch of 64", size, 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pairs = [(name, case) for name in model_names(metafunc.config) for case in range(whole.CASES)]
    metafunc.parametrize(("model", "case"), pairs, indirect=["model"], scope="module")


def test_whole(model: tuple[str, Any], case: int, smoke: bool, timed: Callable) -> None:
    name, own = model
    load = list(loads(own, smoke))[case]
    effort = SMOKE if smoke else EFFORT
    with as_measured(own):
        ours = Ours(own)
        row = whole.measure(ours, load, effort.tokens, effort, name)
        row = timed(row, lambda: answer_all(ours, load.requests, effort.tokens, load.batch_size))
        whole.timed_again(row)
    assert row["ok"], f"{load.case}: error {row['error']}, {row['extra']['equal']} answers equal"
