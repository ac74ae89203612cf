"""The accuracy of a model on questions about scenes of the synthetic world."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pixelrefer_fast.batching import Ask
from pixelrefer_fast.checks.values import is_integer, is_number
from pixelrefer_fast.world.asking import ask_about
from pixelrefer_fast.world.marked import scene_media, scene_region
from pixelrefer_fast.world.questions import CATEGORIES, Question, normalise
from pixelrefer_fast.world.scene import Scene, make_scene
from pixelrefer_fast.world.splits import SPLITS, held_out

QUESTIONS = 2000
FIRST_SCENE = 1_000_000
"""Seed of the first scene that is asked about: far from those that trainings look at on their way."""
VIDEOS = 0.4  # of the questions, but for those about motion, which all are about videos
PER_SCENE = 2  # questions of one category about one scene, at most
MAX_NEW_TOKENS = 24  # of an answer; the longest right one has about ten


@dataclass(frozen=True)
class Result:
    """One question and the model's answer.

    Attributes:
        scene: seed of its scene.
        video: whether the scene is a video.
        question: the question with its right answer.
        answer: the model's answer.
        right: whether the two answers are equal after `normalise`.
        unseen: whether one of its objects has a held-out combination of shape, colour and pattern.
    """

    scene: int
    video: bool
    question: Question
    answer: str
    right: bool
    unseen: bool


@dataclass(frozen=True)
class Evaluation:
    """One model's answers to all questions, and the seconds they took (including drawing the scenes)."""

    results: tuple[Result, ...]
    seconds: float

    def by_category(self, of: Callable[[Result], bool] = lambda result: True) -> dict[str, dict[str, Any]]:
        """`n` and `accuracy` of each category, for those results only for which `of` holds."""
        table: dict[str, dict[str, Any]] = {}
        for category in CATEGORIES:
            right = [r.right for r in self.results if r.question.category == category and of(r)]
            if right:
                table[category] = {"n": len(right), "accuracy": sum(right) / len(right)}
        return table

    @property
    def accuracy(self) -> float:
        """Accuracy over all questions."""
        return sum(r.right for r in self.results) / len(self.results)


def draw_questions(
    questions: int = QUESTIONS,
    split: str = "heldout",
    seed: int = FIRST_SCENE,
    videos: float = VIDEOS,
    categories: Sequence[str] = CATEGORIES,
) -> Iterator[tuple[Scene, list[Question]]]:
    """Draw scenes and questions about each, the same number of every category, always the same for the same arguments.

    Args:
        questions: total number of questions.
        split: `heldout` or `train`.
        seed: seed of the first scene; the next scenes have the following seeds.
        videos: share of questions about videos, in each category except `motion`, whose questions are all about videos.
        categories: some of CATEGORIES.

    Raises:
        ValueError: an argument is out of range; the message names it, what was expected and what was given.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"seed: expected an integer from 0 on, got {seed!r}")
    if not is_number(videos) or not 0 <= videos <= 1:
        raise ValueError(f"videos: expected a share from 0 to 1, got {videos!r}")
    names = list(dict.fromkeys(categories))
    if not names or not set(names) <= set(CATEGORIES):
        raise ValueError(f"categories: expected some of {', '.join(CATEGORIES)}, got {names}")
    if not is_integer(questions) or questions < len(names):
        raise ValueError(f"questions: expected at least {len(names)}, one of each category, got {questions!r}")
    wanted: Counter[tuple[str, bool]] = Counter()
    for i, category in enumerate(names):
        share = questions // len(names) + (i < questions % len(names))
        of_videos = share if category == "motion" else round(share * videos)
        wanted[category, True], wanted[category, False] = of_videos, share - of_videos
    return _draw(wanted, split, seed)


def _draw(wanted: Counter[tuple[str, bool]], split: str, seed: int) -> Iterator[tuple[Scene, list[Question]]]:
    while any(wanted.values()):
        # what most is missing of decides, so that images and videos end together
        left = [sum(n for (_, video), n in wanted.items() if video is kind) for kind in (False, True)]
        video = left[1] > left[0]
        open_categories = [c for (c, kind), n in wanted.items() if kind is video and n]
        scene = make_scene(seed, split, video)
        chosen = []
        taken: Counter[str] = Counter()
        for question in ask_about(scene, seed, open_categories):
            c = question.category
            if taken[c] < PER_SCENE and wanted[c, video]:
                taken[c] += 1
                wanted[c, video] -= 1
                chosen.append(question)
        if chosen:
            yield scene, chosen
        seed += 1


def evaluate(
    model: Any,
    questions: int = QUESTIONS,
    split: str = "heldout",
    seed: int = FIRST_SCENE,
    videos: float = VIDEOS,
    categories: Sequence[str] = CATEGORIES,
    *,
    batch_size: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Ask a model, greedily and in batches, and compare its answers with the right ones.

    Args:
        model: PixelRefer or PixelReferLite.
        questions, split, seed, videos, categories: as in `draw_questions`.
        batch_size: most requests at a time, as in `model.ask_batch`.
        progress: called with the number of questions answered so far.

    Raises:
        ValueError: as in `draw_questions`.
        RuntimeError: a question could not be answered.
    """
    start = time.perf_counter()
    drawn: list[tuple[Scene, Question]] = []
    results: dict[int, Result] = {}
    scenes = draw_questions(questions, split, seed, videos, categories)
    for answer in model.ask_iter(
        _asks(scenes, model.kind, drawn), batch_size=batch_size, max_new_tokens=MAX_NEW_TOKENS
    ):
        if not answer.ok:
            raise RuntimeError(f"question {answer.index}: {answer.error}")
        scene, question = drawn[answer.index]
        results[answer.index] = Result(
            scene.seed,
            scene.video,
            question,
            answer.text,
            normalise(answer.text) == normalise(question.answer),
            any(scene.things[i].combination in held_out() for i in question.objects),
        )
        if progress is not None:
            progress(len(results))
    return Evaluation(tuple(results[i] for i in sorted(results)), time.perf_counter() - start)


def _asks(
    scenes: Iterable[tuple[Scene, list[Question]]], kind: str, drawn: list[tuple[Scene, Question]]
) -> Iterator[Ask]:
    """The requests; their scenes and questions are appended to `drawn`. Requests about one scene share its media."""
    for scene, questions in scenes:
        media = scene_media(scene)
        regions = {i: scene_region(scene, i, kind) for q in questions for i in q.objects}
        for question in questions:
            drawn.append((scene, question))
            yield Ask(media, question.text, [regions[i] for i in question.objects])
