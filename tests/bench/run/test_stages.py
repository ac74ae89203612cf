"""Stages of one question: the model's own work, all of it, and each of it once."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from pixelrefer_fast.bench.measure import timing
from pixelrefer_fast.bench.report import results
from pixelrefer_fast.bench.run import stages
from pixelrefer_fast.device.counters import counting
from pixelrefer_fast.device.stages import STAGES

QUESTION = "What is <region>?"
BOX = [10, 10, 60, 50]
TOKENS = 4


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_stages_are_the_whole_question(kind: str, image: np.ndarray, request: pytest.FixtureRequest) -> None:
    """What is counted in them is what `ask` does, to the last operation, and their answer is `ask`'s."""
    model: Any = request.getfixturevalue(kind)
    with counting() as whole:
        answer = model.ask(image, QUESTION, [BOX], max_new_tokens=TOKENS)
    model.decoder.clear()
    with stages.asked(model, image, QUESTION, [BOX], TOKENS) as own:
        counted = dict(stages.count(own))
        assert tuple(counted) == own.names
        assert own.sequence.decoded.text == answer
        assert own.sizes("decode") == {"steps": len(own.sequence.tokens) - 1}
        own.ask()
        assert own.sequence.decoded.text == answer
    assert ("infusion" in counted) == (kind == "lite")
    assert sum(counts.flops for counts in counted.values()) == whole.flops
    products = ("aten.mm", "aten.addmm", "aten.bmm")
    for name in products:
        assert sum(counts.launches[name] for counts in counted.values()) == whole.launches[name]
    assert not counted["plan"].launches
    for name in ("encoder", "projector", "prefill", "decode"):
        assert counted[name].flops > 0
        assert counted[name].moved > 0


def test_a_stage_may_run_again(lite: Any, image: np.ndarray) -> None:
    with stages.asked(lite, image, QUESTION, [BOX], TOKENS) as own:
        stages.through(own)
        (tokens,), said = own.results("projector"), list(own.sequence.tokens)
        for name in own.names:
            own.prepare(name)
            own.run(name)
        assert torch.equal(own.results("projector")[0], tokens)
        assert torch.equal(own.objects.tokens, tokens)
        assert own.sequence.tokens == said
        own.prepare("decode")
        assert len(own.sequence.tokens) == 1
        assert lite.decoder.counts()["running"] == 1
        own.end()
        assert lite.decoder.counts()["running"] == 0
    assert lite.decoder.counts() == {}


def test_measured(lite: Any, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "quiet", nullcontext)
    told: list[str] = []
    found = stages.run(lite, image, QUESTION, [BOX], TOKENS, repeats=2, tick=told.append)
    assert told == [stage.name for stage in found] == list(STAGES)
    for stage in found:
        assert 0 < stage.seconds["q10"] <= stage.seconds["median"] <= stage.seconds["q90"]
        assert stage.calls == 2
        if not torch.cuda.is_available():
            assert stage.device_seconds is stage.host_seconds is None
    rows = [stage.row("one object", "lite", "float32", {"objects": 1}) for stage in found]
    document = results.document("stages", rows, {"copy": 1e9, "float32": 1e9})
    assert results.validate(document) == []
    by_stage = {row["extra"]["stage"]: row for row in document["rows"]}
    assert by_stage["encoder"]["percent_matrix"] > 0
    assert by_stage["encoder"]["sizes"]["objects"] == 1
    assert by_stage["plan"]["launches"] == 0


def test_bad_input_leaves_the_model_as_it_was(lite: Any, image: np.ndarray) -> None:
    for question, regions in ((QUESTION, []), ("What?", [BOX]), (QUESTION, [[500, 500, 600, 600]])):
        with pytest.raises(ValueError, match=r"region|question"):
            stages.run(lite, image, question, regions, TOKENS, repeats=1)
    assert isinstance(lite.ask(image, QUESTION, [BOX], max_new_tokens=2), str)
