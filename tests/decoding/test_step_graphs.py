"""Steps captured by `warmup` and replayed: the same answers. Captures are recorded, there is no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import alone, answers, drain, new_decoder, prompt
from recorded_graphs import SIZE, Recorded, Recorder

from pixelrefer_fast.batching.session import Session
from pixelrefer_fast.decoding import Decoder, Generation
from pixelrefer_fast.decoding import decoder as decoder_module
from pixelrefer_fast.decoding import engine as engine_module
from pixelrefer_fast.decoding.prefill_graphs import LADDER
from pixelrefer_fast.decoding.step_graphs import captured_sizes
from pixelrefer_fast.device import graphs as graphs_module
from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import Run
from pixelrefer_fast.ops import _registry as registry_module

LENGTHS = [5, 40, 1, 33, 32, 17, 70]
ROOM = 2**24


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graphs_module, "cuda_capturer", lambda: recorder)
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", True)
    monkeypatch.setattr(engine_module, "FIXED_TOKENS", 256)  # no more memory than tests need
    return recorder


def _options(i: int) -> Generation:
    """Greedy with and without penalties, sampled in both ways, with log-probabilities, biased."""
    kinds: list[dict[str, Any]] = [
        {},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 5},
        {"logprobs": True},
        {"logit_bias": {7: 3.0}, "min_new_tokens": 3},
    ]
    return Generation(max_new_tokens=4 + 3 * (i % 7), seed=i, **kinds[i % len(kinds)])


def _warm(model: Any, **settings: Any) -> Decoder:
    decoder = new_decoder(model, **{"graph_bytes": ROOM, "max_running": 8} | settings)
    decoder.warmup()
    return decoder


@pytest.mark.parametrize("slots", [3, 8])
@pytest.mark.parametrize("limit", [1, 2 * SIZE, ROOM])  # what prompts are captured with has room in the last alone
def test_as_if_without(lite: Any, slots: int, limit: int) -> None:
    decoder = _warm(lite, max_running=slots, penalty=1.2, graph_bytes=limit)
    sequences = [decoder.submit(prompt(n, i), _options(i)) for i, n in enumerate(LENGTHS)]
    expected = [alone(lite, prompt(n, i), _options(i), penalty=1.2) for i, n in enumerate(LENGTHS)]
    assert answers(sequences) == expected
    counts = decoder.counts()
    assert decoder.memory()["graph_bytes"] <= limit
    if limit == ROOM:
        assert counts["graph_replays"] == counts["steps"] > 0
    if limit == 1:
        assert counts["graph_replays"] == 0


def test_fourteen_graphs_for_any_traffic(lite: Any, recorder: Recorder) -> None:
    """All of them are captured before the first request, whatever comes, and the cache does not move."""
    decoder = _warm(lite, max_running=64)
    before = len(recorder.captured)
    assert before == 14 + len(LADDER)  # of steps, and of prompts
    assert decoder._engine is not None
    pool = decoder._engine._pool
    places = [x.data_ptr() for x in (*pool.keys, *pool.values)]
    for round_ in range(3):
        sequences = [decoder.submit(prompt(9 + 40 * i, i), _options(i + round_)) for i in range(5 * round_ + 3)]
        drain(decoder)
        assert all(s.decoded is not None for s in sequences)
    assert len(recorder.captured) == before
    assert [x.data_ptr() for x in (*pool.keys, *pool.values)] == places
    counts = decoder.counts()
    assert counts["graph_graphs"] == 14
    assert counts["graph_replays"] == counts["steps"]
    assert counts["graph_not_kept"] == 0


def test_a_large_batch_keeps_what_is_captured(lite: Any) -> None:
    """It is decoded in turns; where nothing is captured, at once."""
    for limit, most in ((ROOM, 8), (0, 20)):
        decoder = _warm(lite, graph_bytes=limit)
        Session(decoder).widen(20)
        sequences = [decoder.submit(prompt(9, i), Generation(max_new_tokens=4)) for i in range(20)]
        decoder.advance()
        assert decoder.counts()["running"] == decoder.max_running == most
        assert answers(sequences) == [alone(lite, prompt(9, i), Generation(max_new_tokens=4)) for i in range(20)]
        assert decoder.captured is bool(limit)


@pytest.mark.parametrize(
    ("slots", "sizes"), [(1, [1]), (3, [3, 2, 1]), (64, [64, 32, 16, 8, 4, 2, 1]), (200, [200, 128, 64, 32, 16, 8, 4])]
)
def test_sizes(slots: int, sizes: list[int]) -> None:
    assert captured_sizes(slots) == sizes


def test_a_long_answer_chooses_its_tokens_apart(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for what it says in what was captured; its layers are replayed."""
    monkeypatch.setattr("pixelrefer_fast.decoding.slots.SAID", 8)
    decoder = _warm(lite, penalty=1.2)
    for options in (Generation(max_new_tokens=30), Generation(max_new_tokens=6)):
        found = decoder.submit(prompt(9), options).result().tokens
        assert found == alone(lite, prompt(9), options, penalty=1.2)
    counts = decoder.counts()
    assert counts["graph_replays"] == counts["steps"]
    assert counts["graph_captures"] == 8


def test_nothing_is_captured_without_warmup(lite: Any, recorder: Recorder) -> None:
    decoder = new_decoder(lite, graph_bytes=ROOM)
    assert decoder.submit(prompt(9), _options(1)).result().tokens == alone(lite, prompt(9), _options(1))
    assert not recorder.captured
    decoder.warmup()
    assert recorder.captured
    assert decoder.submit(prompt(9), _options(1)).result().tokens == alone(lite, prompt(9), _options(1))
    assert decoder.counts()["graph_replays"] > 0


def test_no_warmup_in_the_middle_of_a_request(lite: Any) -> None:
    decoder = _warm(lite)
    decoder.submit(prompt(9), Generation(max_new_tokens=5))
    decoder.advance()
    with pytest.raises(RuntimeError, match="expected nothing to be decoded"):
        decoder.warmup()


def test_logits_are_those_of_steps_without_graphs(lite: Any) -> None:
    decoder = _warm(lite)
    steps = list(decoder.steps(prompt(9), Generation(max_new_tokens=6)))
    assert tuple(s.token for s in steps) == alone(lite, prompt(9), Generation(max_new_tokens=6))
    assert decoder.counts()["graph_replays"] == 0


class Wrong(Recorder):
    """Every second capture replays something else."""

    def capture(self, run: Run, device: torch.device) -> Recorded:
        captured = super().capture(run, device)
        if len(self.captured) % 2:
            captured.run = lambda: run() + 1
        return captured


def test_a_graph_is_used_once_its_replay_agrees(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs_module, "cuda_capturer", Wrong)
    before = sum(trust.counts()["dropped"].values())
    decoder = _warm(lite)
    counts = decoder.counts()
    assert (counts["graph_graphs"], counts["graph_captures"]) == (4, 4)
    assert sum(trust.counts()["dropped"].values()) == before + 4 + len(LADDER) // 2
    sequences = [decoder.submit(prompt(n, i), _options(i)) for i, n in enumerate(LENGTHS)]
    assert answers(sequences) == [alone(lite, prompt(n, i), _options(i)) for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), RuntimeError("not possible")])
def test_without_a_capture_steps_run_as_they_are(lite: Any, recorder: Recorder, error: Exception) -> None:
    recorder.error = error
    decoder = _warm(lite)
    assert decoder.submit(prompt(9), _options(1)).result().tokens == alone(lite, prompt(9), _options(1))
    assert decoder.counts()["graph_graphs"] == 0


def test_defaults(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CUDA device whose kernels read blocks in place, and nowhere else."""
    decoder = new_decoder(lite)
    assert decoder._default_graph_bytes() == 0
    monkeypatch.setattr(type(decoder.language_model), "device", torch.device("cuda"))
    monkeypatch.setattr(registry_module, "triton_available", lambda: None)
    assert decoder._default_graph_bytes() == decoder_module.GRAPH_BYTES
    decoder.language_model.backend = "torch"
    assert decoder._default_graph_bytes() == 0
    decoder.language_model.backend = "auto"
    monkeypatch.setattr(registry_module, "triton_available", lambda: "triton is not installed")
    assert decoder._default_graph_bytes() == 0


def test_a_device_without_graphs(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    decoder = new_decoder(lite, graph_bytes=SIZE)
    with pytest.raises(ValueError, match="graph_bytes: expected 0 on cpu, got 1000: CUDA graphs exist on cuda only"):
        decoder.warmup()


def test_aside_nothing_is_captured_and_afterwards_it_goes_on(lite: Any, recorder: Recorder) -> None:
    decoder = _warm(lite)
    tries = recorder.tries
    expected = alone(lite, prompt(5, 0), _options(0))
    with decoder.aside():
        assert answers([decoder.submit(prompt(5, 0), _options(0))]) == [expected]
        assert decoder.counts()["graph_replays"] == 0
        waiting = decoder.submit(prompt(5, 0), _options(0))
        with pytest.raises(RuntimeError, match="expected nothing to be decoded"), decoder.aside():
            pass
        waiting.result()
    assert answers([decoder.submit(prompt(5, 0), _options(0))]) == [expected]
    assert decoder.counts()["graph_replays"] > 0
    assert recorder.tries == tries
