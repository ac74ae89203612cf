"""`eval world`, and the questions that are asked: exact, deterministic, of every category."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from command_line import one_error_line

import pixelrefer_fast
from pixelrefer_fast.batching import Answer
from pixelrefer_fast.world import CATEGORIES, normalise
from pixelrefer_fast.world.evaluate import MAX_NEW_TOKENS, PER_SCENE, draw_questions, evaluate


class Knowing:
    """Answers every question right but those about colour, in another spelling, out of order."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.truths = {}
        for scene, questions in draw_questions(90):
            for question in questions:
                self.truths[question.text, len(question.objects), scene.frames[0].tobytes()] = question

    def ask_iter(self, requests: Iterator[Any], **options: Any) -> Iterator[Answer]:
        assert options["max_new_tokens"] == MAX_NEW_TOKENS
        asks = list(requests)
        for i in reversed(range(len(asks))):
            media = asks[i].media
            frame = next(media.read([0])) if hasattr(media, "read") else media
            question = self.truths[asks[i].question, len(asks[i].regions), frame.tobytes()]
            text = "mauve" if question.category == "color" else f" {question.answer.upper()}. "
            yield Answer(i, text)


@pytest.fixture
def knowing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loaded: list[str] = []

    def load(name: str, **where: str) -> Knowing:
        loaded.append(name)
        return Knowing("full" if "full" in name else "lite")

    monkeypatch.setattr(pixelrefer_fast, "load", load)
    return loaded


def test_json_has_every_category_of_both_models(run: Callable[..., SimpleNamespace], knowing: list[str]) -> None:
    report = json.loads(run("eval", "world", "--split", "heldout", "--questions", "90", "--json").out)
    for same in ("--world", "--questions"):  # the old spelling, and none
        other = json.loads(run("eval", *(["--world"] if same == "--world" else []), "--questions", "90", "--json").out)
        assert {**other, "seconds": {}} == {**report, "seconds": {}}
    del knowing[2:]
    assert knowing == ["embedded:lite", "embedded:full"]
    assert list(report["models"]) == ["lite", "full"]
    for scores in report["models"].values():
        assert scores == {c: {"n": 10, "accuracy": 0.0 if c == "color" else 1.0} for c in CATEGORIES}
    assert report["overall"]["full"] == {"n": 90, "accuracy": 80 / 90}
    assert report["image"]["lite"]["name"]["n"] == 6
    assert report["video"]["lite"]["name"]["n"] == 4
    assert "motion" not in report["image"]["lite"]
    assert report["video"]["lite"]["motion"]["n"] == 10
    assert 0 < report["unseen"]["lite"]["name"]["n"] < 10


def test_table_and_other_models(run: Callable[..., SimpleNamespace], knowing: list[str]) -> None:
    result = run("eval", "--world", "--questions", "90", "--model", "my/model")
    assert knowing == ["my/model"]
    lines = {line.split()[0]: line.split() for line in result.out.splitlines() if line.strip()}
    assert lines["name"] == ["name", "100.0", "%", "100.0", "%", "100.0", "%", "10"]
    assert lines["color"][1:3] == ["0.0", "%"]
    assert lines["motion"] == ["motion", "100.0", "%", "-", "100.0", "%", "10"]
    assert lines["all"][1] == "88.9"
    run("eval", "--world", "--questions", "90", "--models", "full")
    assert knowing[1:] == ["embedded:full"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--world", "--questions", "3"), "questions"),
        (("--world", "--videos", "1.5"), "videos"),
        (("--world", "--seed", "-1"), "seed"),
        (("--world", "--split", "test"), "split"),
        (("--world", "--models", "lite,big"), "--models"),
    ],
)
def test_bad_options(
    run: Callable[..., SimpleNamespace], knowing: list[str], arguments: tuple[str, ...], words: str
) -> None:
    one_error_line(run("eval", *arguments), words)
    assert knowing == []


def test_questions_are_balanced_and_always_the_same() -> None:
    drawn = [(scene, q) for scene, questions in draw_questions(180) for q in questions]
    counts = Counter((q.category, scene.video) for scene, q in drawn)
    for category in CATEGORIES:
        assert (counts[category, False], counts[category, True]) == ((0, 20) if category == "motion" else (12, 8))
    per_scene = Counter((scene.seed, scene.video, q.category) for scene, q in drawn)
    assert max(per_scene.values()) <= PER_SCENE
    again = [(scene.seed, q) for scene, questions in draw_questions(180) for q in questions]
    assert [(scene.seed, q) for scene, q in drawn] == again
    other = [q for _, questions in draw_questions(180, seed=5) for q in questions]
    assert other != [q for _, q in drawn]
    assert all(scene.split == "heldout" for scene, _ in drawn)
    images = [scene for scene, _ in draw_questions(16, videos=0.0, categories=CATEGORIES[:4])]
    assert not any(scene.video for scene in images)


def test_results_tell_what_was_asked_and_said() -> None:
    found = evaluate(Knowing("lite"), 90)
    assert len(found.results) == 90
    assert [r.right for r in found.results] == [r.question.category != "color" for r in found.results]
    assert all(
        normalise(r.answer) == r.question.answer.removeprefix("a ").removeprefix("an ").removeprefix("the ")
        for r in found.results
        if r.right
    )
    assert found.seconds > 0


def test_a_question_that_fails_ends_the_evaluation() -> None:
    class Failing(Knowing):
        def ask_iter(self, requests: Iterator[Any], **options: Any) -> Iterator[Answer]:
            next(requests)
            yield Answer(0, error="no memory")

    with pytest.raises(RuntimeError, match="question 0: no memory"):
        evaluate(Failing("lite"), 90)
