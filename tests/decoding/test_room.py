"""Who gets room in the cache, and when: first come, first served with bounded exceptions; memory that comes back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import alone, answers, drain, new_decoder, prompt

from pixelrefer_fast.decoding import Generation
from pixelrefer_fast.decoding import decoder as decoder_module
from pixelrefer_fast.decoding.engine import CALM
from pixelrefer_fast.decoding.waiting import PASSES

BLOCK = 2 * 2 * 32 * 2 * 12 * 4  # keys and values, layers, tokens, heads, head size, bytes
SHORT = Generation(max_new_tokens=4)


@pytest.fixture(params=[False, True], ids=["at_once", "ahead"])
def readbacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", request.param)


@pytest.mark.usefixtures("readbacks")
def test_what_fits_passes_what_does_not(lite: Any) -> None:
    """A short prompt does not wait for a long answer to end because a long prompt before it does."""
    decoder = new_decoder(lite, cache_bytes=11 * BLOCK)
    runs = decoder.submit(prompt(100), Generation(max_new_tokens=150))
    decoder.advance()
    long = decoder.submit(prompt(250, 1), SHORT)
    short = decoder.submit(prompt(4, 2), SHORT)
    for _ in range(6):
        decoder.advance()
    assert short.done
    assert not runs.done
    assert not long.done
    assert answers([short, long, runs]) == [
        alone(lite, prompt(4, 2), SHORT),
        alone(lite, prompt(250, 1), SHORT),
        alone(lite, prompt(100), Generation(max_new_tokens=150)),
    ]


@pytest.mark.usefixtures("readbacks")
def test_what_does_not_fit_is_passed_so_often_and_no_more(lite: Any) -> None:
    """Short prompts keep coming, so that there is never much room: the long one starts all the same."""
    decoder = new_decoder(lite, cache_bytes=11 * BLOCK)
    options = Generation(max_new_tokens=20)
    shorts = [decoder.submit(prompt(33, seed), options) for seed in range(4)]
    decoder.advance()
    long = decoder.submit(prompt(250, 99), SHORT)
    rounds = 0
    while not long.done:
        shorts.append(decoder.submit(prompt(33, len(shorts)), options))
        decoder.advance()
        rounds += 1
        assert rounds < 200, "it waits for ever"
    started = [s for s in shorts[4:] if s.launched or s.done]
    assert 0 < len(started) <= PASSES + 1
    assert long.result().tokens == alone(lite, prompt(250, 99), SHORT)
    assert all(s.result().tokens == alone(lite, prompt(33, seed), options) for seed, s in enumerate(shorts[:6]))


@pytest.mark.usefixtures("readbacks")
def test_blocks_are_taken_as_an_answer_grows(lite: Any) -> None:
    """Prompts that would fill the cache with the longest answers they may have run together."""
    decoder = new_decoder(lite, cache_bytes=11 * BLOCK, penalty=1.2)
    options = Generation(max_new_tokens=200)
    sequences = [decoder.submit(prompt(30, seed), options) for seed in range(4)]
    for _ in range(3):
        decoder.advance()
    assert decoder.counts()["running"] == 4
    assert decoder.memory()["cache_used"] == 4 * 2 * BLOCK
    assert answers(sequences) == [alone(lite, prompt(30, seed), options, penalty=1.2) for seed in range(4)]
    assert decoder.memory()["cache_used"] == 0


@pytest.mark.usefixtures("readbacks")
@pytest.mark.parametrize("sampled", [False, True])
def test_who_came_last_makes_room_and_goes_on_later(lite: Any, sampled: bool) -> None:
    decoder = new_decoder(lite, cache_bytes=9 * BLOCK, penalty=1.1)
    options = [
        Generation(max_new_tokens=150, temperature=float(sampled), seed=i, logprobs=bool(i % 2)) for i in range(4)
    ]
    decoder.end_ids = frozenset()
    sequences = [decoder.submit(prompt(10 + i, i), option) for i, option in enumerate(options)]
    drain(decoder)
    expected = [
        alone(lite, prompt(10 + i, i), option, penalty=1.1, end_ids=frozenset()) for i, option in enumerate(options)
    ]
    assert answers(sequences) == expected
    assert all(len(tokens) == 150 for tokens in expected)
    assert decoder.counts()["displaced"] > 0
    assert decoder.counts()["halved"] == 0
    # the first of them had its place from its first token to its last
    assert sequences[0].result().cached_tokens == 0
    assert decoder.memory()["cache_used"] == 0


def test_as_many_at_once_again_after_a_calm_while(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new_decoder(lite, max_running=8, end_ids=frozenset())
    step, failures = decoder.language_model.step, [torch.OutOfMemoryError("no more")] * 3

    def short(*args: Any) -> torch.Tensor:
        if failures:
            raise failures.pop()
        return step(*args)

    monkeypatch.setattr(decoder.language_model, "step", short)
    options = Generation(max_new_tokens=CALM)
    sequences = [decoder.submit(prompt(5, seed), options) for seed in range(40)]
    most = [decoder.counts()["running"]]
    while decoder.advance():
        most.append(decoder.counts()["running"])
    assert not failures
    assert min(most[2:10]) == 1
    assert max(most[-3 * CALM :]) == 8
    assert decoder.counts()["most_running"] == 8
    assert answers(sequences) == [alone(lite, prompt(5, seed), options, end_ids=frozenset()) for seed in range(40)]
