"""The stages of one question, each by itself (`pixelrefer_fast.bench.run.stages` says what they are).

On a CUDA device a stage has the device's own time, with a cold L2, and the host's time to issue it beside that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from conftest import model_names

from pixelrefer_fast.bench.run import loads, stages
from pixelrefer_fast.device.counters import Counts
from pixelrefer_fast.device.stages import STAGES

CASES = ("one object", "20-frame video")
TOKENS, SMOKE_TOKENS = 64, 3
LIMIT = 1e-4  # of the error in float32; 16 bits round differently, and k-means may put a patch into another cluster


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    asked = [(name, case) for name in model_names(metafunc.config) for case in CASES]
    # of a question all stages, before the next one is asked
    metafunc.parametrize("stage", STAGES)
    metafunc.parametrize(("model", "asked"), asked, indirect=True, scope="module")


class Asked:
    """A question that has gone through all stages once, which were counted."""

    def __init__(self, own: stages.StagedQuestion, case: str, sizes: dict[str, int]) -> None:
        self.own, self.case, self.sizes = own, case, sizes
        self.counts: dict[str, Counts] = {}
        self.own_sizes: dict[str, dict[str, int]] = {}
        self.errors: dict[str, float | None] = {}
        for name, counts in stages.count(own):
            self.counts[name], self.own_sizes[name] = counts, own.sizes(name)
        for name in own.names:
            self.errors[name] = stages.error(own, name)

    def row(self, name: str, model: str) -> Any:
        dtype = str(self.own.model.dtype).removeprefix("torch.")
        sizes = {**self.sizes, **self.own_sizes[name]}
        row = stages.work(name, self.counts[name], self.case, model, dtype, sizes)
        if self.own.model.device.type == "cuda":
            row["waits"] = sum(self.counts[name].waits.values())
        error = self.errors[name]
        if error is not None:
            row["error"] = error
            if self.own.model.dtype == torch.float32:
                row |= {"limit": LIMIT, "ok": error <= LIMIT}
        return row


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest, model: tuple[str, Any], smoke: bool) -> Iterator[Asked]:
    _, own = model
    size = loads.SMALL_PICTURE if smoke else loads.pictures_of(own.config)[0]
    if request.param == "one object":
        load = loads.image_load(request.param, size)
    else:
        load = loads.video_load(request.param, size, 2 if smoke else loads.FRAMES, own.kind)
    (one,) = load.requests
    tokens = SMOKE_TOKENS if smoke else TOKENS
    with stages.asked(own, one.media, one.question, one.regions, tokens) as question:
        yield Asked(question, load.case, load.sizes)


def test_stage(model: tuple[str, Any], asked: Asked, stage: str, timed_on_device: Callable) -> None:
    if stage not in asked.own.names:
        pytest.skip(f"{asked.own.model.kind} has no {stage}")

    def prepare() -> str:
        asked.own.prepare(stage)
        return stage

    row = timed_on_device(asked.row(stage, model[0]), asked.own.run, prepare)
    assert row["ok"], f"{stage}: error {row['error']:.2e}, at most {row['limit']:.2e}"
