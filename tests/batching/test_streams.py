"""Answers as they come, and more of an answer than its text: events, coroutines, ends, several answers to a prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.decoding import Event, Usage
from pixelrefer_fast.decoding import decoder as decoder_module

WHAT = "What is <region>?"
BOX = [4, 4, 30, 40]
SAMPLED: dict[str, Any] = {"temperature": 1.5, "seed": 3, "max_new_tokens": 9}


@pytest.fixture
def model(assets: Any) -> Any:
    """A model of its own, so that what a test does to it ends with the test."""
    return pf.load(assets / "lite", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (48, 56, 3), dtype=np.uint8)


def _check(events: Sequence[Event], answer: pf.Answer) -> None:
    """What events tell is what the answer says."""
    *each, last = events
    assert "".join(event.text for event in events) == answer.text
    assert tuple(event.token for event in each) == answer.tokens
    assert all(event.finish_reason is None and event.usage is None for event in each)
    assert (last.token, last.finish_reason) == (None, answer.finish_reason)
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.tokens) == (answer.prompt_tokens, len(answer.tokens))
    if answer.logprobs is not None:
        found = torch.tensor([event.logprob for event in each])
        torch.testing.assert_close(found, torch.tensor(answer.logprobs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("ahead", [False, True])
def test_events_of_a_stream(model: Any, image: np.ndarray, ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", ahead)
    options = {**SAMPLED, "logprobs": True, "top_logprobs": 2}
    answer = model.ask(image, WHAT, [BOX], details=True, **options)
    assert answer.text == model.ask(image, WHAT, [BOX], **options)
    events = list(model.stream(image, WHAT, [BOX], events=True, **options))
    _check(events, answer)
    assert tuple(event.top_logprobs for event in events[:-1]) == answer.top_logprobs
    assert "".join(model.stream(image, WHAT, [BOX], **options)) == answer.text
    ended = model.ask(image, WHAT, [BOX], details=True, max_new_tokens=2)
    assert (ended.finish_reason, len(ended.tokens)) == ("length", 2)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_token_is_told_as_soon_as_it_is_known(
    model: Any, image: np.ndarray, ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one after the pass over the prompt, at most one step of a device later."""
    monkeypatch.setitem(decoder_module.AHEAD, "cpu", ahead)
    events = model.stream(image, WHAT, [BOX], events=True, max_new_tokens=6, min_new_tokens=6)
    for number, _ in zip(range(6), events, strict=False):
        assert model.decoder.counts()["steps"] <= number + ahead


def test_coroutines_stream_and_share_batches(model: Any, image: np.ndarray) -> None:
    boxes = [[4, 4, 20 + i, 40] for i in range(6)]
    options = [{**SAMPLED, "seed": i} for i in range(6)]
    expected = [model.ask(image, WHAT, [box], details=True, **own) for box, own in zip(boxes, options, strict=True)]
    model.decoder.clear()

    async def one(i: int) -> list[Event]:
        return [event async for event in model.stream_async(image, WHAT, [boxes[i]], events=True, **options[i])]

    async def text(i: int) -> str:
        return "".join([piece async for piece in model.stream_async(image, WHAT, [boxes[i]], **options[i])])

    async def everything() -> tuple[Any, Any, Any, Any]:
        return await asyncio.gather(
            asyncio.gather(*map(one, range(6))),
            asyncio.gather(*map(text, range(6))),
            model.ask_async(image, WHAT, [boxes[0]], **options[0]),
            model.ask_async(image, WHAT, [boxes[0]], details=True, **options[0]),
        )

    events, texts, asked, detailed = asyncio.run(everything())
    for own, answer in zip(events, expected, strict=True):
        _check(own, answer)
    assert texts == [answer.text for answer in expected]
    assert asked == detailed.text == expected[0].text
    assert detailed.tokens == expected[0].tokens
    counts = model.decoder.counts()
    assert counts["steps"] < counts["tokens"] / 2


def test_a_closed_coroutine_is_cancelled(model: Any, image: np.ndarray) -> None:
    async def first() -> Event:
        stream = model.stream_async(image, WHAT, [BOX], events=True, max_new_tokens=400, min_new_tokens=400)
        event: Event = await anext(stream)
        await stream.aclose()
        return event

    assert asyncio.run(first()).token is not None
    assert model.ask(image, WHAT, [BOX], max_new_tokens=2) is not None
    counts = model.decoder.counts()
    assert counts["running"] == 0
    assert counts["steps"] < 100


@pytest.mark.parametrize(("top_k", "message"), [(3, "^question: "), (-1, "^top_k: ")])
def test_a_bad_request_raises_before_the_first_piece(model: Any, image: np.ndarray, top_k: int, message: str) -> None:
    question = "no tag" if top_k > 0 else WHAT

    async def pieces() -> list[str]:
        return [piece async for piece in model.stream_async(image, question, [BOX], top_k=top_k)]

    with pytest.raises(ValueError, match=message):
        asyncio.run(pieces())


def test_what_is_begun_again_is_not_told_again(model: Any, image: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails loses what was decoded; the stream goes on where it was."""
    answer = model.ask(image, WHAT, [BOX], details=True, min_new_tokens=8, max_new_tokens=8)
    advance, calls = model.decoder.advance, iter(range(100))

    def failing() -> bool:
        if next(calls) == 4:
            raise RuntimeError("once")
        return bool(advance())

    monkeypatch.setattr(model.decoder, "advance", failing)

    async def two() -> list[list[Event]]:
        async def one() -> list[Event]:
            options: dict[str, Any] = {"min_new_tokens": 8, "max_new_tokens": 8, "events": True}
            return [event async for event in model.stream_async(image, WHAT, [BOX], **options)]

        return await asyncio.gather(one(), one())

    for events in asyncio.run(two()):
        _check(events, answer)


def test_describing_in_coroutines(model: Any, image: np.ndarray) -> None:
    boxes = [[4, 4, 20 + i, 40] for i in range(3)]
    expected = model.describe(image, boxes, max_new_tokens=5)
    many = model.describe([image, image], [boxes, boxes[:1]], max_new_tokens=5)

    async def both() -> tuple[Any, Any, Any]:
        return await asyncio.gather(
            model.describe_async(image, boxes, max_new_tokens=5),
            model.describe_async([image, image], [boxes, boxes[:1]], max_new_tokens=5),
            model.describe_async(image, boxes, details=True, max_new_tokens=5),
        )

    one, several, detailed = asyncio.run(both())
    assert one == expected
    assert several == many
    assert [answer.text for answer in detailed] == expected
    for answer, again in zip(detailed, model.describe(image, boxes, details=True, max_new_tokens=5), strict=True):
        assert answer.finish_reason in ("stop", "length")
        assert (answer.finish_reason, answer.tokens) == (again.finish_reason, again.tokens)
    with pytest.raises(ValueError, match="region 1"):
        asyncio.run(model.describe_async(image, [BOX, [500, 500, 600, 600]], max_new_tokens=5))


def test_several_answers_to_a_prompt(model: Any, image: np.ndarray) -> None:
    """Those of seeds that follow each other; the prompt is computed once."""
    single = [model.ask(image, WHAT, [BOX], details=True, **{**SAMPLED, "seed": 3 + i}) for i in range(4)]
    model.decoder.clear()
    (answer,) = model.ask_batch([(image, WHAT, [BOX])], n=4, **SAMPLED)
    found = [answer, *answer.others]
    assert [own.tokens for own in found] == [own.tokens for own in single]
    assert [own.text for own in found] == [own.text for own in single]
    counts = model.decoder.counts()
    assert counts["prefill_tokens"] == answer.prompt_tokens + 3
    with pytest.raises(ValueError, match=r"^n: expected 1 for a single answer, got 2; ask_batch gives several$"):
        list(model.stream(image, WHAT, [BOX], n=2))


def test_usage_of_what_was_cached(model: Any, image: np.ndarray) -> None:
    objects = model.encode(image, [BOX])
    for cached in (False, True):
        *_, last = model.stream(objects, WHAT, events=True, max_new_tokens=3, min_new_tokens=3)
        assert isinstance(last.usage, Usage)
        assert bool(last.usage.cached_tokens) == cached
        assert last.usage.tokens == 3
