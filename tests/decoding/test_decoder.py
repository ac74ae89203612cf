"""Prompt embeddings to text: equal to transformers' generate, sampled within the nucleus, streamed without a seam."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pixelrefer_fast.decoding.decoder import Decoder
from pixelrefer_fast.decoding.options import Generation
from pixelrefer_fast.decoding.qwen import LanguageModel
from pixelrefer_fast.decoding.text import BROKEN

# The bundled tokenizer is byte-level: token i is byte BYTES[i], the printable ones first.
PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES = PRINTABLE + [b for b in range(256) if b not in PRINTABLE]
TOKEN_OF = {byte: token for token, byte in enumerate(BYTES)}
END, PAD, START, REGION, IMAGE = 256, 257, 258, 259, 260
VOCABULARY = 267


def _tokens(text: str | bytes) -> list[int]:
    return [TOKEN_OF[b] for b in (text.encode() if isinstance(text, str) else text)]


def _prompt(length: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(length, 48, generator=torch.Generator().manual_seed(seed))


class Scripted(LanguageModel):
    """A language model that says what it is told: the logits of each step are given."""

    def __init__(self, llm: Any, logits: list[torch.Tensor]) -> None:
        super().__init__(llm)
        self.left = list(logits)
        self.embedded: list[int] = []

    def prefill(self, embeds: torch.Tensor, layout: Any, pool: Any) -> torch.Tensor:
        return self.left.pop(0)[None]

    def step(self, tokens: torch.Tensor, lengths: torch.Tensor, table: torch.Tensor, pool: Any) -> torch.Tensor:
        self.embedded += tokens.tolist()
        return self.left.pop(0)[None]


def _scripted(model: Any, logits: list[torch.Tensor], **generation: Any) -> Decoder:
    decoder = Decoder(model.network.llm, model.tokenizer, generation)
    decoder.language_model = Scripted(model.network.llm, logits)
    return decoder


def _saying(model: Any, tokens: list[int]) -> Decoder:
    return _scripted(model, [torch.eye(VOCABULARY)[t] for t in tokens])


def _chosen(decoder: Decoder, options: Generation, prompt: torch.Tensor | None = None) -> list[int]:
    return [s.token for s in decoder.steps(_prompt() if prompt is None else prompt, options)]


# Greedy


def _generated(model: Any, prompt: torch.Tensor, count: int, **options: Any) -> Any:
    with torch.no_grad():
        return model.network.llm.generate(
            inputs_embeds=prompt[None],
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=END,
            pad_token_id=PAD,
            return_dict_in_generate=True,
            output_logits=True,
            **options,
        )


@pytest.mark.parametrize("kind", ["lite", "full"])
@pytest.mark.parametrize("seed", range(3))
def test_greedy_equals_transformers(request: pytest.FixtureRequest, kind: str, seed: int) -> None:
    model = request.getfixturevalue(kind)
    prompt = _prompt(5 + 6 * seed, seed)
    expected = _generated(model, prompt, 24)
    steps = list(model.decoder.steps(prompt, Generation(max_new_tokens=24)))
    assert [s.token for s in steps] == expected.sequences[0].tolist()
    for step, logits in zip(steps, expected.logits, strict=True):
        torch.testing.assert_close(step.logits, logits[0].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("penalty", ["1.1", [1.1]])
def test_a_penalty_that_is_no_number(lite: Any, penalty: object) -> None:
    with pytest.raises(ValueError, match=r"^repetition_penalty: expected a number, got .*1\.1"):
        Decoder(lite.network.llm, lite.tokenizer, {"repetition_penalty": penalty})


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`")
@pytest.mark.parametrize("penalty", [1.05, 1.3, 3.0, 0.7])
def test_repetition_penalty_equals_transformers(lite: Any, penalty: float) -> None:
    decoder = Decoder(lite.network.llm, lite.tokenizer, {"repetition_penalty": penalty})
    for seed in range(3):
        prompt = _prompt(seed=seed)
        expected = _generated(lite, prompt, 24, repetition_penalty=penalty)
        steps = list(decoder.steps(prompt, Generation(max_new_tokens=24)))
        assert [s.token for s in steps] == expected.sequences[0].tolist()
        for step, logits in zip(steps, expected.logits, strict=True):
            # raw logits, before the penalty
            torch.testing.assert_close(step.logits, logits[0].float(), rtol=1e-4, atol=1e-5)


def test_the_penalty_changes_what_is_said(lite: Any) -> None:
    plain = _chosen(lite.decoder, Generation(max_new_tokens=24))
    penalised = _chosen(
        Decoder(lite.network.llm, lite.tokenizer, {"repetition_penalty": 3.0}), Generation(max_new_tokens=24)
    )
    assert len(set(penalised)) > len(set(plain))


@pytest.mark.parametrize("value", [None, 1.0])
def test_no_penalty(lite: Any, value: float | None) -> None:
    decoder = Decoder(lite.network.llm, lite.tokenizer, {"repetition_penalty": value})
    options = Generation(max_new_tokens=12)
    assert _chosen(decoder, options) == _chosen(lite.decoder, options)


def test_decoding_stops_at_an_end_token_and_yields_it(lite: Any) -> None:
    decoder = _saying(lite, [*_tokens("ab"), END, *_tokens("c")])
    assert _chosen(decoder, Generation()) == [*_tokens("ab"), END]
    assert decoder.language_model.embedded == _tokens("ab")


@pytest.mark.parametrize(("ends", "expected"), [(300, {256, 300}), ([300, 301], {256, 300, 301}), (None, {256})])
def test_end_tokens_are_the_tokenizers_and_the_generation_configs(lite: Any, ends: Any, expected: set[int]) -> None:
    assert Decoder(lite.network.llm, lite.tokenizer, {"eos_token_id": ends}).end_ids == expected


def test_a_second_end_token_stops_too(lite: Any) -> None:
    script = [torch.eye(VOCABULARY)[t] for t in _tokens("abc")]
    decoder = _scripted(lite, script, eos_token_id=[END, TOKEN_OF[ord("b")]])
    assert _chosen(decoder, Generation()) == _tokens("ab")


def test_max_new_tokens(lite: Any) -> None:
    whole = _chosen(lite.decoder, Generation(max_new_tokens=10))
    assert len(whole) == 10
    assert _chosen(lite.decoder, Generation(max_new_tokens=1)) == whole[:1]


# Sampling


def test_sampling_repeats_with_its_seed(lite: Any) -> None:
    def sample(seed: int | None) -> list[int]:
        return _chosen(lite.decoder, Generation(max_new_tokens=12, temperature=1.0, seed=seed))

    assert sample(3) == sample(3)
    assert len({tuple(sample(seed)) for seed in (3, 4, 5, None, None)}) == 5
    torch.manual_seed(9)
    before = torch.rand(1)
    torch.manual_seed(9)
    sample(3)
    assert torch.equal(torch.rand(1), before), "sampling draws from the global generator"


def _nucleus(logits: torch.Tensor, temperature: float, top_p: float) -> set[int]:
    """The fewest tokens whose probability reaches top_p, found one by one in float64."""
    probabilities = (logits.double() / temperature).softmax(0).tolist()
    nucleus: set[int] = set()
    total = 0.0
    for token in sorted(range(len(probabilities)), key=lambda t: -probabilities[t]):
        if total >= top_p:
            break
        nucleus.add(token)
        total += probabilities[token]
    return nucleus


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.5), (0.3, 0.8), (2.0, 0.05), (1.0, 1e-9)])
def test_sampling_stays_within_the_nucleus(lite: Any, temperature: float, top_p: float) -> None:
    for seed in range(4):
        options = Generation(max_new_tokens=12, temperature=temperature, top_p=top_p, seed=seed)
        for step in lite.decoder.steps(_prompt(seed=seed), options):
            nucleus = _nucleus(step.logits, temperature, top_p)
            assert len(nucleus) < VOCABULARY
            assert step.token in nucleus


@pytest.mark.parametrize(
    ("temperature", "top_p", "expected"),
    [
        (1.0, 1.0, [0.5, 0.25, 0.125, 0.125]),
        (0.5, 1.0, [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        (1.0, 0.7, [2 / 3, 1 / 3, 0, 0]),
        (1.0, 0.8, [4 / 7, 2 / 7, 1 / 7, 0]),
        (1.0, 0.5, [1, 0, 0, 0]),
        (1.0, 0.01, [1, 0, 0, 0]),
    ],
)
def test_sampled_frequencies(lite: Any, temperature: float, top_p: float, expected: list[float]) -> None:
    draws = 800
    logits = torch.full((VOCABULARY,), -torch.inf)
    logits[[40, 30, 20, 10]] = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    # -inf is not finite: a large negative number stands for it
    decoder = _scripted(lite, [logits.clamp(min=-1e9)] * draws)
    options = Generation(max_new_tokens=draws, temperature=temperature, top_p=top_p, seed=0)
    counts = Counter(_chosen(decoder, options))
    # of equal probabilities the lower token comes first in the nucleus
    order = [40, 30, 10, 20]
    for token, probability in zip(order, expected, strict=True):
        assert abs(counts[token] / draws - probability) < 0.06
        assert (counts[token] == 0) == (probability == 0)
    assert set(counts) <= set(order)


def test_sampling_applies_the_penalty(lite: Any) -> None:
    logits = torch.full((VOCABULARY,), -1e9)
    logits[[5, 6]] = torch.tensor([20.0, 1.0])
    decoder = _scripted(lite, [logits] * 2, repetition_penalty=1e6)
    assert _chosen(decoder, Generation(max_new_tokens=2, temperature=0.1, seed=0)) == [5, 6]


@pytest.mark.parametrize("temperature", [1e-6, 1e-30, 1e-44, 5e-324])
def test_a_temperature_near_zero_is_greedy(lite: Any, temperature: float) -> None:
    greedy = _chosen(lite.decoder, Generation(max_new_tokens=6))
    assert _chosen(lite.decoder, Generation(max_new_tokens=6, temperature=temperature, seed=0)) == greedy


def test_a_high_temperature_is_uniform(lite: Any) -> None:
    tokens = _chosen(lite.decoder, Generation(max_new_tokens=60, temperature=1e30, seed=1))
    assert len(set(tokens)) > 30


# Text


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ([*_tokens("  A cat. \n"), END], "A cat."),
        (_tokens("né 你好 🐈"), "né 你好 🐈"),
        ([START, *_tokens("a"), PAD, *_tokens("b"), END], "ab"),
        ([*_tokens("a"), REGION, *_tokens("b")], "a<REGION>b"),  # added by the reference, which does not leave it out
        (_tokens("a , b ."), "a , b ."),  # nothing is cleaned up
        (_tokens(b"\xff"), BROKEN),
        ([], ""),
        ([END], ""),
    ],
)
def test_text(lite: Any, tokens: list[int], text: str) -> None:
    assert lite.decoder.text(tokens) == text
    assert lite.decoder.text(iter(tokens)) == text


SPACE = st.sampled_from(["", " ", "  ", "\n", "\t \n", "\u00a0", "\u3000", "\x1c"])
WORD = st.text(max_size=4) | st.sampled_from(["cat", "é", "你好", "🐈‍⬛", BROKEN, "a" + BROKEN])
VALID = st.lists(SPACE | WORD, max_size=8).map("".join).map(_tokens)
INVALID = st.lists(st.binary(max_size=3), max_size=6).map(b"".join).map(_tokens)
SPECIAL = st.lists(st.sampled_from([START, PAD, IMAGE, REGION, 262, 265, VOCABULARY - 1]), max_size=2)
ANY = st.lists(VALID | INVALID | SPECIAL | SPACE.map(_tokens), max_size=6).map(
    lambda parts: [t for p in parts for t in p]
)


def _streamed(model: Any, tokens: list[int]) -> list[str]:
    if not tokens:
        return []
    return list(_saying(model, tokens).stream(_prompt(), Generation(max_new_tokens=len(tokens))))


@given(tokens=ANY, ends=st.booleans())
def test_streamed_pieces_join_to_the_text(lite: Any, tokens: list[int], ends: bool) -> None:
    tokens = tokens + [END] * ends
    pieces = _streamed(lite, tokens)
    assert "".join(pieces) == lite.decoder.text(tokens)
    assert all(pieces)


@given(tokens=st.lists(st.integers(0, VOCABULARY - 1), max_size=40))
def test_streamed_pieces_of_random_tokens(lite: Any, tokens: list[int]) -> None:
    if END in tokens:
        tokens = tokens[: tokens.index(END) + 1]
    assert "".join(_streamed(lite, tokens)) == lite.decoder.text(tokens)


@given(text=st.text(st.characters(codec="utf-8", exclude_characters=BROKEN), max_size=12))
def test_a_character_comes_whole(lite: Any, text: str) -> None:
    pieces = _streamed(lite, _tokens(text))
    assert "".join(pieces) == text.strip()
    assert not any(BROKEN in p for p in pieces)
    # and as soon as it can: a piece is one character, with the white space before it
    assert len(pieces) == sum(not c.isspace() for c in text)


def test_streaming_does_not_wait_for_the_end(lite: Any) -> None:
    decoder = _saying(lite, _tokens("cat"))
    stream = decoder.stream(_prompt(), Generation(max_new_tokens=3))
    assert next(stream) == "c"
    assert len(decoder.language_model.left) == 2


def test_the_tokens_of_this_file(lite: Any) -> None:
    names = ["<|im_end|>", "<|endoftext|>", "<|im_start|>", "<REGION>", "<image>"]
    assert lite.tokenizer.convert_tokens_to_ids(names) == [END, PAD, START, REGION, IMAGE]
    for text in ("A cat, né 你好 🐈‍⬛\n", "\x00\x7f\u0080\u00ad\u00ff"):
        assert lite.tokenizer(text, add_special_tokens=False)["input_ids"] == _tokens(text)


def test_the_models_own_stream_joins_to_its_text(lite: Any) -> None:
    for seed in range(3):
        options = Generation(max_new_tokens=30, temperature=1.5, seed=seed)
        tokens = _chosen(lite.decoder, options)
        assert "".join(lite.decoder.stream(_prompt(), options)) == lite.decoder.text(tokens)


# Limits


def test_a_prompt_as_long_as_the_context(lite: Any) -> None:
    length = lite.decoder.context_length
    assert length == lite.network.llm.config.max_position_embeddings
    for count in (length, length + 1):
        with pytest.raises(ValueError, match=f"^prompt: expected fewer than {length} tokens, got {count}$"):
            next(lite.decoder.steps(torch.zeros(count, 48), Generation()))


def test_an_answer_ends_with_the_context(lite: Any) -> None:
    decoder = _saying(lite, _tokens("abcdef"))
    assert _chosen(decoder, Generation(), torch.zeros(decoder.context_length - 2, 48)) == _tokens("ab")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(lite: Any, value: float, temperature: float) -> None:
    logits = torch.zeros(VOCABULARY)
    logits[7] = value
    decoder = _scripted(lite, [logits])
    with pytest.raises(FloatingPointError, match=r"not finite in torch.float32"):
        _chosen(decoder, Generation(temperature=temperature))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_later_on(lite: Any, temperature: float) -> None:
    """An overflow of float16 may begin at any step; going on would say "!!!!" (token 0)."""
    good = torch.eye(VOCABULARY)[5] * 100
    decoder = _scripted(lite, [good, good, torch.full((VOCABULARY,), torch.nan)])
    steps = decoder.steps(_prompt(), Generation(temperature=temperature))
    assert [next(steps).token, next(steps).token] == [5, 5]
    with pytest.raises(FloatingPointError, match="not finite"):
        next(steps)


def test_weights_that_are_not_finite(lite: Any) -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        next(lite.decoder.steps(torch.full((3, 48), torch.nan), Generation()))


# Options


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_new_tokens", 0, "max_new_tokens: expected an integer of at least 1, got 0"),
        ("max_new_tokens", -3, "max_new_tokens: expected an integer of at least 1, got -3"),
        ("max_new_tokens", 2.5, "max_new_tokens: expected an integer of at least 1, got 2.5"),
        ("max_new_tokens", "9", "max_new_tokens: expected an integer of at least 1, got '9'"),
        ("max_new_tokens", None, "max_new_tokens: expected an integer of at least 1, got None"),
        ("temperature", -0.1, "temperature: expected a number of at least 0, got -0.1"),
        ("temperature", float("nan"), "temperature: expected a number of at least 0, got nan"),
        ("temperature", float("inf"), "temperature: expected a number of at least 0, got inf"),
        ("temperature", "hot", "temperature: expected a number of at least 0, got 'hot'"),
        ("top_p", 0, "top_p: expected a number above 0 and at most 1, got 0"),
        ("top_p", 1.1, "top_p: expected a number above 0 and at most 1, got 1.1"),
        ("top_p", float("nan"), "top_p: expected a number above 0 and at most 1, got nan"),
        ("top_p", None, "top_p: expected a number above 0 and at most 1, got None"),
        ("seed", 1.0, "seed: expected an integer, got 1.0"),
        ("seed", "x", "seed: expected an integer, got 'x'"),
    ],
)
def test_wrong_options(option: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Generation(**{option: value})


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**30])
def test_seeds_of_more_than_64_bits(lite: Any, seed: int) -> None:
    with pytest.raises(ValueError, match=r"^seed: expected "):
        _chosen(lite.decoder, Generation(max_new_tokens=1, temperature=1.0, seed=seed))


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**64 - 1, -(2**63)])
def test_seeds_of_64_bits(lite: Any, seed: int) -> None:
    options = Generation(max_new_tokens=4, temperature=1.0, seed=seed)
    assert _chosen(lite.decoder, options) == _chosen(lite.decoder, options)
