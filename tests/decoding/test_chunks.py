"""Prompts that are computed in parts between steps: the same answers, and nobody waits for a whole prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import alone, answers, drain, new_decoder, prompt

from pixelrefer_fast.decoding import Boundary, Decoder, Generation, PromptEmbeds
from pixelrefer_fast.decoding import decoder as decoder_module

CHUNK = 24
BLOCK = 2 * 2 * 32 * 2 * 12 * 4  # keys and values, layers, tokens, heads, head size, bytes
LONG = 300


@pytest.fixture(params=["lite", "full"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[False, True], ids=["at_once", "ahead"], autouse=True)
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", request.param)
    monkeypatch.setattr(decoder_module, "CHUNK_TOKENS", CHUNK)


class Watched:
    """Tokens of prompts before each step of a decoder, and how many sequences each step had."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        model = decoder.language_model
        self.between, self.steps = [0], [0]
        prefill, step = model.prefill, model.step

        def counting(embeds: torch.Tensor, *args: Any) -> torch.Tensor:
            self.between[-1] += len(embeds)
            return prefill(embeds, *args)

        def stepping(tokens: torch.Tensor, *args: Any) -> torch.Tensor:
            self.between.append(0)
            self.steps.append(len(tokens))
            return step(tokens, *args)

        monkeypatch.setattr(model, "prefill", counting)
        monkeypatch.setattr(model, "step", stepping)


def test_nobody_waits_for_more_than_a_chunk(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new_decoder(model, end_ids=frozenset())
    watched = Watched(decoder, monkeypatch)
    options = Generation(max_new_tokens=40)
    runs = decoder.submit(prompt(10), options)
    while not decoder.counts()["steps"]:
        decoder.advance()
    others = [decoder.submit(prompt(n, n), Generation(max_new_tokens=3)) for n in (LONG, 5, 2 * CHUNK, 7, 60)]
    drain(decoder)
    assert watched.between[0] == 10
    # each step of the one that runs is at most a chunk after the one before, and prompts take no more rounds than that
    assert max(watched.between[1:]) == CHUNK
    total = LONG + 5 + 2 * CHUNK + 7 + 60
    assert sum(map(bool, watched.between[1:])) == -(-total // CHUNK)
    assert answers([runs, *others]) == [
        alone(model, prompt(10), options, end_ids=frozenset()),
        *(
            alone(model, prompt(n, n), Generation(max_new_tokens=3), end_ids=frozenset())
            for n in (LONG, 5, 2 * CHUNK, 7, 60)
        ),
    ]
    assert decoder.memory()["cache_used"] == 0


def test_what_runs_gets_a_token_in_turn_with_ever_new_prompts(lite: Any) -> None:
    """Short prompts that come in each round and end with their first token do not keep it from stepping."""
    decoder = new_decoder(lite, end_ids=frozenset())
    runs = decoder.submit(prompt(10), Generation(max_new_tokens=30))
    rounds = 0
    while not runs.done:
        decoder.submit(prompt(5, rounds), Generation(max_new_tokens=1))
        decoder.advance()
        rounds += 1
        assert rounds < 80, "it waits for those that come"


def test_alone_a_prompt_is_one_pass(model: Any) -> None:
    """Nobody waits for it: no part of it is computed apart, as recorded answers were made."""
    decoder = new_decoder(model)
    sequence = decoder.submit(prompt(LONG), Generation(max_new_tokens=4))
    assert len(sequence.result().tokens) > 0
    assert (decoder.counts()["passes"], decoder.counts()["prefill_tokens"]) == (1, LONG)


def test_logits_after_parts(model: Any) -> None:
    options = Generation(max_new_tokens=6)
    decoder = new_decoder(model)
    others = decoder.submit(prompt(9, 1), Generation(max_new_tokens=60))
    decoder.advance()
    found = list(decoder.steps(prompt(LONG, 2), options))
    assert decoder.counts()["passes"] == 1 + -(-LONG // CHUNK)
    wanted = list(new_decoder(model).steps(prompt(LONG, 2), options))
    assert [s.token for s in found] == [s.token for s in wanted]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)
    others.cancel()
    drain(decoder)


def test_a_prefix_is_shared_once_its_part_is_computed(model: Any) -> None:
    """Two prompts with one beginning: the second computes its own end only, and waits for no more than the prefix."""
    decoder = new_decoder(model, end_ids=frozenset())
    runs = decoder.submit(prompt(10), Generation(max_new_tokens=60))
    decoder.advance()
    start = prompt(2 * CHUNK + 5, 99)
    given = [
        PromptEmbeds(torch.cat([start, prompt(n, n)]), (Boundary(20, b"a"), Boundary(len(start), b"b")))
        for n in (100, 8, 9)
    ]
    options = Generation(max_new_tokens=5)
    sequences = [decoder.submit(p, options) for p in given]
    assert answers(sequences) == [alone(model, p.embeds, options, end_ids=frozenset()) for p in given]
    assert [s.cached_tokens for s in sequences] == [0, len(start), len(start)]
    assert decoder.counts()["prefill_tokens"] == 10 + len(start) + 100 + 8 + 9
    assert runs.result().tokens == alone(model, prompt(10), Generation(max_new_tokens=60), end_ids=frozenset())


def test_a_prompt_in_parts_is_cancelled(lite: Any) -> None:
    decoder = new_decoder(lite, end_ids=frozenset())
    runs = decoder.submit(prompt(10), Generation(max_new_tokens=20))
    decoder.advance()
    long = decoder.submit(prompt(LONG, 1), Generation(max_new_tokens=4))
    for _ in range(4):
        decoder.advance()
    assert decoder.counts()["starting"] == 1
    long.cancel()
    decoder.advance()
    assert long.result().tokens == ()
    assert decoder.counts()["starting"] == 0
    assert runs.result().tokens == alone(lite, prompt(10), Generation(max_new_tokens=20), end_ids=frozenset())
    assert decoder.memory()["cache_used"] == 0


@pytest.mark.parametrize("method", ["prefill", "step"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_a_prompt_in_parts_begins_again(
    lite: Any, method: str, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an interrupt and after a lack of memory, in a part or in a step beside it."""
    decoder = new_decoder(lite, end_ids=frozenset())
    options = Generation(max_new_tokens=25)
    sequences = [decoder.submit(prompt(10, i), options) for i in range(2)]
    decoder.advance()
    sequences.append(decoder.submit(prompt(LONG, 7), options))
    while decoder.counts()["starting"] == 0 or decoder.counts()["prefill_tokens"] < 20 + 3 * CHUNK:
        decoder.advance()
    function, failures = getattr(decoder.language_model, method), [error()]

    def failing(*args: Any) -> torch.Tensor:
        if failures:
            raise failures.pop()
        result: torch.Tensor = function(*args)
        return result

    monkeypatch.setattr(decoder.language_model, method, failing)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            drain(decoder)
    drain(decoder)
    assert not failures
    expected = [alone(lite, prompt(n, i), options, end_ids=frozenset()) for n, i in ((10, 0), (10, 1), (LONG, 7))]
    assert answers(sequences) == expected
    assert decoder.memory()["cache_used"] == 0


def test_a_prompt_in_parts_makes_room_for_who_came_first(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_module, "CHUNK_TOKENS", 4)
    decoder = new_decoder(lite, end_ids=frozenset(), cache_bytes=13 * BLOCK)
    options = Generation(max_new_tokens=150)
    first = [decoder.submit(prompt(30, i), options) for i in range(2)]
    decoder.advance()
    long = decoder.submit(prompt(200, 7), Generation(max_new_tokens=4))
    while not decoder.counts()["displaced"]:
        decoder.advance()
    assert long.launched == 0
    assert not long.blocks
    drain(decoder)
    assert answers([*first, long]) == [
        alone(lite, prompt(30, 0), options, end_ids=frozenset()),
        alone(lite, prompt(30, 1), options, end_ids=frozenset()),
        alone(lite, prompt(200, 7), Generation(max_new_tokens=4), end_ids=frozenset()),
    ]
    assert all(s.result().cached_tokens == 0 for s in first)
    assert decoder.memory()["cache_used"] == 0
