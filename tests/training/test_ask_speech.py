"""Whether people are understood: each wording is compared with the plain one about the same objects, and counted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace

import ask_speech
import pytest
from recipe.sizes import NAMES

from pixelrefer_fast.batching import Ask
from pixelrefer_fast.checkpoint.embedded import PREFIX
from pixelrefer_fast.loading import load
from pixelrefer_fast.world.composed import COMPOSED
from pixelrefer_fast.world.questions import REGION
from pixelrefer_fast.world.spoken import HELD_OUT, SPOKEN, TRAINED, bare
from pixelrefer_fast.world.wordings import PLAIN


class Answering:
    """In place of a model: answers an ask by a function of it, in an order of its own."""

    kind = "lite"

    def __init__(self, answer: Callable[[Ask], str]) -> None:
        self.answer = answer

    def ask_iter(self, asks: Sequence[Ask], max_new_tokens: int) -> Iterator[SimpleNamespace]:
        for index in reversed(range(len(asks))):
            yield SimpleNamespace(index=index, ok=True, text=self.answer(asks[index]), error=None)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("IMAGES", 2), ("VIDEOS", 1)):
        monkeypatch.setattr(ask_speech, name, value)


WORDS = {kind: own[:2] for kind, own in HELD_OUT.items()}


def test_only_wordings_of_no_training_are_asked() -> None:
    for words in ask_speech.sets().values():
        assert words.keys() == SPOKEN.keys()
        assert all(words.values())
        for kind, own in words.items():
            learnt = {bare(w) for texts in (PLAIN.get(kind, ()), TRAINED[kind], COMPOSED.get(kind, ())) for w in texts}
            assert not {bare(wording) for wording in own} & learnt, kind


def test_a_wording_stands_beside_the_plain_one_about_the_same_objects() -> None:
    for _, own in ask_speech.draw(WORDS, 0):
        for one in own:
            if one.kind == "unknown":
                assert one.plain is None
                continue
            assert one.plain is not None
            assert one.plain.text != one.question.text
            assert one.plain.kind == one.question.kind
            assert {*one.plain.objects} == {*one.question.objects}
            assert one.plain.answer == one.question.answer


def test_who_looks_at_the_objects_alone_understands_all() -> None:
    found = ask_speech.summarise(ask_speech.ask(Answering(lambda ask: str(len(ask.question.split(REGION)))), WORDS))
    assert found["as_written"]["understood"] == found["respelt"]["understood"] == 1.0
    assert found["empty"] == 0
    assert found["unknown"]["said"] == 0.0


def test_who_answers_by_the_words_understands_nothing() -> None:
    found = ask_speech.summarise(ask_speech.ask(Answering(lambda ask: ask.question), WORDS))
    assert found["as_written"]["understood"] == found["respelt"]["understood"] == 0.0
    assert all(share["understood"] == 0.0 for share in found["kinds"].values())


def test_silence_is_counted_and_the_page_names_what_is_not_understood() -> None:
    found = ask_speech.summarise(
        ask_speech.ask(Answering(lambda ask: "" if ask.question.islower() else "unknown"), WORDS)
    )
    assert found["empty"] > 0
    assert found["unknown"]["said"] > 0.5
    weak = [one for one in found["wordings"] if one["understood"] < ask_speech.GOAL]
    page = ask_speech.page({"lite": {"held out": found}, "full": {"held out": found}})
    assert weak
    assert all(f"`{one['wording']}`" in page for one in weak)
    assert f"| without any answer | {found['empty']} | {found['empty']} |" in page


@pytest.mark.parametrize("kind", NAMES)
def test_what_was_found_is_of_the_weights_that_ship(kind: str) -> None:
    found = json.loads((ask_speech.RESULTS / f"{kind}.json").read_text(encoding="utf-8"))
    assert found["weights"] == load(f"{PREFIX}{kind}").fingerprint, f"run: python training/ask_speech.py {kind}"
    assert all(own["empty"] == 0 for own in found["sets"].values())


def test_the_page_is_what_was_found() -> None:
    page = ask_speech.PAGE.read_text(encoding="utf-8")
    assert page == ask_speech.page(ask_speech.read()), "run: python training/ask_speech.py --page"
