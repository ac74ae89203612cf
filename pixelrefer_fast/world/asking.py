"""Draws the questions of a scene: which are asked of which objects, and their one right answer from words and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pixelrefer_fast.world.questions import (
    CATEGORIES,
    MOTION_ANSWERS,
    NUMBERS,
    ORDINALS,
    PLAINLY,
    REGION,
    SELECTIONS,
    SPOKEN_ONLY,
    UNKNOWN,
    Question,
    Speech,
    name_objects,
)
from pixelrefer_fast.world.scene import Scene
from pixelrefer_fast.world.splits import generator
from pixelrefer_fast.world.things import ACROSS, COLORS, PATTERNS, SHAPES, TINY

CLEAR = 0.65  # part of an object that is visible in every frame where its shape, pattern or size is asked
SEEN_LENGTH = 0.85  # of the least length of its size, that is visible of an object where its size is asked
COLOR_PIXELS = 24  # visible pixels from which a colour is asked
COVERED = (0.08, 15)  # part and pixels of an object that another hides, from which it is said to be behind
BESIDE = (0.09, 10)  # of the side, and pixels, between the centres of two objects of which one is left of the other
RATIO = 1.25  # of lengths, from which one object is larger than another
MOTION_VISIBLE = 0.75  # part that is visible in every frame where motion is asked

_MOST = {"relation": 4, "counting": 2, "context": 2, "selection": 2}  # questions of a scene in these categories


def ask_about(
    scene: Scene,
    seed: int,
    categories: Sequence[str] | None = None,
    limit: int | None = None,
    speech: Speech = PLAINLY,
) -> list[Question]:
    """Draw questions about a scene in random order, always the same for the same arguments.

    There is one question about the name, colour, pattern and description of each object that shows them, one about the
    motion of most objects, and a few of each other category. A question is only asked if its answer is clearly visible,
    so some scenes have no questions of a category.

    Args:
        scene: from `make_scene`.
        seed: an integer, at least 0, that decides the questions and their wording.
        categories: some of CATEGORIES; None: all.
        limit: most questions, taken from the categories in turn; None: no limit.
        speech: in which words they are asked; those of `spoken.py` ask for SPOKEN_ONLY, too.

    Raises:
        ValueError: an argument is out of range; the message names it, what was expected and what was given.
    """
    wanted = CATEGORIES if categories is None else tuple(categories)
    for category in wanted:
        if category not in CATEGORIES:
            raise ValueError(f"categories: expected some of {', '.join(CATEGORIES)}, got {category!r}")
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, (int, np.integer)) or limit < 0):
        raise ValueError(f"limit: expected an integer from 0 on or None, got {limit!r}")
    rng = generator(seed, scene.split, scene.seed, 1)
    asker = _Asker(scene, rng, speech)
    found = [asker.ask(category) for category in CATEGORIES if category in wanted]
    if categories is None:
        found += [asker.ask(category) for category in SPOKEN_ONLY if category in speech.wordings]
    questions = []
    if limit is None:
        questions = [q for group in found for q in group]
    else:
        groups = [found[i] for i in rng.permutation(len(found))]
        for turn in range(max(map(len, groups), default=0)):
            questions += [group[turn] for group in groups if turn < len(group)]
        questions = questions[:limit]
    return [questions[i] for i in rng.permutation(len(questions))]


class _Asker:
    """Draws the questions of one scene."""

    def __init__(self, scene: Scene, rng: np.random.Generator, speech: Speech) -> None:
        self.scene = scene
        self.rng = rng
        self.speech = speech
        self.things = scene.things
        self.facts = facts = scene.facts
        n = len(self.things)
        least, pixels = facts.visible.min(axis=1), facts.areas.min(axis=1)
        tiny = [t.size == TINY for t in self.things]
        self.seen = [bool(least[i] >= CLEAR) for i in range(n)]
        self.clear = [i for i in range(n) if self.seen[i] and not tiny[i]]
        self.colored = [i for i in range(n) if (least[i] > 0.8 if tiny[i] else pixels[i] >= COLOR_PIXELS)]
        self.placed = [i for i in range(n) if least[i] >= (0.8 if tiny[i] else CLEAR)]
        resizing = [scene.motions is not None and scene.motions[i] in _RESIZING for i in range(n)]
        self.sized = [i for i in self.clear if not resizing[i] and self._looks_sized(i)]
        self.any_tiny = any(tiny)

    def ask(self, category: str) -> list[Question]:
        """The questions of one category, in random order."""
        singles: dict[str, Callable[[int], Question | None]] = {
            "name": self._name,
            "color": self._color,
            "pattern": self._pattern,
            "description": self._description,
            "motion": self._motion,
            "size": self._size,
            "check": self._check,
            "unknown": self._unknown,
        }
        several: dict[str, Callable[[], Question | None]] = {
            "relation": self._relation,
            "counting": self._counting,
            "context": self._context,
            "selection": self._selection,
        }
        if category in singles:
            drawn = [singles[category](int(i)) for i in self.rng.permutation(len(self.things))]
        else:
            drawn = [several[category]() for _ in range(_MOST[category])]
        unique: dict[tuple[str, tuple[int, ...]], Question] = {}
        for q in drawn:
            if q is not None:
                unique.setdefault((q.text, q.objects), q)
        return list(unique.values())

    def _looks_sized(self, i: int) -> bool:
        """Whether what is seen of an object is about as long as its size says, or more."""
        boxes = self.facts.boxes[i]
        seen = np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        return bool((seen >= SEEN_LENGTH * ACROSS[self.things[i].size][0]).all())

    # drawing

    def _chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def _one(self, options: Sequence[int]) -> int:
        return options[int(self.rng.integers(len(options)))]

    def _put(
        self, category: str, said: str, objects: Sequence[int], answer: str, kind: str = "", **words: str
    ) -> Question:
        """The question in one of the wordings of `said`; the wording may name a pair as {other} and {one}."""
        texts = self.speech.wordings[said]
        text = texts[int(self.rng.integers(len(texts)))]
        order = tuple(int(i) for i in objects)
        if "{other}" in text:
            order = order[::-1]
            words = {**words, "one": REGION, "other": REGION}
        listed = " and ".join(filter(None, (", ".join([REGION] * (len(order) - 1)), REGION)))
        regions = [REGION] * text.count("{}")
        asked = text.format(*regions, list=listed, **words)
        if self.speech.respell is not None:
            asked = self.speech.respell(asked, self.rng)
        if self._chance(self.speech.named):
            asked, order = self._named(asked, order)
        return Question(category, asked, order, answer, kind or category)

    def _named(self, asked: str, order: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """The question with its objects named, and now and then others among them."""
        video = self.scene.times is not None
        rest = [i for i in range(len(self.things)) if i not in order]
        if not rest or self.speech.others == 0 or not self._chance(self.speech.others):
            return name_objects(asked, video), order
        named = [*order, *(int(i) for i in self.rng.permutation(rest)[: int(self.rng.integers(len(rest))) + 1])]
        shown = tuple(named[i] for i in self.rng.permutation(len(named)))
        return name_objects(asked, video, [shown.index(i) for i in order], len(shown)), shown

    def _pairs(self, among: Sequence[int]) -> list[tuple[int, int]]:
        """All ordered pairs, in random order."""
        pairs = [(a, b) for a in among for b in among if a != b]
        return [pairs[i] for i in self.rng.permutation(len(pairs))]

    # one object

    def _name(self, i: int) -> Question | None:
        return self._put("name", "name", [i], self.things[i].shape) if i in self.clear else None

    def _color(self, i: int) -> Question | None:
        return self._put("color", "color", [i], self.things[i].color) if i in self.colored else None

    def _pattern(self, i: int) -> Question | None:
        return self._put("pattern", "pattern", [i], self.things[i].pattern) if i in self.clear else None

    def _description(self, i: int) -> Question | None:
        if i not in self.sized:
            return None
        where = "image" if self.scene.times is None else "video"
        return self._put("description", "description", [i], self.things[i].description, where=where)

    def _motion(self, i: int) -> Question | None:
        if self.scene.motions is None or self.facts.visible[i].min() < MOTION_VISIBLE:
            return None
        motion = self.scene.motions[i]
        if motion == "still" and self._chance(_STILL_LEFT_OUT):
            return None
        pick = self.rng.random()
        travels = motion in ("left", "right", "up", "down")
        resizes = motion in _RESIZING
        if (travels and pick < 0.07) or (motion == "still" and pick < 0.26):
            return self._put("motion", "moving", [i], _yes(travels))
        if (resizes and pick < 0.18) or (not resizes and pick > 0.94):
            return self._put("motion", "resizing", [i], _yes(resizes))
        return self._put("motion", "moves", [i], MOTION_ANSWERS[motion])

    def _size(self, i: int) -> Question | None:
        return self._put("size", "size", [i], self.things[i].size) if i in self.sized else None

    def _check(self, i: int) -> Question | None:
        word, options = _CHECKED[int(self.rng.integers(len(_CHECKED)))]
        if i not in (self.colored if word == "color" else self.clear):
            return None
        own = str(getattr(self.things[i], word))
        value = own if self._chance(0.5) else options[int(self.rng.integers(len(options)))]
        said = f"{'an' if value[0] in 'aeiou' else 'a'} {value}" if word == "shape" else value
        return self._put("check", "check", [i], _yes(value == own), value=said)

    def _unknown(self, i: int) -> Question | None:
        return self._put("unknown", "unknown", [i], UNKNOWN) if self._chance(_UNKNOWN_ASKED) else None

    # several objects

    def _offset(self, a: int, b: int) -> np.ndarray:
        """From the centre of a to that of b, (frames, 2)."""
        return self.facts.centres[b] - self.facts.centres[a]

    def _margins(self) -> tuple[float, float]:
        """Pixels in x and in y from which one object is beside, above or below another."""
        height, width = self.scene.size
        return max(BESIDE[1], BESIDE[0] * width), max(BESIDE[1], BESIDE[0] * height)

    def _side(self, a: int, b: int, axis: int) -> int:
        """-1: a is left of or above b in every frame; 1: the other way; 0: neither is plain."""
        offset, margin = self._offset(a, b)[:, axis], self._margins()[axis]
        return -1 if (offset >= margin).all() else 1 if (offset <= -margin).all() else 0

    def _larger(self, a: int, b: int) -> bool:
        """Whether a is larger than b in every frame, by length and by visible area."""
        across, areas = self.facts.across, self.facts.areas
        return bool((across[a] >= RATIO * across[b]).all() and (areas[a] >= RATIO**2 * areas[b]).all())

    def _relation(self) -> Question | None:
        kinds: tuple[Callable[[], Question | None], ...] = (
            self._beside,
            self._where,
            self._compare,
            self._touch,
            self._same,
            self._extreme,
        )
        weights = (0.22, 0.24, 0.16, 0.1, 0.1, 0.18)
        for k in self.rng.choice(len(kinds), size=len(kinds), replace=False, p=weights):
            question = kinds[k]()
            if question is not None:
                return question
        return None

    def _beside(self) -> Question | None:
        for a, b in self._pairs(self.placed)[:4]:
            axis = int(self.rng.integers(2))
            side = self._side(a, b, axis)
            if side:
                said = side if self._chance(0.5) else -side
                word = (("left of", "right of"), ("above", "below"))[axis][said > 0]
                if axis == 0 and self._chance(0.4):
                    word = f"to the {word}"
                return self._put("relation", "side", [a, b], _yes(said == side), "side", word=word)
        return None

    def _where(self) -> Question | None:
        for a, b in self._pairs(self.placed)[:6]:
            offset = np.abs(self._offset(a, b))
            for axis in (0, 1):
                side = self._side(a, b, axis)
                if side and (offset[:, axis] >= 2 * offset[:, 1 - axis]).all():
                    answer = (("left", "right"), ("above", "below"))[axis][side > 0]
                    return self._put("relation", "where", [a, b], answer, "where")
        return None

    def _compare(self) -> Question | None:
        for a, b in self._pairs(self.clear)[:6]:
            if self._larger(a, b):
                word = "larger" if self._chance(0.5) else "smaller"
                first = self._chance(0.5)
                order = [a, b] if first == (word == "larger") else [b, a]
                return self._put("relation", "larger", order, ORDINALS[not first], "larger", word=word)
        return None

    def _touch(self) -> Question | None:
        touching, apart = _always(self.facts.touching), _always(self.facts.apart)
        pairs = self._pairs(self.placed)
        yes = [p for p in pairs if touching[p]]
        no = [p for p in pairs if apart[p] and apart[p[::-1]]]
        return self._yes_or_no("touch", yes, no)

    def _yes_or_no(
        self, kind: str, yes: list[tuple[int, int]], no: list[tuple[int, int]], **words: str
    ) -> Question | None:
        """About a pair of those of which it holds, or of the others: as often a yes as a no, over many scenes."""
        wanted = self._chance(0.5)
        pairs = yes if wanted else no
        if not pairs or (not yes and self._chance(_NO_LEFT_OUT)):
            return None
        return self._put("relation", kind, pairs[0], _yes(wanted), kind, **words)

    def _same(self) -> Question | None:
        word = ("color", "shape", "pattern")[int(self.rng.integers(3))]
        value = [getattr(t, word) for t in self.things]
        pairs = self._pairs(self.colored if word == "color" else self.clear)
        yes = [(a, b) for a, b in pairs if value[a] == value[b]]
        no = [(a, b) for a, b in pairs if value[a] != value[b]]
        return self._yes_or_no("same", yes, no, word=word)

    def _extreme(self) -> Question | None:
        if len(self.placed) < 3:
            return None
        for _ in range(4):
            word = _EXTREMES[int(self.rng.integers(len(_EXTREMES)))]
            among = self.clear if word in ("the largest", "the smallest") else self.placed
            chosen = [among[i] for i in self.rng.permutation(len(among))[:3]]
            best = self._best(chosen, word) if len(chosen) == 3 else None
            if best is not None:
                return self._put("relation", "extreme", chosen, ORDINALS[best], "extreme", word=word)
        return None

    def _best(self, chosen: Sequence[int], word: str) -> int | None:
        """Which of the chosen is, say, the leftmost by a margin in every frame; None where none is."""
        for k, i in enumerate(chosen):
            others = [j for j in chosen if j != i]
            if word == "the largest":
                holds = all(self._larger(i, j) for j in others)
            elif word == "the smallest":
                holds = all(self._larger(j, i) for j in others)
            else:
                axis, side = _PLACES[word]
                holds = all(self._side(i, j, axis) == side for j in others)
            if holds:
                return k
        return None

    def _counting(self) -> Question | None:
        if self.any_tiny or len(self.clear) < len(self.things):
            return None
        word = "color" if self._chance(0.5) else "shape"
        values = [getattr(t, word) for t in self.things]
        counts = [values.count(v) for v in values]
        options = sorted(set(counts))
        weights = np.array([_COUNT_WEIGHTS[c] for c in options])
        count = options[int(self.rng.choice(len(options), p=weights / weights.sum()))]
        if count == 1 and self._chance(_ONE_LEFT_OUT):
            return None
        i = self._one([i for i, c in enumerate(counts) if c == count])
        return self._put("counting", "counting", [i], NUMBERS[count], word=word)

    def _context(self) -> Question | None:
        touching, apart = _always(self.facts.touching), _always(self.facts.apart)
        n = len(self.things)
        if self._chance(0.17 if touching.any() else 0.03):
            alone = [i for i in self.clear if all(apart[i, j] and apart[j, i] for j in range(n) if j != i)]
            return self._put("context", "touched", [self._one(alone)], "nothing") if alone else None
        kind = int(self.rng.choice(5, p=(0.34, 0.18, 0.18, 0.14, 0.16)))
        options = []
        for i in self.clear:
            if kind < 2:  # touches one, and is plainly apart from the rest
                others = [j for j in range(n) if j != i and not (apart[i, j] and apart[j, i])]
                fits = len(others) == 1 and touching[i, others[0]]
            else:
                others, fits = self._hidden(i, front=kind == 4)
            if fits and len(others) == 1 and others[0] in (self.colored if kind in (1, 3) else self.clear):
                options.append((i, others[0]))
        if not options:
            return None
        i, j = options[int(self.rng.integers(len(options)))]
        said = (
            "touched",
            "touched color",
            "behind",
            "behind color",
            "front",
        )[kind]
        answer = self.things[j].color if kind in (1, 3) else self.things[j].short
        return self._put("context", said, [i], answer)

    def _hidden(self, i: int, front: bool) -> tuple[list[int], bool]:
        """The objects that i covers somewhere, or that cover it, and whether enough to be plain in every frame."""
        covers = self.facts.covers[:, :, i] if front else self.facts.covers[:, i, :]  # (frames, other objects)
        others = [int(j) for j in np.flatnonzero(covers.any(axis=0))]
        if len(others) != 1:
            return others, False
        hidden = covers[:, others[0]]
        back = i if front else others[0]
        total = self.facts.areas[back] / np.maximum(self.facts.visible[back], 1e-9)
        return others, bool((hidden >= np.maximum(COVERED[0] * total, COVERED[1])).all())

    def _selection(self) -> Question | None:
        kind = int(self.rng.choice(6, p=(0.2, 0.18, 0.18, 0.16, 0.13, 0.15)))
        if kind == 5 and self.scene.motions is None:
            kind = int(self.rng.integers(4))
        among = self.clear
        if kind == 5:
            among = [i for i in among if self.facts.visible[i].min() >= MOTION_VISIBLE]
        if len(among) < 2:
            return None
        many = min(len(among), 2 + int(self.rng.choice(3, p=(0.15, 0.3, 0.55))))
        for _ in range(6):
            chosen = [among[i] for i in self.rng.permutation(len(among))[:many]]
            target = int(self.rng.integers(many))
            what = self._phrase(kind, chosen, target)
            if what is not None:
                return self._put("selection", "selection", chosen, ORDINALS[target], SELECTIONS[kind], what=what)
        return None

    def _phrase(self, kind: int, chosen: Sequence[int], target: int) -> str | None:
        """What fits the target alone of the chosen, of one kind; None where nothing does."""
        thing = self.things[chosen[target]]
        others = [self.things[i] for k, i in enumerate(chosen) if k != target]
        if kind == 0 and all(o.short != thing.short for o in others):
            return f"is {thing.short}"
        if kind == 1 and all(o.color != thing.color for o in others):
            return f"is {thing.color}"
        if kind == 2 and all(o.shape != thing.shape for o in others):
            return f"is a{'n' if thing.shape[0] in 'aeiou' else ''} {thing.shape}"
        if kind == 3 and all(o.pattern != thing.pattern for o in others):
            return f"is {thing.pattern}"
        if kind == 4:
            word = "the largest" if self._chance(0.5) else "the smallest"
            return f"is {word}" if self._best(chosen, word) == target else None
        if kind == 5 and self.scene.motions is not None:
            motion = self.scene.motions[chosen[target]]
            if all(self.scene.motions[i] != motion for k, i in enumerate(chosen) if k != target):
                return MOTION_ANSWERS[motion].removeprefix("it ")
        return None


_PLACES = {
    "the leftmost": (0, -1),
    "the rightmost": (0, 1),
    "the topmost": (1, -1),
    "the bottommost": (1, 1),
}  # the axis, and the side of all others on which it is
_EXTREMES = (*_PLACES, "the largest", "the smallest")

_CHECKED = (("color", tuple(COLORS)), ("shape", SHAPES), ("pattern", PATTERNS))

_UNKNOWN_ASKED = 0.3  # of the objects
_NO_LEFT_OUT = 0.75  # where the scene has no pair for a yes
_COUNT_WEIGHTS = (0.0, 0.6, 0.7, 1.6, 2.6, 2.6, 2.6)  # by count; the rare ones are asked where they can be
_ONE_LEFT_OUT = 0.5
_STILL_LEFT_OUT = 0.4  # of the objects that stay still, when asked about their motion
_RESIZING = ("growing", "shrinking")


def _always(holds: np.ndarray) -> np.ndarray:
    """(objects, objects) bool: what holds of two objects in all frames, from (frames, objects, objects)."""
    return np.logical_and.reduce(holds, axis=0)


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"
