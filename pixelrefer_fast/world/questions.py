"""Questions about a scene, each with its one right answer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pixelrefer_fast.world.wordings import PLAIN

CATEGORIES = (
    "name",
    "color",
    "pattern",
    "description",
    "relation",
    "counting",
    "context",
    "motion",
    "selection",
)
RELATIONS = ("side", "where", "larger", "touch", "same", "extreme")
SELECTIONS = ("by look", "by color", "by shape", "by pattern", "by size", "by motion")
SPOKEN_ONLY = ("size", "check", "unknown")
"""Kinds that are asked in `spoken.py`'s wordings alone; each is a category of its own."""
UNKNOWN = "unknown"
"""The answer to a question about what no scene shows."""
KINDS = (*(c for c in CATEGORIES if c not in ("relation", "selection")), *RELATIONS, *SELECTIONS)
REGION = "<region>"
ORDINALS = ("the first", "the second", "the third", "the fourth")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
MOTION_ANSWERS = {
    "still": "it stays still",
    "left": "it moves left",
    "right": "it moves right",
    "up": "it moves up",
    "down": "it moves down",
    "growing": "it grows",
    "shrinking": "it shrinks",
    "turning": "it turns",
}


@dataclass(frozen=True)
class Question:
    """A question about some of a scene's objects.

    Attributes:
        category: one of CATEGORIES.
        text: English, with one `<region>` for each of `objects`, in their order.
        objects: numbers of the objects it is about, each once; with those that it only names, in the order of naming.
        answer: the one right answer, short and in lower case.
        kind: the kind of question within its category, one of KINDS.
    """

    category: str
    text: str
    objects: tuple[int, ...]
    answer: str
    kind: str


@dataclass(frozen=True)
class Speech:
    """The words that questions are asked in.

    Attributes:
        wordings: of each kind, as in `wordings.PLAIN`.
        respell: a question in another spelling, drawn by the generator; None: as the wording has it.
        named: share of the questions that name their objects first, as `ask` about encoded objects does.
        others: share of these that also name some that they do not ask about.
    """

    wordings: Mapping[str, Sequence[str]]
    respell: Callable[[str, np.random.Generator], str] | None = None
    named: float = 0.15
    others: float = 0.0


PLAINLY = Speech(PLAIN)


def normalise(answer: str) -> str:
    """An answer in the form used for comparison: lower case, single spaces, no final period or leading article."""
    text = " ".join(answer.lower().split())
    text = re.sub(r"\s*\.+$", "", text)
    return re.sub(r"^(a|an|the) (?=\S)", "", text)


def name_objects(text: str, video: bool, places: Sequence[int] | None = None, total: int | None = None) -> str:
    """A question with its objects named before it, and by their names in it: `it`, or <object0>, <object1>, ...

    Args:
        text: with a `<region>` for each object that it asks about.
        video: whether it is about a video.
        places: which of the named objects each `<region>` is; None: the first, the second, ...
        total: how many objects are named; None: those asked about.
    """
    where = "video" if video else "image"
    count = text.count(REGION)
    total = count if total is None else total
    if total == 1:
        return f"There is one object in the {where}: {REGION}.\n{text.replace(REGION, 'it')}"
    names = [f"<object{i}>" for i in range(total)]
    for place in range(count) if places is None else places:
        text = text.replace(REGION, names[place], 1)
    return f"There are {total} objects in the {where}: {', '.join(name + REGION for name in names)}.\n{text}"
