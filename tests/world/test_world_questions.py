"""Questions: every answer worked out again from words and masks, one right answer each, balanced, varied in wording."""

from __future__ import annotations

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from pixelrefer_fast.model import DESCRIBE_IMAGE, DESCRIBE_VIDEO
from pixelrefer_fast.world import CATEGORIES, Question, Scene, ask_about, make_scene, normalise, questions, wordings
from pixelrefer_fast.world.things import COLORS, PATTERNS, SHAPES

SEEDS = range(130)
ORDINALS = ("the first", "the second", "the third", "the fourth")
KINDS = wordings.PLAIN


@functools.lru_cache(maxsize=1)
def asked() -> tuple[tuple[Scene, Question], ...]:
    made = [make_scene(seed, split, video) for seed in SEEDS for split, video in _kinds(seed)]
    return tuple((s, q) for s in made for q in ask_about(s, s.seed))


def _kinds(seed: int) -> list[tuple[str, bool]]:
    return [("train" if seed % 2 else "heldout", False), ("heldout" if seed % 2 else "train", True)]


def answers(category: str, video: bool | None = None) -> Counter[str]:
    return Counter(q.answer for s, q in asked() if q.category == category and video in (None, s.video))


# which wording a question has, and the words in it


def _pattern(text: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w*\})", text)
    listed = r"(?:<region>(?:, | and ))+<region>"
    filled = {"{}": "<region>", "{one}": "<region>", "{other}": "<region>", "{list}": listed}
    return re.compile("".join(filled.get(p, rf"(?P<{p[1:-1]}>.+?)" if p[:1] == "{" else re.escape(p)) for p in parts))


PATTERN_OF = [(kind, text, _pattern(text)) for kind, texts in KINDS.items() for text in texts]


def unnamed(text: str) -> str:
    """A question with its regions where it names its objects."""
    first, _, rest = text.partition("\n")
    if not rest:
        return text
    count = first.count("<region>")
    if count == 1:
        assert re.fullmatch(r"There is one object in the (image|video): <region>\.", first)
        return re.sub(r"\bit\b", "<region>", rest, count=1)
    names = ", ".join(f"<object{i}><region>" for i in range(count))
    assert re.fullmatch(rf"There are {count} objects in the (image|video): {names}\.", first)
    places = [rest.index(f"<object{i}>") for i in range(count)]
    assert places == sorted(places)
    return re.sub(r"<object\d>", "<region>", rest)


@functools.lru_cache(maxsize=20000)
def wording(category: str, text: str) -> tuple[str, str, dict[str, str]]:
    """(kind, template, words) of a question's text; exactly one kind of its category fits."""
    text = unnamed(text)
    found = [(kind, t, m.groupdict()) for kind, t, p in PATTERN_OF if (m := p.fullmatch(text))]
    found = [f for f in found if (f[0] == "selection") == (category == "selection")]
    found = [f for f in found if f[0] != "larger" or f[2]["word"] in ("larger", "smaller")]
    found = [f for f in found if f[0] != "extreme" or f[2]["word"].startswith("the ")]
    said = r"is |moves |stays |grows|shrinks|turns"
    found = [f for f in found if f[0] != "selection" or re.match(said, f[2]["what"])]
    found = [f for f in found if f[0] != "side" or re.fullmatch(r"(to the )?(left|right) of|above|below", f[2]["word"])]
    found = [f for f in found if f[0] != "same" or f[2]["word"] in ("color", "shape", "pattern")]
    assert len({f[0] for f in found}) == 1, (text, found)
    return found[0]


# the answers, worked out again


class Oracle:
    """Answers from a scene's words and masks alone; None where no one answer is plainly right."""

    def __init__(self, scene: Scene) -> None:
        self.s = scene
        self.areas = scene.masks.sum(axis=(2, 3))
        self.part = (self.areas / scene.whole.sum(axis=(2, 3))).min(axis=1)
        self.frames = range(len(scene.frames))
        self._centres: dict[tuple[int, bool], np.ndarray] = {}
        self._lengths: dict[tuple[int, int], int] = {}
        self._far: dict[int, list[np.ndarray]] = {}

    def centres(self, i: int, whole: bool = False) -> np.ndarray:
        """(frames, 2), x and y."""
        if (i, whole) not in self._centres:
            masks = (self.s.whole if whole else self.s.masks)[i]
            self._centres[i, whole] = np.array([np.argwhere(m).mean(axis=0)[::-1] for m in masks])
        return self._centres[i, whole]

    def offsets(self, a: int, b: int) -> np.ndarray:
        return self.centres(b) - self.centres(a)

    def is_at(self, a: int, b: int, word: str) -> bool | None:
        axis, sign = {"left": (0, 1), "right": (0, -1), "above": (1, 1), "below": (1, -1)}[word]
        along = self.offsets(a, b)[:, axis] * sign
        return True if (along > 8).all() else False if (along < -8).all() else None

    def length(self, i: int, f: int) -> int:
        if (i, f) not in self._lengths:
            self._lengths[i, f] = int((np.ptp(np.argwhere(self.s.whole[i, f]), axis=0) + 1).max())
        return self._lengths[i, f]

    def larger(self, a: int, b: int) -> bool | None:
        ratios = [self.length(a, f) / self.length(b, f) for f in self.frames]
        surface = [self.areas[a, f] / self.areas[b, f] for f in self.frames]
        if min(ratios) > 1.2 and min(surface) > 1.4:
            return True
        return False if max(ratios) < 1 / 1.2 and max(surface) < 1 / 1.4 else None

    def gaps(self, a: int, b: int) -> list[float]:
        if a not in self._far:
            outside = (~self.s.masks[a]).view(np.uint8)
            self._far[a] = [cv2.distanceTransform(m, cv2.DIST_C, 3) for m in outside]
        return [float(self._far[a][f][self.s.masks[b, f]].min()) for f in self.frames]

    def touch(self, a: int, b: int) -> bool | None:
        gaps = self.gaps(a, b)
        return True if max(gaps) <= 1 else False if min(gaps) >= 3 else None

    def others(self, i: int) -> list[int]:
        return [j for j in range(len(self.s.things)) if j != i]

    def touched(self, i: int) -> int | str | None:
        how = {j: self.touch(i, j) for j in self.others(i)}
        if None in how.values():
            return "unclear"
        found = [j for j, holds in how.items() if holds]
        return "unclear" if len(found) > 1 else found[0] if found else None

    def hides(self, front: int, back: int) -> float:
        """Part of the back that the front hides in the frame in which that is least."""
        s = self.s
        return min(float((s.whole[back, f] & s.masks[front, f]).sum() / s.whole[back, f].sum()) for f in self.frames)

    def ever_hides(self, front: int, back: int) -> bool:
        return bool((self.s.whole[back] & self.s.masks[front]).any())

    def answer(self, q: Question) -> str | None:
        kind, template, words = wording(q.category, q.text)
        order = q.objects[::-1] if "{other}" in template else q.objects
        return getattr(self, "_" + kind.replace(" ", "_"))(tuple(order), words)

    def _name(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        return self.s.things[o[0]].shape if self.part[o[0]] >= 0.6 else None

    def _color(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        return self.s.things[o[0]].color if self.areas[o[0]].min() >= 12 else None

    def _pattern(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        return self.s.things[o[0]].pattern if self.part[o[0]] >= 0.6 else None

    def _description(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        t = self.s.things[o[0]]
        lengths = [self.length(o[0], f) for f in self.frames]
        ranges = {"small": (11, 27), "medium": (25, 50), "large": (45, 105)}  # a turning one's box varies
        if self.part[o[0]] < 0.6 or not all(ranges[t.size][0] <= v <= ranges[t.size][1] for v in lengths):
            return None
        pattern = "" if t.pattern == "solid" else f"{t.pattern} "
        return f"a {t.size} {t.color} {pattern}{t.shape}"

    def _side(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        word = re.search(r"left|right|above|below", w["word"])
        holds = self.is_at(o[0], o[1], word.group()) if word else None
        return None if holds is None else "yes" if holds else "no"

    def _where(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        size = np.abs(self.offsets(o[0], o[1]))
        fits = [x for x in ("left", "right", "above", "below") if self.is_at(o[0], o[1], x)]
        axis = {"left": 0, "right": 0, "above": 1, "below": 1}
        fits = [x for x in fits if (size[:, axis[x]] > 1.9 * size[:, 1 - axis[x]]).all()]
        return fits[0] if len(fits) == 1 else None

    def _larger(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        first = self.larger(o[0], o[1])
        return None if first is None else ORDINALS[int(first != (w["word"] == "larger"))]

    def _touch(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        return {True: "yes", False: "no", None: None}[self.touch(*o)]

    def _same(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        a, b = (getattr(self.s.things[i], w["word"]) for i in o)
        return "yes" if a == b else "no"

    def _extreme(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        return self._only(o, lambda i: self._is(i, w["word"], o))

    def _only(self, o: tuple[int, ...], fits: Callable[[int], bool]) -> str | None:
        found = [k for k, i in enumerate(o) if fits(i)]
        return ORDINALS[found[0]] if len(found) == 1 else None

    def _is(self, i: int, word: str, o: tuple[int, ...]) -> bool:
        """Whether it is the leftmost, largest, ... of some by a margin."""
        rest = [j for j in o if j != i]
        if word == "the largest":
            return all(self.larger(i, j) is True for j in rest)
        if word == "the smallest":
            return all(self.larger(j, i) is True for j in rest)
        side = {"leftmost": "left", "rightmost": "right", "topmost": "above", "bottommost": "below"}[word.split()[1]]
        return all(self.is_at(i, j, side) is True for j in rest)

    def _counting(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        if min(self.part) < 0.6 or any(t.size == "tiny" for t in self.s.things):
            return None
        word = "color" if w["word"] == "color" else "shape"
        count = sum(getattr(t, word) == getattr(self.s.things[o[0]], word) for t in self.s.things)
        return ("one", "two", "three", "four", "five", "six")[count - 1]

    def _short(self, j: int) -> str:
        t = self.s.things[j]
        return f"an {t.color} {t.shape}" if t.color == "orange" else f"a {t.color} {t.shape}"

    def _touched(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        j = self.touched(o[0])
        return "nothing" if j is None else None if isinstance(j, str) else self._short(j)

    def _touched_color(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        j = self.touched(o[0])
        return self.s.things[j].color if isinstance(j, int) else None

    def _behind(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        found = [j for j in self.others(o[0]) if self.ever_hides(o[0], j)]
        return self._short(found[0]) if len(found) == 1 and self.hides(o[0], found[0]) >= 0.05 else None

    def _behind_color(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        text = self._behind(o, w)
        return text.split()[1] if text else None

    def _front(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        found = [j for j in self.others(o[0]) if self.ever_hides(j, o[0])]
        return self._short(found[0]) if len(found) == 1 and self.hides(found[0], o[0]) >= 0.05 else None

    def motion(self, i: int) -> str | None:
        """From the visible masks: centres, lengths and pixels."""
        if self.part[i] < 0.7:
            return None
        masks, (height, width) = self.s.whole[i], self.s.size
        centres = self.centres(i, whole=True)
        way = centres[-1] - centres[0]
        lengths = [self.length(i, f) for f in self.frames]
        if abs(way[0]) / width > 0.28 or abs(way[1]) / height > 0.28:
            sideways = abs(way[0]) / width > abs(way[1]) / height
            word = ("left", "right")[int(way[0] > 0)] if sideways else ("up", "down")[int(way[1] > 0)]
            return f"moves {word}"
        if max(lengths) / min(lengths) > 1.65:
            return "grows" if lengths[-1] > lengths[0] else "shrinks"
        return "stays still" if (masks == masks[0]).all() else "turns"

    def _moves(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        motion = self.motion(o[0])
        return f"it {motion}" if motion else None

    def _moving(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        motion = self.motion(o[0])
        if motion is None or motion in ("turns", "grows", "shrinks"):
            return None  # opinions differ
        return "no" if motion == "stays still" else "yes"

    def _resizing(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        motion = self.motion(o[0])
        return None if motion is None else "yes" if motion in ("grows", "shrinks") else "no"

    def _selection(self, o: tuple[int, ...], w: dict[str, str]) -> str | None:
        what = w["what"].removeprefix("is ")
        if min(self.part[i] for i in o) < 0.6 or any(self.s.things[i].size == "tiny" for i in o):
            return None
        if what in ("the largest", "the smallest"):
            return self._only(o, lambda i: self._is(i, what, o))
        if what in COLORS:
            return self._only(o, lambda i: self.s.things[i].color == what)
        if what in PATTERNS:
            return self._only(o, lambda i: self.s.things[i].pattern == what)
        if re.fullmatch(r"an? \w+", what):
            assert what.split()[1] in SHAPES
            return self._only(o, lambda i: self.s.things[i].shape == what.split()[1])
        if what.startswith(("a ", "an ")):
            return self._only(o, lambda i: self._short(i) == what)
        return self._only(o, lambda i: self.motion(i) == what)


def test_every_answer_worked_out_again():
    oracles: dict[int, Oracle] = {}
    for scene, question in asked():
        oracle = oracles.setdefault(id(scene), Oracle(scene))
        assert oracle.answer(question) == question.answer, (scene.seed, scene.split, scene.video, question)


def test_categories_are_the_agreed_ones():
    agreed = "name color pattern description relation counting context motion selection"
    assert " ".join(CATEGORIES) == agreed
    assert {q.category for _, q in asked()} == set(CATEGORIES)


def test_every_kind_is_asked_and_belongs_to_one_category():
    of = {q.kind: q.category for _, q in asked()}
    assert set(of) == set(questions.KINDS)
    assert len(set(questions.KINDS)) == len(questions.KINDS)
    for _, q in asked():
        assert of[q.kind] == q.category
        if q.category == "relation":
            assert wording(q.category, q.text)[0] == q.kind


def test_texts_and_objects():
    for scene, q in asked():
        assert q.text.count("<region>") == len(q.objects) == len(set(q.objects)) >= 1
        assert all(0 <= i < len(scene.things) for i in q.objects)
        assert not set("{}") & set(q.text)
        assert q.text[0].isupper() or q.text.startswith("<region>")
        assert q.text[-1] in "?."
        assert q.answer == " ".join(q.answer.lower().split())
        assert normalise(q.answer) == normalise(f" {q.answer.capitalize()}. ")


def test_same_question_has_one_answer():
    """No two contents share a text about the same objects of one scene."""
    found: dict[tuple[int, str, tuple[int, ...]], str] = {}
    for scene, q in asked():
        assert found.setdefault((id(scene), q.text, q.objects), q.answer) == q.answer


def test_motion_is_asked_about_videos_only():
    assert all(s.video for s, q in asked() if q.category == "motion")


def test_tiny_objects_are_asked_about_color_and_place_only():
    kinds = {wording(q.category, q.text)[0] for s, q in asked() if any(s.things[i].size == "tiny" for i in q.objects)}
    assert kinds <= {"color", "side", "where", "touch", "same", "extreme", "moves", "moving", "resizing"}
    assert {"color", "where"} <= kinds
    for s, q in asked():
        if any(s.things[i].size == "tiny" for i in q.objects):
            words = wording(q.category, q.text)[2]
            assert words.get("word") not in ("shape", "pattern", "the largest", "the smallest")


SHARES = {  # most of any one answer, in images and videos
    "name": 0.2,
    "color": 0.2,
    "pattern": 0.42,
    "description": 0.03,
    "relation": 0.32,
    "counting": 0.45,
    "context": 0.3,
    "motion": 0.25,
    "selection": 0.46,
}


@pytest.mark.parametrize("category", CATEGORIES)
def test_no_answer_is_frequent_enough_to_guess(category: str):
    for video in (None, False, True):
        counts = answers(category, video)
        if counts:
            answer, most = counts.most_common(1)[0]
            assert most / counts.total() <= SHARES[category], (video, answer, most / counts.total())


def test_all_answers_of_small_sets_occur():
    assert set(answers("name")) == set(SHAPES)
    assert set(answers("color")) == set(COLORS)
    assert set(answers("pattern")) == set(PATTERNS)
    relations = {"yes", "no", "left", "right", "above", "below", *ORDINALS[:3]}
    assert set(answers("relation")) == relations
    assert {"one", "two", "three", "four", "five"} <= set(answers("counting"))
    assert set(answers("selection")) == set(ORDINALS)
    assert len(answers("motion")) == 10


def test_yes_and_no_are_balanced_in_every_kind():
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for _, q in asked():
        if q.answer in ("yes", "no"):
            counts[wording(q.category, q.text)[0]][q.answer] += 1
    assert set(counts) == {"side", "touch", "same", "moving", "resizing"}
    for kind, found in counts.items():
        assert 0.3 < found["yes"] / found.total() < 0.7, (kind, found)


def test_counts_from_one_to_four_are_all_common():
    counts = answers("counting")
    assert min(counts[c] for c in ("one", "two", "three", "four")) / counts.total() > 0.08


def test_wordings_are_varied_and_even():
    uses: dict[str, Counter[str]] = defaultdict(Counter)
    for _, q in asked():
        kind, template, _ = wording(q.category, q.text)
        uses[kind][template] += 1
    assert set(uses) == set(KINDS)
    for kind, counts in uses.items():
        assert len(KINDS[kind]) >= 6
        if counts.total() > 150:
            assert set(counts) == set(KINDS[kind])
            assert max(counts.values()) < 3 * counts.total() / len(KINDS[kind])


def test_the_library_s_own_ways_to_ask_are_among_the_wordings():
    texts = {q.text for _, q in asked()}
    assert {DESCRIBE_IMAGE, DESCRIBE_VIDEO} <= texts
    named = {s.video: q.text for s, q in asked() if q.text.startswith("There is one object in the")}
    assert all(("video" if video else "image") in text for video, text in named.items())
    share = sum("\n" in q.text for _, q in asked()) / len(asked())
    assert 0.12 < share < 0.18


def test_same_seed_same_questions_and_other_seed_others():
    scene = make_scene(7, "train", False)
    assert ask_about(scene, 1) == ask_about(make_scene(7, "train", False), 1)
    assert {q.text for q in ask_about(scene, 1)} != {q.text for q in ask_about(scene, 2)}


def test_categories_and_limit():
    scene = make_scene(9, "train", True)
    chosen = ask_about(scene, 0, categories=("color", "motion"))
    assert {q.category for q in chosen} == {"color", "motion"}
    for limit in (0, 1, 5, 8):
        some = ask_about(scene, 0, limit=limit)
        assert len(some) == limit
        assert len({q.category for q in some}) >= min(limit, 5)
    assert set(ask_about(scene, 0, limit=8)) <= set(ask_about(scene, 0))


def test_bad_arguments_are_named():
    scene = make_scene(0)
    with pytest.raises(ValueError, match=r"categories: expected some of name, .*, got 'colour'"):
        ask_about(scene, 0, categories=("colour",))
    with pytest.raises(ValueError, match="limit: expected an integer from 0 on or None, got -1"):
        ask_about(scene, 0, limit=-1)
    with pytest.raises(ValueError, match="seed: expected an integer from 0 on, got -3"):
        ask_about(scene, -3)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("A Blue  circle.", "blue circle"),
        ("the first", "first"),
        (" Yes. ", "yes"),
        ("an orange star", "orange star"),
        ("a", "a"),
        ("it moves left .", "it moves left"),
        ("", ""),
    ],
)
def test_normalise(raw: str, expected: str):
    assert normalise(raw) == expected
