"""Prompts through captured passes, padded and replayed: the same bits. Captures are recorded, there is no GPU."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from decoding import alone, answers, new_decoder, prompt
from device_only import device_only, launches_only
from recorded_graphs import SIZE, Recorded, Recorder

from pixelrefer_fast.decoding import Decoder, Generation
from pixelrefer_fast.decoding import engine as engine_module
from pixelrefer_fast.decoding.cache import TRASH
from pixelrefer_fast.decoding.prefill_graphs import LADDER, CapturedPrefills, PrefillSizes, prefill_sizes
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.device import graphs as graphs_module
from pixelrefer_fast.device import trust
from pixelrefer_fast.device.graphs import Run

ROOM = 2**28


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr(graphs_module, "cuda_capturer", lambda: recorder)
    monkeypatch.setattr(engine_module, "FIXED_TOKENS", 256)  # no more memory than tests need
    return recorder


def _warm(model: Any, **settings: Any) -> Decoder:
    decoder = new_decoder(model, **{"graph_bytes": ROOM, "max_running": 8} | settings)
    decoder.warmup()
    return decoder


def _prefills(decoder: Decoder) -> CapturedPrefills:
    assert decoder._engine is not None
    assert decoder._engine.prefills is not None
    return decoder._engine.prefills


def _logits(decoder: Decoder, lengths: list[int]) -> list[torch.Tensor]:
    """Of the first token of each of some prompts that come together."""
    sequences = [
        decoder.submit(prompt(n, i), Generation(max_new_tokens=1), keep_logits=True) for i, n in enumerate(lengths)
    ]
    return [next(iter(s.steps())).logits for s in sequences]


def _cached(decoder: Decoder) -> list[torch.Tensor]:
    """What prompts have left in the first blocks of the cache, but for those of trash."""
    assert decoder._engine is not None
    pool = decoder._engine._pool
    return [held[TRASH + 1 : 30] for held in (*pool.keys, *pool.values)]


@pytest.mark.parametrize(
    "lengths", [[5], [64], [65], [40, 1, 33], [5, 40, 1, 33, 32, 17, 70, 3], [500, 2, 300], [9] * 5], ids=str
)
def test_padding_changes_no_bit(lite: Any, lengths: list[int]) -> None:
    """Of what the prompts leave in the cache, and of the logits.

    The library multiplies one to three rows in another way than more, which rounds otherwise: the last product, whose
    rows are prompts, is within that of fewer than four.
    """
    plain, decoder = new_decoder(lite, max_running=8), _warm(lite)
    expected = _logits(plain, lengths)
    prefills = _prefills(decoder)
    assert prefills._embeds is not None
    for round_ in range(2):
        prefills._embeds.fill_(torch.nan)  # what earlier prompts leave there
        found = _logits(decoder, lengths)
        if len(lengths) >= 4:
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
        if not round_:  # later prompts are in other blocks
            assert all(torch.equal(a, b) for a, b in zip(_cached(decoder), _cached(plain), strict=True))
    assert decoder.counts()["prefill_graph_replays"] == decoder.counts()["passes"] > 0


def test_trash_stays_finite(lite: Any) -> None:
    """Steps meet it in tables, masked out: a weight of zero would not hide a NaN."""
    decoder = _warm(lite)
    prefills = _prefills(decoder)
    assert prefills._embeds is not None
    prefills._embeds.fill_(torch.nan)
    _logits(decoder, [9])
    pool = prefills._pool
    assert all(held[TRASH].isfinite().all() for held in (*pool.keys, *pool.values))


def test_answers_and_shared_prefixes(lite: Any) -> None:
    """Keys of a prefix that others have computed are read from the cache."""
    decoder = _warm(lite)
    options = Generation(max_new_tokens=6)
    for round_ in range(2):
        sequences = [decoder.submit(prompt(n, i), options) for i, n in enumerate([40, 90, 33])]
        assert answers(sequences) == [alone(lite, prompt(n, i), options) for i, n in enumerate([40, 90, 33])], round_
    counts = decoder.counts()
    assert counts["prefill_graph_replays"] == counts["passes"]


def test_sizes_are_few_and_all_captured(lite: Any, recorder: Recorder) -> None:
    decoder = _warm(lite)
    counts = decoder.counts()
    assert counts["prefill_graph_graphs"] == counts["prefill_graph_captures"] == len(LADDER) == 6
    tries = recorder.tries
    for seed in range(30):
        _logits(decoder, [1 + (seed * 37 + 11 * i) % 150 for i in range(1 + seed % 8)])
    assert recorder.tries == tries
    assert decoder.counts()["prefill_graph_replays"] > 20


def test_a_prompt_beyond_any_of_them(lite: Any) -> None:
    decoder = _warm(lite)
    length = LADDER[0] + 3
    (found,) = _logits(decoder, [length])
    (expected,) = _logits(new_decoder(lite), [length])
    assert torch.equal(found, expected)
    assert decoder.counts()["prefill_graph_replays"] == 0


class _Wrong(Recorder):
    """Replays something else."""

    def capture(self, run: Run, device: torch.device) -> Recorded:
        captured = super().capture(run, device)
        captured.run = lambda: run() + 1
        return captured


@pytest.mark.parametrize("error", [None, RuntimeError("not possible"), torch.OutOfMemoryError("none left")])
def test_what_is_not_trusted_runs_as_it_is(lite: Any, error: Exception | None, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = _Wrong() if error is None else Recorder()
    wrong.error = error
    monkeypatch.setattr(graphs_module, "cuda_capturer", lambda: wrong)
    decoder = _warm(lite)
    assert decoder.counts()["prefill_graph_graphs"] == 0
    assert torch.equal(_logits(decoder, [30])[0], _logits(new_decoder(lite), [30])[0])


def test_the_memory_limit_holds_all(lite: Any) -> None:
    decoder = _warm(lite)
    buffers = _prefills(decoder)._buffer_bytes
    assert buffers > 1024 * 48 * 4
    decoder = _warm(lite, graph_bytes=buffers - 1)
    assert decoder.counts()["prefill_graph_graphs"] == 0
    assert decoder.memory()["graph_bytes"] == decoder.counts()["graph_graphs"] * SIZE
    decoder = _warm(lite, graph_bytes=buffers + 8 * SIZE)
    assert decoder.counts()["prefill_graph_graphs"] == 6
    assert decoder.counts()["graph_graphs"] == 2
    assert decoder.memory()["graph_bytes"] == buffers + 8 * SIZE


def test_modules_that_were_replaced(lite: Any, caplog: pytest.LogCaptureFixture) -> None:
    """What was captured reads the old weights."""
    model = copy.deepcopy(lite)
    decoder = _warm(model)
    _logits(decoder, [30])
    replays = decoder.counts()["prefill_graph_replays"]
    head = model.network.llm.lm_head
    model.network.llm.lm_head = torch.nn.Linear(head.in_features, head.out_features, bias=False)
    (found,) = _logits(decoder, [30])
    (expected,) = _logits(new_decoder(model), [30])
    assert torch.equal(found, expected)
    assert decoder.counts()["prefill_graph_replays"] == replays
    assert decoder.counts()["graph_graphs"] == 0
    assert "modules of the language model" in caplog.text
    assert any("modules" in reason for reason in trust.counts()["dropped"])


def test_nothing_in_a_capture_comes_from_the_host(lite: Any) -> None:
    network = copy.deepcopy(lite).to("meta").network
    model = LanguageModel(network.llm)
    pool = model.new_pool(64, 2**24)
    pool.fix(20)
    prefills = CapturedPrefills(model, pool, graphs_module.GraphStore(ROOM), ROOM)
    with torch.no_grad():
        prefills._allocate()
        for sizes in prefill_sizes():
            with launches_only():
                prefills.compute(sizes)  # what is made once: cosines and sines
            with device_only():
                logits = prefills.compute(sizes)
            assert logits.shape == (sizes.sequences, model.config.vocab_size)


def test_room(lite: Any) -> None:
    sizes = list(prefill_sizes())
    assert [s.tokens for s in sizes] == sorted((s.tokens for s in sizes), reverse=True)
    decoder = _warm(lite)
    layouts = []
    prefills = _prefills(decoder)
    logits = prefills.logits
    prefills.logits = lambda embeds, layout: (layouts.append(layout), logits(embeds, layout))[1]  # type: ignore[method-assign]
    _logits(decoder, [20, 30, 14])
    (layout,) = layouts
    assert PrefillSizes(64, 3, 64).hold(layout)
    assert not PrefillSizes(63, 3, 64).hold(layout)
    assert not PrefillSizes(64, 2, 64).hold(layout)
    assert not PrefillSizes(64, 3, 63).hold(layout)
