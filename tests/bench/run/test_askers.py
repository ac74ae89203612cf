"""Who is asked: answers of a fixed length, counts by stage, and a check that finds what is wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded_graphs import Recorder

from pixelrefer_fast import ops
from pixelrefer_fast.bench.run import loads
from pixelrefer_fast.bench.run.askers import (
    BenchRequest,
    Ours,
    answer_all,
    as_measured,
    check,
    counting_stages,
    definitions,
    is_captured,
    object_tokens,
    with_vision_in,
)
from pixelrefer_fast.cli.demo.costs import measure
from pixelrefer_fast.decoding import engine as engine_module
from pixelrefer_fast.device import graphs as graphs_module
from pixelrefer_fast.device.stages import STAGES


@pytest.fixture(scope="module")
def load() -> loads.Load:
    return loads.image_load("two objects", (112, 140), 2)


def test_answers_have_the_length_that_is_asked_for(small_lite: Any, load: loads.Load) -> None:
    ends, prefixes = small_lite.decoder.end_ids, small_lite.decoder.prefix_bytes
    ours = Ours(small_lite)
    with as_measured(small_lite):
        answers = answer_all(ours, load.requests, 30)
        assert [len(own) for own in answers] == [30, 30]
        first = load.requests[0]
        assert ours.ask(first.media, first.question, first.regions, 30) == answers[0]
        assert small_lite.decoder.memory()["prefixes"] == 0  # the next call finds nothing computed
    assert (small_lite.decoder.end_ids, small_lite.decoder.prefix_bytes) == (ends, prefixes)
    text = small_lite.ask(first.media, first.question, list(first.regions), max_new_tokens=30)
    given = small_lite.decoder.text(answers[0])
    assert given.startswith(text)


def test_what_is_captured_is_measured(small_lite: Any, load: loads.Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts and steps of measured answers are replayed, though their settings are others, and later ones again."""
    recorder = Recorder()
    monkeypatch.setattr(graphs_module, "cuda_capturer", lambda: recorder)
    monkeypatch.setattr(engine_module, "FIXED_TOKENS", 256)  # no more memory than tests need
    ours = Ours(small_lite)
    small_lite.warmup(2**24)
    try:
        before = small_lite.decoder.counts()
        with as_measured(small_lite):
            assert is_captured(small_lite)
            answers = answer_all(ours, load.requests, 3)
            assert small_lite.decoder.counts()["graph_replays"] == 2  # what each step of both gives
            found = check(ours, load.requests, answers, 3)
            assert (found.ok, found.equal) == (True, 2)
            assert is_captured(small_lite)
        assert small_lite.decoder.counts() == before
        tries = recorder.tries
        ours.ask(load.requests[0].media, load.requests[0].question, load.requests[0].regions, 3)
        assert small_lite.decoder.counts()["graph_replays"] > before["graph_replays"]
        assert recorder.tries == tries
    finally:
        small_lite.warmup(0)
    assert not is_captured(small_lite)


def test_bad_requests_raise_what_is_wrong_with_them(small_lite: Any, load: loads.Load) -> None:
    bad = BenchRequest(load.requests[0].media, "no tag", load.requests[0].regions)
    with pytest.raises(ValueError, match="region"):
        Ours(small_lite).answers([load.requests[0], bad], 2)


@pytest.mark.parametrize("kind", ["lite", "full"])
def test_stages_count_what_the_costs_of_a_question_are(
    kind: str, load: loads.Load, request: pytest.FixtureRequest
) -> None:
    model: Any = request.getfixturevalue(f"small_{kind}")
    ours, one = Ours(model), load.requests[:1]
    with as_measured(model):
        with counting_stages("cpu") as counts:
            ours.answers(one, 4)
        costs = measure(model, one[0].media, one[0].question, list(one[0].regions), max_new_tokens=4, repeats=1)
    assert counts["encoder"].flops == costs.encoder_flops
    region = sum(counts[stage].flops for stage in ("pooling", "infusion", "projector"))
    assert region == costs.region_flops
    assert (counts["infusion"].flops > 0) == (kind == "lite")
    assert counts["prefill"].flops == costs.prefill_flops
    assert counts["decode"].flops == costs.decode_flops
    assert all(own.launches.total() > 0 for name, own in counts.items() if name != "infusion" or kind == "lite")


def test_nobody_listens_after_counting(small_lite: Any, load: loads.Load) -> None:
    with counting_stages("cpu") as counts:
        assert not counts
    assert list(counts) == list(STAGES)
    before = {name: own.launches.total() for name, own in counts.items()}
    Ours(small_lite).encode(load.requests[0].media, load.requests[0].regions)
    assert {name: own.launches.total() for name, own in counts.items()} == before == dict.fromkeys(STAGES, 0)


def test_another_number_of_object_tokens(small_lite: Any, load: loads.Load) -> None:
    before = small_lite.config.mask_num
    with object_tokens(small_lite, before + 3):
        assert len(Ours(small_lite).encode(load.requests[0].media, load.requests[0].regions)) == before + 3
    assert small_lite.config.mask_num == before


def test_the_definitions_compute_while_they_are_asked_to(small_lite: Any) -> None:
    language = small_lite.decoder.language_model
    with definitions(small_lite):
        assert (small_lite.backend, language.backend) == ("torch", "torch")
    assert (small_lite.backend, language.backend) == ("auto", "auto")


def test_a_twin_has_a_vision_side_of_its_own_and_the_same_language_model(small_lite: Any) -> None:
    twin = with_vision_in(small_lite, torch.float64)
    assert (twin.dtype, small_lite.dtype) == (torch.float64, torch.float32)
    assert twin.network.encoder is not small_lite.network.encoder
    assert twin.network.llm is small_lite.network.llm
    assert twin.decoder is small_lite.decoder


def test_what_is_right_is_found_right(small_lite: Any, load: loads.Load) -> None:
    ours = Ours(small_lite)
    with as_measured(small_lite):
        found = check(ours, load.requests, answer_all(ours, load.requests, 3), 3)
    assert found.ok
    assert (found.equal, found.asked) == (2, 2)
    assert found.error <= found.limit == 1e-4


def test_wrong_answers_are_found(small_lite: Any, load: loads.Load) -> None:
    ours = Ours(small_lite)
    with as_measured(small_lite):
        answers = answer_all(ours, load.requests, 3)
        found = check(ours, load.requests, [answers[0], (0, 0, 0)], 3)
    assert not found.ok
    assert (found.equal, found.asked) == (1, 2)


def test_wrong_object_tokens_are_found(small_lite: Any, load: loads.Load, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.object_tokens

    def wrong(*args: Any, backend: str = "auto") -> Any:
        return right(*args, backend=backend) + (0.0 if backend == "torch" else 0.01)

    monkeypatch.setattr(ops, "object_tokens", wrong)
    ours = Ours(small_lite)
    with as_measured(small_lite):
        found = check(ours, load.requests[:1], answer_all(ours, load.requests[:1], 1), 1)
    assert not found.ok
    assert found.error > found.limit
