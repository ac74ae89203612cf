"""Many prompts at once: each answer as if it were alone, whoever else is there, comes, goes or fails."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from decoding import alone, answers, drain, new_decoder, prompt
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelrefer_fast.decoding import Decoder, Generation, PromptEmbeds, Sequence
from pixelrefer_fast.decoding import decoder as decoder_module

LENGTHS = [5, 40, 1, 33, 32, 17, 70, 9]


@pytest.fixture(params=["lite", "full"])
def model(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=[False, True], ids=["at_once", "ahead"])
def readbacks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU reads a step's output at once, or as late as a host of a GPU would."""
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", request.param)


def _submit(decoder: Decoder, options: list[Generation]) -> list[Sequence]:
    return [
        decoder.submit(prompt(n, seed), option) for seed, (n, option) in enumerate(zip(LENGTHS, options, strict=True))
    ]


def _alone(model: Any, options: list[Generation], **settings: Any) -> list[tuple[int, ...]]:
    return [
        alone(model, prompt(n, seed), option, **settings)
        for seed, (n, option) in enumerate(zip(LENGTHS, options, strict=True))
    ]


@pytest.mark.usefixtures("readbacks")
@pytest.mark.parametrize("slots", [1, 3, 64])
def test_as_if_alone(model: Any, slots: int) -> None:
    options = [Generation(max_new_tokens=3 + 4 * i) for i in range(len(LENGTHS))]
    decoder = new_decoder(model, max_running=slots, penalty=1.3)
    assert answers(_submit(decoder, options)) == _alone(model, options, penalty=1.3)
    assert decoder.memory()["cache_used"] == decoder.memory()["prefix_bytes"] == 0


@pytest.mark.usefixtures("readbacks")
def test_sampled_as_if_alone(lite: Any) -> None:
    """The seed decides, not the slot, the neighbours or the order."""
    options = [
        Generation(max_new_tokens=12, temperature=t, top_p=p, seed=7) for t in (0.0, 0.7, 1.5, 3.0) for p in (1, 0.8)
    ]
    expected = _alone(lite, options)
    assert len(set(expected)) == len(expected)
    for slots in (3, 64):
        assert answers(_submit(new_decoder(lite, max_running=slots), options)) == expected


@given(
    wanted=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 9), st.integers(0, 6)), min_size=1, max_size=8),
    slots=st.integers(1, 5),
)
@settings(max_examples=15)
def test_in_any_order_of_arrival(lite: Any, wanted: list[tuple[int, int, int]], slots: int) -> None:
    """Each prompt comes so many rounds after the one before."""
    decoder = new_decoder(lite, max_running=slots, penalty=1.2)
    sequences = []
    for seed, (length, count, rounds) in enumerate(wanted):
        sequences.append(decoder.submit(prompt(length, seed), Generation(max_new_tokens=count)))
        for _ in range(rounds):
            decoder.advance()
    single = new_decoder(lite, max_running=1, penalty=1.2)
    expected = [
        single.submit(prompt(length, seed), Generation(max_new_tokens=count)).result().tokens
        for seed, (length, count, _) in enumerate(wanted)
    ]
    assert answers(sequences) == expected


def test_logits_with_and_without_neighbours(model: Any) -> None:
    options = Generation(max_new_tokens=8)
    wanted = list(new_decoder(model).steps(prompt(40, 1), options))
    decoder = new_decoder(model)
    others = [decoder.submit(prompt(n, seed), Generation(max_new_tokens=30)) for seed, n in enumerate(LENGTHS)]
    found = list(decoder.steps(prompt(40, 1), options))
    drain(decoder)
    assert all(s.done for s in others)
    assert [s.token for s in found] == [s.token for s in wanted]
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.logits, b.logits, rtol=1e-5, atol=1e-5)


def test_one_pass_for_all_prompts_and_one_step_for_all_tokens(lite: Any) -> None:
    decoder = new_decoder(lite)
    _submit(decoder, [Generation(max_new_tokens=6)] * len(LENGTHS))
    drain(decoder)
    counts = decoder.counts()
    assert counts["passes"] == 1
    assert counts["prefill_tokens"] == sum(LENGTHS)
    assert counts["steps"] == 5  # the pass decides the first tokens
    assert counts["tokens"] == 6 * len(LENGTHS)


def test_a_pass_has_a_budget(lite: Any) -> None:
    decoder = new_decoder(lite, max_prefill_tokens=45)
    sequences = _submit(decoder, [Generation(max_new_tokens=2)] * len(LENGTHS))
    passes = []
    while decoder.counts()["waiting"] or decoder.counts()["starting"]:
        before = decoder.counts()["prefill_tokens"]
        decoder.advance()
        passes.append(decoder.counts()["prefill_tokens"] - before)
    # 5 + 40, 1 + 33 + 11 of 32, 21 + 17 + 7 of 70, 45, 18 + 9
    assert passes == [45, 45, 45, 45, 27]
    assert decoder.counts()["passes"] == 5
    assert answers(sequences) == _alone(lite, [Generation(max_new_tokens=2)] * len(LENGTHS))


@pytest.mark.usefixtures("readbacks")
def test_no_step_beyond_the_longest_answer(lite: Any) -> None:
    decoder = new_decoder(lite)
    sequences = [decoder.submit(prompt(9, seed), Generation(max_new_tokens=33)) for seed in range(4)]
    drain(decoder)
    assert all(len(s.result().tokens) == 33 for s in sequences)
    counts = decoder.counts()
    assert counts["readbacks"] == 33  # one of the pass, one of each step
    assert counts["steps"] == 32
    assert counts["slot_steps"] == 4 * 32


# Failures and ends


@pytest.mark.usefixtures("readbacks")
def test_what_fails_fails_alone(lite: Any) -> None:
    """A prompt that is not finite leaves neither its neighbours nor those who get its blocks anything of it."""
    decoder = new_decoder(lite, cache_bytes=40 * 2 * 2 * 32 * 2 * 12 * 4)
    options = Generation(max_new_tokens=10)
    bad = torch.full((40, 48), torch.nan)
    sequences = [decoder.submit(x, options) for x in (prompt(20, 0), bad, prompt(50, 1))]
    with pytest.raises(FloatingPointError, match=r"^the logits of token 0 are not finite in torch.float32"):
        sequences[1].result()
    later = [decoder.submit(prompt(30 + i, i), options) for i in range(8)]
    assert answers([sequences[0], sequences[2]]) == [
        alone(lite, prompt(20, 0), options),
        alone(lite, prompt(50, 1), options),
    ]
    assert answers(later) == [alone(lite, prompt(30 + i, i), options) for i in range(8)]


@pytest.mark.usefixtures("readbacks")
def test_cancelling(lite: Any) -> None:
    decoder = new_decoder(lite, max_running=2)
    options = Generation(max_new_tokens=40)
    running, stays, waiting = (decoder.submit(prompt(9, seed), options) for seed in range(3))
    decoder.advance()
    decoder.advance()
    running.cancel()
    waiting.cancel()
    decoder.advance()
    assert running.done
    assert waiting.done
    expected = alone(lite, prompt(9, 0), options)
    answer = running.result()
    assert answer.finish_reason == waiting.result().finish_reason == "cancelled"
    assert 0 < len(answer.tokens) < 40
    assert answer.tokens == expected[: len(answer.tokens)]
    assert answer.text == lite.decoder.text(answer.tokens)
    assert waiting.result().tokens == ()
    assert stays.result().tokens == alone(lite, prompt(9, 1), options)
    assert stays.result().finish_reason == "length"
    stays.cancel()
    assert stays.result().finish_reason == "length"
    assert decoder.memory()["cache_used"] == 0


def test_a_stream_that_is_closed_is_cancelled(lite: Any) -> None:
    decoder = new_decoder(lite)
    pieces = decoder.stream(prompt(9), Generation(max_new_tokens=1000))
    next(pieces)
    pieces.close()
    assert drain(decoder) <= 1
    assert decoder.counts()["steps"] < 50


class _Failing:
    """Makes a method raise at given calls."""

    def __init__(self, function: Any, error: BaseException, calls: set[int]) -> None:
        self.function, self.error, self.calls, self.count = function, error, calls, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count in self.calls:
            raise self.error
        return self.function(*args, **kwargs)


@pytest.mark.usefixtures("readbacks")
@pytest.mark.parametrize("method", ["prefill", "step"])
@pytest.mark.parametrize("calls", [{1}, {2}, {1, 2, 3}], ids=str)
def test_out_of_memory_makes_rounds_smaller(
    lite: Any, method: str, calls: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = new_decoder(lite, penalty=1.2, max_prefill_tokens=50 if calls == {2} else 1000)
    options = [Generation(max_new_tokens=7 + i) for i in range(len(LENGTHS))]
    sequences = _submit(decoder, options)
    model = decoder.language_model
    failing = _Failing(getattr(model, method), torch.OutOfMemoryError("no more"), calls)
    monkeypatch.setattr(model, method, failing)
    assert answers(sequences) == _alone(lite, options, penalty=1.2)
    assert failing.count > max(calls)
    counts = decoder.counts()
    assert counts["halved"] == len(calls) if method == "prefill" else counts["halved"] >= 1
    assert counts["most_running"] < len(LENGTHS)
    assert decoder.memory()["cache_used"] == 0


def test_a_prompt_that_has_no_memory_all_alone_fails(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new_decoder(lite)
    model = decoder.language_model
    prefill = model.prefill

    def small(embeds: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(embeds) > 45:
            raise torch.OutOfMemoryError("no more")
        return prefill(embeds, *args)

    monkeypatch.setattr(model, "prefill", small)
    options = [Generation(max_new_tokens=4)] * len(LENGTHS)
    sequences = _submit(decoder, options)
    drain(decoder)
    expected = _alone(lite, options)
    for n, sequence, wanted in zip(LENGTHS, sequences, expected, strict=True):
        if n > 45:
            assert isinstance(sequence.error, torch.OutOfMemoryError)
            with pytest.raises(torch.OutOfMemoryError):
                sequence.result()
        else:
            assert sequence.result().tokens == wanted
    assert decoder.memory()["cache_used"] == 0


@pytest.mark.usefixtures("readbacks")
@pytest.mark.parametrize("method", ["prefill", "step"])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_an_interrupt_loses_nothing(lite: Any, method: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = new_decoder(lite, max_running=3, penalty=1.2)
    options = [Generation(max_new_tokens=6 + i, logprobs=True) for i in range(len(LENGTHS))]
    sequences = _submit(decoder, options)
    model = decoder.language_model
    monkeypatch.setattr(model, method, _Failing(getattr(model, method), KeyboardInterrupt(), {call}))
    interrupts = 0
    while not all(s.done for s in sequences):
        try:
            decoder.advance()
        except KeyboardInterrupt:
            interrupts += 1
    assert interrupts == (call <= 3 or method == "step" or decoder.counts()["passes"] >= call)
    assert answers(sequences) == _alone(lite, options, penalty=1.2)
    assert all(len(s.result().logprobs or ()) == len(s.result().tokens) for s in sequences)
    assert decoder.memory()["cache_used"] == 0


def test_several_threads(lite: Any) -> None:
    decoder = new_decoder(lite, max_running=4)
    options = Generation(max_new_tokens=9)
    found: dict[int, list[tuple[int, ...]]] = {}
    joined: dict[int, str] = {}

    def work(number: int) -> None:
        sequences = [decoder.submit(prompt(5 + number + i, 10 * number + i), options) for i in range(5)]
        joined[number] = "".join(decoder.stream(prompt(20, number), options))
        found[number] = answers(sequences)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for number in range(4):
        expected = [alone(lite, prompt(5 + number + i, 10 * number + i), options) for i in range(5)]
        assert found[number] == expected
        assert joined[number] == lite.decoder.text(alone(lite, prompt(20, number), options))


# Memory


def test_memory_is_bounded_and_those_without_room_wait(lite: Any) -> None:
    block = 2 * 2 * 32 * 2 * 12 * 4  # keys and values, layers, tokens, heads, head size, bytes
    decoder = new_decoder(lite, cache_bytes=7 * block)
    options = Generation(max_new_tokens=20)
    sequences = [decoder.submit(prompt(40, seed), options) for seed in range(9)]
    decoder.advance()
    assert decoder.counts()["running"] == 3  # six blocks of 60 tokens each, and the one for trash
    expected = [alone(lite, prompt(40, seed), options) for seed in range(9)]
    assert answers(sequences) == expected
    memory = decoder.memory()
    assert memory["cache_bytes"] == memory["cache_limit"] == 7 * block
    with pytest.raises(
        ValueError, match=r"^prompt: expected at most 192 tokens with its answer, .* got 180 and up to 20$"
    ):
        decoder.submit(prompt(180), options)


def test_memory_grows_with_need(lite: Any) -> None:
    decoder = new_decoder(lite)
    decoder.submit(prompt(10), Generation(max_new_tokens=4)).result()
    small = decoder.memory()["cache_bytes"]
    sequences = [decoder.submit(prompt(400, seed), Generation(max_new_tokens=100)) for seed in range(8)]
    drain(decoder)
    assert decoder.memory()["cache_bytes"] > small
    assert sequences[3].result().tokens == alone(lite, prompt(400, 3), Generation(max_new_tokens=100))
    decoder.clear()
    assert decoder.memory() == {}


def test_clearing_while_something_runs(lite: Any) -> None:
    decoder = new_decoder(lite)
    sequence = decoder.submit(prompt(4), Generation(max_new_tokens=4))
    with pytest.raises(RuntimeError, match="expected nothing to be decoded"):
        decoder.clear()
    sequence.result()
    decoder.clear()


@pytest.mark.usefixtures("readbacks")
def test_clearing_after_a_stream_was_closed(lite: Any) -> None:
    decoder = new_decoder(lite)
    pieces = decoder.stream(prompt(9), Generation(max_new_tokens=1000))
    next(pieces)
    pieces.close()
    decoder.clear()
    assert decoder.memory() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(0, 48), r"got \(0, 48\)"),
        (torch.zeros(48), r"got \(48,\)"),
        ([[0.0]], r"got \[\[0\.0\]\]"),
    ],
)
def test_no_prompt(lite: Any, given: Any, message: str) -> None:
    for call in (new_decoder(lite).submit, new_decoder(lite).stream):
        with pytest.raises(ValueError, match=rf"^prompt: expected embeddings of shape \(tokens, width\), {message}$"):
            call(PromptEmbeds(given), Generation())


@pytest.mark.parametrize(("name", "value"), [("max_running", 0), ("prefix_bytes", -1), ("graph_bytes", 1.5)])
def test_wrong_settings(lite: Any, name: str, value: Any) -> None:
    decoder = new_decoder(lite, **{name: value})
    with pytest.raises(ValueError, match=rf"^{name}: expected an integer of at least \d, got {value}$"):
        decoder.submit(prompt(3), Generation())


def test_settings_count_from_the_next_prompt_on_that_finds_nothing_running(lite: Any) -> None:
    decoder = new_decoder(lite, max_running=4)
    decoder.submit(prompt(9), Generation(max_new_tokens=4))
    decoder.advance()
    decoder.max_running = 2
    first = decoder._engine
    decoder.submit(prompt(9, 1), Generation(max_new_tokens=4))
    assert decoder._engine is first
    drain(decoder)
    decoder.submit(prompt(9), Generation(max_new_tokens=4)).result()
    assert decoder._engine is not first
    assert decoder.counts()["most_running"] == 2
    second = decoder._engine
    decoder.submit(prompt(9), Generation(max_new_tokens=4)).result()
    assert decoder._engine is second
