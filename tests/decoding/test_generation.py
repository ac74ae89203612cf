"""Options of a request: what they do to its answer, alone and beside requests with other options."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

import pytest
import torch
from decoding import END, VOCABULARY, Saying, alone, answers, new_decoder, numbered, prompt, tokens_of
from fuzzing import Hostile
from torch.utils._python_dispatch import TorchDispatchMode

from pixelrefer_fast.decoding import Decoder, Generation
from pixelrefer_fast.decoding import decoder as decoder_module

EACH: list[dict[str, Any]] = [
    {},
    {"temperature": 1.5},
    {"temperature": 1.5, "top_k": 5},
    {"temperature": 2.0, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
    {"temperature": 2.0, "top_k": 0, "top_p": 0.6},
    {"repetition_penalty": 1.6},
    {"presence_penalty": 1.5, "frequency_penalty": -0.5, "temperature": 1.0},
    {"logit_bias": {40: 100.0}},
    {"logit_bias": {40: -100.0, 41: 3.5, 42: -2}, "temperature": 1.0, "frequency_penalty": 2.0},
    {"logprobs": True, "top_logprobs": 4},
    {"logprobs": True, "temperature": 1.0},
    {"min_new_tokens": 10, "stop_token_ids": [82, 5, 70]},
    {"stop_token_ids": list(range(0, VOCABULARY, 5)), "temperature": 3.0},
]


def _options(i: int) -> Generation:
    return Generation(max_new_tokens=10 + i % 4, seed=i, **EACH[i])


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("slots", [4, 64])
def test_as_if_alone(lite: Any, slots: int, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", ahead)
    asked = [(prompt(7 + i, i), _options(i)) for i in range(len(EACH))]
    decoder = new_decoder(lite, max_running=slots, penalty=1.1)
    sequences = [decoder.submit(*each) for each in asked]
    assert answers(sequences) == [alone(lite, *each, penalty=1.1) for each in asked]
    singles = [new_decoder(lite, penalty=1.1).submit(*each).result() for each in asked]
    for sequence, single in zip(sequences, singles, strict=True):
        found = sequence.result()
        assert found.finish_reason == single.finish_reason
        assert (found.logprobs is None) == (single.logprobs is None)
        if found.logprobs is not None:
            torch.testing.assert_close(torch.tensor(found.logprobs), torch.tensor(single.logprobs), rtol=0, atol=1e-5)


def test_options_take_effect(lite: Any) -> None:
    """Each of them changes a greedy or a sampled answer."""
    plain = alone(lite, prompt(9), Generation(max_new_tokens=10))
    sampled = alone(lite, prompt(9), Generation(max_new_tokens=10, temperature=2.0, seed=1))
    for i in (5, 7, 11):
        assert alone(lite, prompt(9), Generation(max_new_tokens=10, **EACH[i])) != plain
    for i in (3, 4, 6, 8, 12):
        assert alone(lite, prompt(9), Generation(max_new_tokens=10, seed=1, **EACH[i])) != sampled
    assert set(alone(lite, prompt(9), Generation(max_new_tokens=10, logit_bias={40: 100}))) == {40}
    assert alone(lite, prompt(9), Generation(max_new_tokens=10, temperature=2.0, top_k=1)) == plain


def test_each_token_once_with_a_large_penalty(lite: Any) -> None:
    bias = dict.fromkeys(range(40, 52), 100.0)
    options = Generation(max_new_tokens=12, logit_bias=bias, presence_penalty=2.0, repetition_penalty=50.0)
    assert sorted(alone(lite, prompt(9), options)) == list(range(40, 52))


@pytest.mark.parametrize(("own", "wanted"), [(None, {1}), (0, None), (2, {1, 2})])
def test_the_checkpoint_says_top_k(lite: Any, own: int | None, wanted: set[int] | None) -> None:
    """generation_config.json has 20 for Qwen2.5; a request's own wins, and 0 is all."""
    decoder = Decoder(lite.network.llm, lite.tokenizer, {"top_k": 1})
    seeds = range(40)
    options = [Generation(max_new_tokens=1, temperature=50.0, seed=seed, top_k=own) for seed in seeds]
    found = {tokens for (tokens,) in answers([decoder.submit(prompt(9), o) for o in options])}
    if wanted is None:
        assert len(found) > 10
    else:
        assert len(found) == len(wanted)


def test_the_checkpoint_says_the_repetition_penalty(lite: Any) -> None:
    options = Generation(max_new_tokens=12)
    penalised = alone(lite, prompt(9), options, penalty=1.9)
    assert penalised == alone(lite, prompt(9), Generation(max_new_tokens=12, repetition_penalty=1.9))
    plain = alone(lite, prompt(9), options)
    assert plain != penalised
    assert plain == alone(lite, prompt(9), Generation(max_new_tokens=12, repetition_penalty=1.0), penalty=1.9)


# Ends


def _said(lite: Any, text: str, **options: Any) -> Any:
    decoder = new_decoder(lite)
    decoder.language_model = Saying(lite.network.llm, [[*tokens_of(text), END]])
    streamed = options.pop("streamed", False)
    sequence = decoder.submit(numbered(0), Generation(**options), streamed=streamed)
    if streamed:
        assert "".join(sequence.pieces()) == sequence.result().text
    return sequence.result()


@pytest.mark.parametrize("streamed", [False, True])
def test_stop_token_ids(lite: Any, streamed: bool) -> None:
    (x,) = tokens_of("x")
    found = _said(lite, "a fox runs", stop_token_ids=[x], streamed=streamed)
    assert (found.text, found.finish_reason) == ("a fo", "stop")
    assert found.tokens == tuple(tokens_of("a fox"))
    assert _said(lite, "a fox", stop_token_ids=[x], max_new_tokens=5, streamed=streamed).finish_reason == "stop"
    assert _said(lite, "a fox", stop_token_ids=[tokens_of("y")[0]], streamed=streamed).text == "a fox"


@pytest.mark.parametrize("streamed", [False, True])
def test_min_new_tokens(lite: Any, streamed: bool) -> None:
    """No end and no stop string before; what would have ended the answer is not said."""
    (x,) = tokens_of("x")
    found = _said(lite, "a fox runs. it. ends", stop_token_ids=[x], min_new_tokens=8, streamed=streamed)
    assert x not in found.tokens
    found = _said(lite, "it. is. so.", stop=".", min_new_tokens=5, streamed=streamed)
    assert (found.text, found.finish_reason) == ("it. is", "stop_string")
    assert len(_said(lite, "ab", min_new_tokens=9, max_new_tokens=9, streamed=streamed).tokens) == 9
    assert END not in _said(lite, "ab", min_new_tokens=9, max_new_tokens=9, streamed=streamed).tokens


def test_top_log_probabilities(lite: Any) -> None:
    options = {"max_new_tokens": 6, "temperature": 1.5, "seed": 4, "presence_penalty": 1.0}
    found = new_decoder(lite).submit(prompt(9), Generation(**options, logprobs=True, top_logprobs=3)).result()
    steps = list(new_decoder(lite).steps(prompt(9), Generation(**options)))
    assert tuple(s.token for s in steps) == found.tokens
    assert found.top_logprobs is not None
    assert len(found.top_logprobs) == len(found.tokens) == len(found.logprobs)
    for step, likely, logprob in zip(steps, found.top_logprobs, found.logprobs, strict=True):
        every = step.logits.log_softmax(0)
        wanted = every.topk(3)
        assert [token for token, _ in likely] == wanted.indices.tolist()
        torch.testing.assert_close(torch.tensor([x for _, x in likely]), wanted.values, rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.tensor(logprob), every[step.token], rtol=0, atol=1e-5)
    without = new_decoder(lite).submit(prompt(9), Generation(**options, logprobs=True)).result()
    assert without.top_logprobs is None
    assert without.logprobs == found.logprobs


# What a step costs


class _Work(TorchDispatchMode):
    """Sorts, widths of top-k, and rows of the vocabulary in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.sorts = 0
        self.rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.sorts += "sort" in func.__name__
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64 and found.shape[-1:] == (VOCABULARY,):
            self.rows = max(self.rows, found.numel() // VOCABULARY)
        return found


@pytest.mark.parametrize(("options", "rows"), [({"top_k": 8}, 0), ({"top_p": 0.8}, 1), ({}, 1)])
def test_only_who_samples_pays_and_nothing_is_sorted(lite: Any, options: dict[str, Any], rows: int) -> None:
    decoder = new_decoder(lite)
    for i in range(7):
        decoder.submit(prompt(9, i), Generation(max_new_tokens=6))
    sequence = decoder.submit(prompt(9, 8), Generation(max_new_tokens=6, temperature=1.0, **options))
    with _Work() as work:
        sequence.result()
    assert decoder.counts()["slot_steps"] > 0
    assert (work.sorts, work.rows) == (0, rows)


# Wrong ones


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k: expected an integer of at least 0, got -1"),
        ({"min_p": 1.5}, "min_p: expected a number from 0 to 1, got 1.5"),
        ({"repetition_penalty": 0}, "repetition_penalty: expected a number above 0, got 0"),
        ({"presence_penalty": 3}, "presence_penalty: expected a number from -2 to 2, got 3"),
        ({"frequency_penalty": "x"}, "frequency_penalty: expected a number from -2 to 2, got 'x'"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, "min_new_tokens: expected an integer from 0 to 4, got 9"),
        ({"stop_token_ids": 5}, "stop_token_ids: expected at most 1024 token ids, got 5"),
        ({"logit_bias": {"3": 1}}, "logit_bias: expected numbers from -100 to 100 by token id, got {'3': 1}"),
        ({"logit_bias": {3: 101}}, "logit_bias: expected numbers from -100 to 100 by token id, got {3: 101}"),
        ({"logit_bias": [1]}, "logit_bias: expected numbers by token id, at most 1024, got [1]"),
        ({"n": 0}, "n: expected an integer from 1 to 128, got 0"),
        ({"top_logprobs": 3}, "top_logprobs: expected 0 without logprobs=True, got 3"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs: expected an integer from 0 to 20, got 21"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Generation(**options)


@pytest.mark.parametrize("value", [10**400, *map(Hostile, range(3))], ids=["large", "unsaid", "endless", "escapes"])
@pytest.mark.parametrize("name", [field.name for field in fields(Generation) if field.init])
def test_values_that_no_message_can_show(name: str, value: object) -> None:
    if name in ("max_new_tokens", "top_k") and value == 10**400:  # as many as there are
        Generation(**{name: value})  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=rf"^{name}: expected") as told:
        Generation(**{name: value})  # type: ignore[arg-type]
    assert len(str(told.value)) <= 200


@pytest.mark.parametrize("size", [2**31, 2**63, 10**400], ids=["32 bits", "64 bits", "more"])
def test_numbers_beyond_any_answer_are_as_many_as_there_are(
    lite: Any, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "context_length", 64)  # the model's own takes half a minute to fill
    long = {"max_new_tokens": 5, "temperature": 2.0, "seed": 1}
    every = alone(lite, prompt(9), Generation(**long, top_k=lite.network.llm.config.vocab_size))
    assert alone(lite, prompt(9), Generation(**long, top_k=size)) == every
    whole = alone(lite, prompt(9), Generation(max_new_tokens=lite.decoder.context_length, min_new_tokens=0))
    assert alone(lite, prompt(9), Generation(max_new_tokens=size)) == whole
    least = lite.decoder.context_length
    longest = alone(lite, prompt(9), Generation(max_new_tokens=least, min_new_tokens=least))
    assert alone(lite, prompt(9), Generation(max_new_tokens=size, min_new_tokens=size)) == longest


@pytest.mark.parametrize("name", ["logit_bias", "stop_token_ids"])
def test_tokens_outside_the_vocabulary(lite: Any, name: str) -> None:
    vocabulary = lite.network.llm.config.vocab_size
    given = {"logit_bias": {vocabulary: 1.0}, "stop_token_ids": (vocabulary,)}[name]
    with pytest.raises(ValueError, match=rf"^{name}: expected token ids below {vocabulary}, got {vocabulary}$"):
        new_decoder(lite).submit(prompt(3), Generation(**{name: given}))


@pytest.mark.parametrize("option", ["num_beams", "structured_outputs", "do_sample", "max_tokens"])
def test_what_other_engines_do_is_refused_by_name(lite: Any, option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option}: no option of this engine; .*(vLLM|temperature|max_new_tokens)"):
        lite.describe(torch.zeros(30, 30, 3, dtype=torch.uint8).numpy(), [[2, 2, 20, 20]], **{option: 2})
