"""Where answers end: end tokens, lengths, stop strings; with log-probabilities, and in pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from decoding import END, VOCABULARY, Saying, new_decoder, numbered, prompt, tokens_of
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.decoding import Decoded, Generation
from pixelrefer_fast.decoding import decoder as decoder_module
from pixelrefer_fast.decoding.text import Detokenizer, TextStream


def _say(model: Any, text: str, streamed: bool = False, ends: bool = True, **options: Any) -> tuple[Decoded, list[str]]:
    """The answer of a model that says this, and its pieces."""
    decoder = new_decoder(model)
    said = [*tokens_of(text), END] if ends else tokens_of(text)
    decoder.language_model = Saying(model.network.llm, [said])
    options.setdefault("max_new_tokens", len(said))
    sequence = decoder.submit(numbered(0), Generation(**options), streamed=streamed)
    pieces = list(sequence.pieces()) if streamed else []
    return sequence.result(), pieces


@pytest.mark.parametrize(
    ("text", "stop", "expected", "reason"),
    [
        ("a cat. A dog.", ".", "a cat", "stop_string"),
        ("a cat. A dog.", ("dog", ". A"), "a cat", "stop_string"),
        ("a cat", "dog", "a cat", "stop"),
        ("a cat", "cats", "a cat", "stop"),
        ("a cat\n\nB", "\n\n", "a cat", "stop_string"),
        ("\n\nB", "\n\n", "", "stop_string"),
        ("a \n cat", "\n", "a", "stop_string"),
        ("né 你好 🐈 x", "好 🐈", "né 你", "stop_string"),
        ("aaab", "aab", "a", "stop_string"),
        ("ababac x", "abac", "ab", "stop_string"),
        ("one two three", ("two three", "wo"), "one t", "stop_string"),  # the first that is complete
    ],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_stop_strings(lite: Any, text: str, stop: Any, expected: str, reason: str, streamed: bool) -> None:
    answer, pieces = _say(lite, text, streamed, stop=stop)
    assert answer.text == expected
    assert answer.finish_reason == reason
    if streamed:
        assert "".join(pieces) == expected
    if reason == "stop_string":
        # the tokens are those up to the one that completed it
        said = lite.decoder.text(answer.tokens)
        stops = (stop,) if isinstance(stop, str) else stop
        decoded = Detokenizer(lite.tokenizer)
        assert any(s in decoded(answer.tokens) for s in stops)
        assert not any(s in decoded(answer.tokens[:-1]) for s in stops)
        assert said.startswith(expected)


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "ba", " ", "\n", "é", "🐈", "<"]), max_size=14).map("".join)


@given(text=WORDS, stops=st.lists(WORDS.filter(len), max_size=3))
def test_pieces_join_to_what_is_before_the_first_stop_string(lite: Any, text: str, stops: list[str]) -> None:
    """Compared with looking at the whole text after every character."""
    stream = TextStream(Detokenizer(lite.tokenizer), stops)
    pieces = [stream.feed(t) for t in tokens_of(text)]
    pieces.append(stream.finish())
    ends = [n for n in range(len(text) + 1) if any(s in text[:n] for s in stops)]
    expected = text
    if ends:
        seen = text[: ends[0]]
        expected = text[: min(seen.find(s) for s in stops if s in seen)]
    assert "".join(pieces) == expected.strip()
    assert stream.stopped == bool(ends)


def test_a_piece_waits_only_while_it_may_be_a_stop_string(lite: Any) -> None:
    stream = TextStream(Detokenizer(lite.tokenizer), ["STOP"])
    assert [stream.feed(t) for t in tokens_of("a SxSTx")] == ["a", "", "", " Sx", "", "", "STx"]


def test_what_follows_a_stop_string_is_not_computed_for_long(lite: Any) -> None:
    decoder = new_decoder(lite)
    decoder.language_model = Saying(lite.network.llm, [tokens_of("ab. cdefghijk")])
    decoder.submit(numbered(0), Generation(max_new_tokens=12, stop=".")).result()
    assert decoder.language_model.steps == 2


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_reasons(lite: Any, streamed: bool, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", ahead)
    for text, ends, count, reason in (
        ("abc", True, 9, "stop"),
        ("abc", True, 4, "stop"),  # the end token is the last that was allowed
        ("abc", True, 3, "length"),
        ("abcdef", False, 6, "length"),
    ):
        answer, _ = _say(lite, text, streamed, ends, max_new_tokens=count)
        assert answer.finish_reason == reason
        assert answer.text == text[:count]
        assert len(answer.tokens) == min(count, len(text) + ends)


def test_each_prompt_ends_by_itself(lite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends of all kinds in one batch, seen a step late."""
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", True)
    texts = ["a cat", "a", "a very long answer without end", "stop here. no more", "b"]
    decoder = new_decoder(lite, max_running=3)
    decoder.language_model = Saying(lite.network.llm, [[*tokens_of(t), END] for t in texts])
    options = [Generation(), Generation(), Generation(max_new_tokens=9), Generation(stop="."), Generation()]
    sequences = [decoder.submit(numbered(i, 3 + i), o) for i, o in enumerate(options)]
    found = [s.result() for s in sequences]
    assert [a.text for a in found] == ["a cat", "a", "a very lo", "stop here", "b"]
    assert [a.finish_reason for a in found] == ["stop", "stop", "length", "stop_string", "stop"]


# Log-probabilities


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("ahead", [False, True])
def test_log_probabilities(lite: Any, temperature: float, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the model as it is: without temperature, penalty and nucleus."""
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", ahead)
    options = {"max_new_tokens": 12, "temperature": temperature, "top_p": 0.9, "seed": 3}
    decoder = new_decoder(lite, penalty=1.4)
    sequences = [decoder.submit(prompt(9, i), Generation(logprobs=bool(i % 2), **options)) for i in range(4)]
    found = [s.result() for s in sequences]
    assert [a.logprobs is None for a in found] == [True, False, True, False]
    for i in (1, 3):
        steps = list(new_decoder(lite, penalty=1.4).steps(prompt(9, i), Generation(**options)))
        assert tuple(s.token for s in steps) == found[i].tokens
        expected = torch.stack([s.logits.log_softmax(0)[s.token] for s in steps])
        torch.testing.assert_close(torch.tensor(found[i].logprobs), expected, rtol=1e-5, atol=1e-5)


def test_log_probabilities_with_a_stop_string(lite: Any) -> None:
    answer, _ = _say(lite, "ab. c", stop=".", logprobs=True)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == len(answer.tokens) == 3
    certain = torch.eye(VOCABULARY)[0].log_softmax(0)[0]
    torch.testing.assert_close(torch.tensor(answer.logprobs), certain.expand(3))


# Options


@pytest.mark.parametrize("stop", ["", ("a", ""), [""], 3, (3,), None, {"a"}])
def test_wrong_stop_strings(stop: Any) -> None:
    with pytest.raises(ValueError, match=r"^stop: expected a text or some, none of them empty, got "):
        Generation(stop=stop)


def test_stop_strings_are_a_tuple() -> None:
    assert Generation(stop="x").stop == Generation(stop=["x"]).stop == ("x",)  # type: ignore[arg-type]
    assert Generation().stop == ()
    hash(Generation(stop=["a", "b"]))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, 1, "yes"])
def test_wrong_logprobs(value: Any) -> None:
    with pytest.raises(ValueError, match=r"^logprobs: expected True or False, got "):
        Generation(logprobs=value)


def test_pieces_of_a_sequence_that_is_not_streamed(lite: Any) -> None:
    sequence = new_decoder(lite).submit(prompt(3), Generation(max_new_tokens=1))
    with pytest.raises(RuntimeError, match="expected one submitted with streamed=True"):
        sequence.pieces()
