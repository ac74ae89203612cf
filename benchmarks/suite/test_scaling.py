"""How time grows with objects, frames, image side, object tokens and batch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from conftest import model_names

from pixelrefer_fast.bench.run import loads, whole
from pixelrefer_fast.bench.run.askers import Ours, answer_all, as_measured, object_tokens
from pixelrefer_fast.bench.run.effort import Effort

EFFORT = Effort(repeats=3, seconds=1.0)
SMOKE = Effort(
    repeats=1,
    seconds=0.0,
    curve_tokens=2,
    curves={"objects": (2,), "frames": (2,), "side": (168,), "n": (2,), "batch": (2,)},
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    effort = SMOKE if metafunc.config.getoption("--smoke") else EFFORT
    points = [(curve, value) for curve, values in effort.curves.items() for value in values]
    pairs = [(name, *point) for name in model_names(metafunc.config) for point in points]
    metafunc.parametrize(("model", "curve", "value"), pairs, indirect=["model"], scope="module")


def test_scaling(model: tuple[str, Any], curve: str, value: int, smoke: bool, timed: Callable) -> None:
    name, own = model
    effort = SMOKE if smoke else EFFORT
    with as_measured(own), object_tokens(own, value) if curve == "n" else nullcontext():
        ours, load = Ours(own), loads.curve_load(own, curve, value)
        row = whole.measure(ours, load, effort.curve_tokens, effort, name, "scaling")
        row["extra"] |= {"curve": curve, "value": value}
        row = timed(row, lambda: answer_all(ours, load.requests, effort.curve_tokens, load.batch_size))
        whole.timed_again(row)
    assert row["ok"], f"{load.case}: error {row['error']}, {row['extra']['equal']} answers equal"
