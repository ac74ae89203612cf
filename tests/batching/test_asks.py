"""What counts as a request, budgets, and which errors mean that memory ran out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import pytest
import torch

import pixelrefer_fast as pf
from pixelrefer_fast.batching.asks import AskKeywords, as_ask
from pixelrefer_fast.batching.encoding import Prepared
from pixelrefer_fast.batching.memory import Budget, out_of_memory
from pixelrefer_fast.batching.planner import BatchBuilder
from pixelrefer_fast.decoding.options import Generation, GenerationKeywords
from pixelrefer_fast.planning.options import EncodeKeywords, EncodeOptions
from pixelrefer_fast.planning.request import FrameSource, Request
from pixelrefer_fast.planning.views import View, ViewPlan


def test_forms_of_a_request() -> None:
    for value in (
        pf.Ask("a.png", "What is <region>?", [1], seed=3),
        ("a.png", "What is <region>?", [1], {"seed": 3}),
        ["a.png", "What is <region>?", [1], {"seed": 3}],
        {"media": "a.png", "question": "What is <region>?", "regions": [1], "seed": 3},
    ):
        ask = as_ask(value, {"seed": 1, "temperature": 0.5})
        assert (ask.media, ask.question, ask.regions) == ("a.png", "What is <region>?", [1])
        assert ask.options == {"seed": 3, "temperature": 0.5}
    assert as_ask(("a.png",)).question is None
    original = pf.Ask("a.png", seed=3)
    as_ask(original, {"temperature": 1.0})
    assert original.options == {"seed": 3}


@pytest.mark.parametrize(
    "value", [None, 7, "a.png", (), (1, 2, 3, 4), (1, 2, 3, {}, 5), {}, {"question": "?"}, {"media": 1, 2: 3}, b"x"]
)
def test_no_request(value: Any) -> None:
    with pytest.raises(ValueError, match="request: expected"):
        as_ask(value)


def test_an_exception_in_place_of_a_request_is_handed_on() -> None:
    with pytest.raises(KeyError, match="reader"):
        as_ask(KeyError("reader"))


def test_out_of_memory() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:128] . DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("not enough memory: you tried to allocate 1 TB"),
        RuntimeError("CUDA error: out of memory"),
    ):
        assert out_of_memory(error), error
    for other in (ValueError("out of memory"), RuntimeError("shapes differ"), KeyboardInterrupt()):
        assert not out_of_memory(other)
    with pytest.raises(RuntimeError) as caught:
        torch.ones(1).expand(2**50).clone()
    assert out_of_memory(caught.value)


def test_a_budget_of_the_machine(lite: Any) -> None:
    budget = Budget.of(lite)
    assert budget.requests == 32
    assert 1 << 12 <= budget.patches <= 1 << 17
    assert 1 << 12 <= budget.tokens <= 1 << 22


def _prepared(source: FrameSource, sides: list[int], tokens: int) -> Prepared:
    plan = ViewPlan()
    for side in sides:
        plan.add(View(0, 0, 0, 14, 14, 14, 14, 0, 14 * side, 14 * side, 1))
    generation = Generation(max_new_tokens=tokens)
    return Prepared("", generation, request=Request(source, [], [], []), plan=plan)


def test_packing_by_patches_and_tokens() -> None:
    one, other = (FrameSource(None, [(14, 14)], None, lambda numbers: iter(())) for _ in range(2))
    builder = BatchBuilder(Budget(9, patches=30, tokens=1000))
    assert builder.add(_prepared(one, [7], 10))  # alone anything fits
    assert builder.add(_prepared(one, [7], 10))  # and what it shares costs nothing
    assert not builder.add(_prepared(other, [1], 10))
    builder = BatchBuilder(Budget(9, patches=30, tokens=1000))
    assert builder.add(_prepared(one, [5], 10))
    assert builder.add(_prepared(one, [5, 2], 10))
    assert builder.add(_prepared(other, [1], 10))
    assert not builder.add(_prepared(other, [5], 10))
    assert (builder.requests, builder.patches, builder.tokens) == (3, 30, 30)
    builder = BatchBuilder(Budget(9, patches=30, tokens=25), running=[_prepared(one, [1], 20)])
    assert not builder.add(_prepared(one, [1], 10))
    assert builder.add(_prepared(one, [1], 5))
    assert BatchBuilder(Budget(9, patches=30, tokens=25)).add(_prepared(one, [1], 100))


def test_the_keywords_are_the_fields_of_the_options() -> None:
    for keywords, kind in ((EncodeKeywords, EncodeOptions), (GenerationKeywords, Generation)):
        assert list(get_type_hints(keywords)) == [field.name for field in fields(kind)]
    assert set(get_type_hints(AskKeywords)) == {*get_type_hints(EncodeKeywords), *get_type_hints(GenerationKeywords)}


def test_an_answer_in_a_notebook_is_its_text_and_how_it_ended() -> None:
    shown = pf.Answer(0, "a <b> & c", finish="length", tokens=(1, 2))._repr_html_()
    assert shown == "<p>a &lt;b&gt; &amp; c [...] <small>(length, 2 tokens)</small></p>"
    assert "empty answer" in pf.Answer(0, "", finish="stop")._repr_html_()
    assert "region 0: bad" in pf.Answer(0, error="region 0: bad")._repr_html_()
