"""Steps captured once for a bucket and replayed: the same answers. Captures are recorded, there is no GPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import alone, answers, drain, new_decoder, prompt
from recorded_graphs import SIZE, Recorder

from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding import decoder as decoder_module
from pixelrefer_fast.decoding.step_graphs import StepGraphs
from pixelrefer_fast.device import graphs as graphs_module

LENGTHS = [5, 40, 1, 33, 32, 17, 70]


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graphs_module, "CudaCapturer", lambda: recorder)
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", True)
    return recorder


def _options(i: int) -> Generation:
    return Generation(max_new_tokens=4 + 3 * i, temperature=float(i % 3 == 2), seed=i, logprobs=i % 4 == 3)


@pytest.mark.parametrize("slots", [3, 64])
@pytest.mark.parametrize("limit", [1, SIZE, 100 * SIZE])
def test_as_if_without(lite: Any, recorder: Recorder, slots: int, limit: int) -> None:
    decoder = new_decoder(lite, max_running=slots, penalty=1.2, graph_bytes=limit)
    sequences = [decoder.submit(prompt(n, i), _options(i)) for i, n in enumerate(LENGTHS)]
    expected = [alone(lite, prompt(n, i), _options(i), penalty=1.2) for i, n in enumerate(LENGTHS)]
    assert answers(sequences) == expected
    counts = decoder.counts()
    assert decoder.memory()["graph_bytes"] <= limit
    if limit == 1:
        assert counts["graph_replays"] == 0
        assert counts["graph_not_kept"] > 0
    else:
        assert counts["graph_replays"] == counts["steps"]
        assert counts["graph_captures"] == len(recorder.captured)
    if limit == SIZE:
        assert counts["graph_graphs"] == 1
        assert counts["graph_evictions"] == counts["graph_captures"] - 1


def test_few_graphs_for_many_batches(lite: Any, recorder: Recorder) -> None:
    """One for each power of two of slots and of blocks, whatever comes and goes."""
    decoder = new_decoder(lite, graph_bytes=100 * SIZE)
    for round_ in range(3):
        sequences = [decoder.submit(prompt(9, i), Generation(max_new_tokens=3 + i)) for i in range(7)]
        drain(decoder)
        assert all(s.done for s in sequences)
        if round_ == 0:
            first = len(recorder.captured)
    assert len(recorder.captured) == first <= 4
    assert decoder.counts()["graph_replays"] == decoder.counts()["steps"]


def test_captured_anew_when_the_cache_moved(lite: Any, recorder: Recorder) -> None:
    decoder = new_decoder(lite, graph_bytes=100 * SIZE)
    options = Generation(max_new_tokens=5)
    decoder.submit(prompt(9), options).result()
    before = len(recorder.captured)
    sequences = [decoder.submit(prompt(600, i), Generation(max_new_tokens=3)) for i in range(6)]
    drain(decoder)
    assert all(s.done for s in sequences)
    assert decoder.submit(prompt(9), options).result().tokens == alone(lite, prompt(9), options)
    assert len(recorder.captured) > before + 1


def test_logits_are_those_of_steps_without_graphs(lite: Any, recorder: Recorder) -> None:
    decoder = new_decoder(lite, graph_bytes=100 * SIZE)
    steps = list(decoder.steps(prompt(9), Generation(max_new_tokens=6)))
    assert tuple(s.token for s in steps) == alone(lite, prompt(9), Generation(max_new_tokens=6))
    assert not recorder.captured


def test_a_capture_changes_nothing() -> None:
    """It runs the step, whose state is put back."""
    graphs = StepGraphs(10 * SIZE, Recorder())
    state = {"count": torch.zeros(1)}

    def step() -> torch.Tensor:
        state["count"] += 1
        return state["count"] * 10

    assert [graphs.run("key", step, state).item() for _ in range(3)] == [10, 20, 30]
    assert graphs.counts() == {
        "graphs": 1,
        "held_bytes": SIZE,
        "captures": 1,
        "replays": 3,
        "evictions": 0,
        "not_kept": 0,
    }
    graphs.clear()
    assert graphs.held_bytes() == 0


@pytest.mark.parametrize("error", [RuntimeError("no capture"), torch.OutOfMemoryError("not now")])
def test_a_capture_that_fails_changes_nothing(error: Exception) -> None:
    """The run before it has moved the state on, which is put back whether the step is then done or not."""
    recorder = Recorder()
    recorder.error = error
    graphs, count = StepGraphs(10 * SIZE, recorder), torch.zeros(1)

    def step() -> torch.Tensor:
        count.add_(1)
        return count * 10

    for done in (1, 2):
        if isinstance(error, torch.OutOfMemoryError):
            with pytest.raises(torch.OutOfMemoryError):
                graphs.run("key", step, {"count": count})
            assert count == 0
        else:
            assert graphs.run("key", step, {"count": count}) == 10 * done
            assert count == done
    assert recorder.tries == (2 if isinstance(error, torch.OutOfMemoryError) else 1)
    assert graphs.refused == ({} if recorder.tries == 2 else {"key": "the capture failed: no capture"})


def test_answers_where_every_capture_fails(lite: Any, recorder: Recorder) -> None:
    recorder.error = RuntimeError("no capture")
    decoder = new_decoder(lite, penalty=1.2, graph_bytes=100 * SIZE)
    sequences = [decoder.submit(prompt(n, i), _options(i)) for i, n in enumerate(LENGTHS)]
    assert answers(sequences) == [alone(lite, prompt(n, i), _options(i), penalty=1.2) for i, n in enumerate(LENGTHS)]
    counts = decoder.counts()
    assert counts["graph_captures"] == counts["graph_replays"] == 0
    assert counts["graph_not_kept"] + recorder.tries == counts["steps"]


def test_steps_without_memory_for_a_capture_are_fewer_at_once(lite: Any, recorder: Recorder) -> None:
    decoder = new_decoder(lite, graph_bytes=100 * SIZE)
    sequences = [decoder.submit(prompt(9, i), Generation(max_new_tokens=6)) for i in range(4)]
    recorder.error = torch.OutOfMemoryError("not now")
    decoder.advance()
    recorder.error = None
    assert decoder.counts()["most_running"] == 2
    assert answers(sequences) == [alone(lite, prompt(9, i), Generation(max_new_tokens=6)) for i in range(4)]
    assert decoder.counts()["graph_replays"] > 0


def test_where_there_are_none(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    decoder = new_decoder(lite, graph_bytes=5)
    with pytest.raises(ValueError, match=r"^graph_bytes: expected 0 on cpu, got 5: CUDA graphs exist on cuda only$"):
        decoder.submit(prompt(3), Generation())
