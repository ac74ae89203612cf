"""`pf.load(..., engine="vllm")`: the answers of `ask` by every method."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

QUESTION = "Describe <region>."


def test_a_batch_has_the_answers_of_ask(engine: Any, kind: str, requests_of: Any) -> None:
    asks, answers = requests_of(kind)
    found = engine.ask_batch(asks, progress=False)
    same = [(own.tokens, own.text, own.finish, own.prompt_tokens) for own in found]
    assert same == [(own.tokens, own.text, own.finish, own.prompt_tokens) for own in answers]


def test_one_question_many_regions_and_streams(engine: Any, own: Any, picture: Any, masks: Any) -> None:
    assert engine.ask(picture, QUESTION, masks[:1]) == own.ask(picture, QUESTION, masks[:1])
    assert engine.describe(picture, masks) == own.describe(picture, masks)
    assert "".join(engine.stream(picture, QUESTION, masks[:1])) == own.ask(picture, QUESTION, masks[:1])
    told, expected = (list(m.stream(picture, QUESTION, masks[:1], events=True)) for m in (engine, own))
    assert [(e.text, e.token, e.finish_reason) for e in told] == [(e.text, e.token, e.finish_reason) for e in expected]
    assert (told[-1].usage.prompt_tokens, told[-1].usage.tokens) == (
        expected[-1].usage.prompt_tokens,
        expected[-1].usage.tokens,
    )

    async def together() -> list[Any]:
        return await asyncio.gather(*(engine.ask_async(picture, QUESTION, [mask]) for mask in masks))

    assert asyncio.run(together()) == [own.ask(picture, QUESTION, [mask]) for mask in masks]


def test_options_mean_what_they_mean(engine: Any, own: Any, picture: Any, masks: Any) -> None:
    whole = own.ask(picture, QUESTION, masks[:1])
    word = whole.split()[2]
    for options in ({"stop": word}, {"max_new_tokens": 3}, {"logit_bias": {5: 100.0}, "max_new_tokens": 2}):
        found, expected = (m.ask(picture, QUESTION, masks[:1], details=True, **options) for m in (engine, own))
        assert (found.text, found.finish) == (expected.text, expected.finish)
    found, expected = (
        m.ask(picture, QUESTION, masks[:1], details=True, logprobs=True, top_logprobs=2) for m in (engine, own)
    )
    assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert [[t for t, _ in at] for at in found.top_logprobs] == [[t for t, _ in at] for at in expected.top_logprobs]
    assert len(engine.ask(picture, QUESTION, masks[:1], details=True, temperature=1.5, seed=1, n=3).others) == 2


def test_what_is_wrong_is_told_and_disturbs_nothing(engine: Any, picture: Any, masks: Any) -> None:
    outside = [500, 500, 600, 600]
    with pytest.raises(ValueError, match="region 0: expected at least one marked pixel"):
        engine.ask(picture, QUESTION, [outside])
    with pytest.raises(ValueError, match="region 1: expected at least one marked pixel"):
        engine.describe(picture, [masks[0], outside])
    found = engine.ask_batch([(picture, "What is it?", masks[:1]), (picture, QUESTION, masks[:1])], progress=False)
    assert [answer.ok for answer in found] == [False, True]
    assert "got 0" in found[0].error
    with pytest.raises(ValueError, match="expected a model of this package's own engine"):
        engine.encode(picture, masks)
    with pytest.raises(ValueError, match="options: expected some of"):
        engine.ask(picture, QUESTION, masks[:1], beams=3)
    assert engine.counts()["running"] == 0


def test_a_row_of_ten_thousand_masks_fails_alone(engine: Any, picture: np.ndarray, masks: Any) -> None:
    many = [[2, 2, 30, 30]] * 10_000
    rows = [(picture, QUESTION, masks[:1]), (picture, "<region>" * 10_000, many), (picture, QUESTION, masks[:1])]
    found = engine.ask_batch(rows, progress=False)
    assert [answer.ok for answer in found] == [True, False, True]
    assert found[1].error.startswith("vLLM: This model's maximum context length is 2048 tokens")
    assert isinstance(found[1].exception, ValueError)
    assert found[0].tokens == found[2].tokens


def test_requests_that_break_off_are_told_after_the_answers_before(engine: Any, picture: Any, masks: Any) -> None:
    def two() -> Any:
        yield picture, QUESTION, masks[:1]
        yield picture, QUESTION, masks[:1]
        raise OSError("the list ends here")

    answers = engine.ask_iter(two(), ordered=True)
    assert [next(answers).ok, next(answers).ok] == [True, True]
    with pytest.raises(OSError, match="the list ends here"):
        next(answers)
    assert engine.counts()["running"] == 0


def test_it_is_known_by_its_weights(engine: Any, own: Any) -> None:
    assert engine.fingerprint == own.fingerprint
    assert (engine.dtype, engine.device, engine.quantization) == (own.dtype, own.device, None)
    assert engine.generation == own.generation
