"""Whole questions, from opened pixels to text: one object, eight of one image, a video, a batch; Lite and Full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import model_names

from pixelrefer_fast.bench.run import loads, whole
from pixelrefer_fast.bench.run.askers import Ours, answer_all, as_measured
from pixelrefer_fast.bench.run.effort import Effort

# what is not pytest-benchmark's to time is timed once, for the way to the first token
EFFORT = Effort(repeats=3, seconds=1.0)
SMOKE = Effort(repeats=1, seconds=0.0, tokens=2)


def cases(model: Any, smoke: bool) -> Iterator[loads.Load]:
    if not smoke:
        yield from loads.case_loads(model)
        return
    size = loads.SMALL_PICTURE
    yield loads.image_load("one object", size)
    yield loads.image_load("8 objects of one image", size, 2)
    yield loads.video_load("20-frame video", size, 2, model.kind)
    yield loads.batch_load("batch of 64", size, 2)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    pairs = [(name, case) for name in model_names(metafunc.config) for case in range(loads.CASES)]
    metafunc.parametrize(("model", "case"), pairs, indirect=["model"], scope="module")


def test_whole(model: tuple[str, Any], case: int, smoke: bool, timed: Callable) -> None:
    name, own = model
    load = list(cases(own, smoke))[case]
    effort = SMOKE if smoke else EFFORT
    with as_measured(own):
        ours = Ours(own)
        row = whole.measure(ours, load, effort.tokens, effort, name)
        row = timed(row, lambda: answer_all(ours, load.requests, effort.tokens, load.batch_size))
        whole.timed_again(row)
    assert row["ok"], f"{load.case}: error {row['error']}, {row['extra']['equal']} answers equal"
