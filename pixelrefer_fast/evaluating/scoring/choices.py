"""Which of several choices a text means."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "abcde"
_IN_PARENTHESES = re.compile(r"\(([A-Z])\)")
_BEFORE_PARENTHESIS = re.compile(r"([A-Z])\)")
_ALONE = re.compile(r"\b([A-Z])\b")


def letter_of(text: str) -> str:
    """The letter of an answer to VideoRefer-Bench-Q as the authors' script reads it, in lower case.

    The first capital in parentheses, else the first before a closing one, else the first character but full stops;
    empty for an answer without one.
    """
    found = _IN_PARENTHESES.search(text) or _BEFORE_PARENTHESIS.search(text)
    return (found.group(1) if found else text.replace(".", "")[:1]).lower()


def gold_letter(answer: str) -> str:
    """The letter of a right answer such as "(A) A helmet", else all of it, in lower case."""
    found = _IN_PARENTHESES.search(answer)
    return (found.group(1) if found else answer).lower()


def meant_letter(text: str, options: Sequence[str]) -> str:
    """The letter that an answer means: in parentheses, alone as a word, or that of the option whose text it says.

    Args:
        text: the answer.
        options: such as "(A) A helmet".

    Returns:
        A lower-case letter; empty where it means none.
    """
    found = _IN_PARENTHESES.search(text) or _BEFORE_PARENTHESIS.search(text)
    if found is None and len(alone := set(_ALONE.findall(text.strip()))) == 1:
        return alone.pop().lower()
    if found is None and len(text.strip(" .")) == 1:
        return text.strip(" .").lower()
    if found is not None:
        return found.group(1).lower()
    said = [option for option in options if _wording(option) and _wording(option) in text.lower()]
    return gold_letter(max(said, key=len)) if said else ""


def _wording(option: str) -> str:
    return _IN_PARENTHESES.sub("", option).strip(" .").lower()


def chosen_index(reply: str, choices: Sequence[str]) -> int | None:
    """Which choice a judge's reply names, as DLC-Bench's script finds it.

    In turn: the reply is a choice, its letter, or both; it contains one choice alone; it begins with a letter and a
    full stop; it contains several, of which the one found last counts, the longest where several begin there; it is a
    part of choices, of which the longest counts; it begins with a letter and a line break.

    Returns:
        The choice's number; None where the reply names none. (On an empty reply, and on a letter that no choice has,
        the authors' script fails instead.)
    """
    said = reply.strip().lower()
    texts = [choice.strip().lower() for choice in choices]
    for index, text in enumerate(texts):
        if said in (text, f"{LETTERS[index]}. {text}", LETTERS[index]):
            return index
    if not said:
        return None
    contained = [index for index, text in enumerate(texts) if text in said]
    if len(contained) == 1:
        return contained[0]
    if said[0] in LETTERS and said[1:2] == ".":
        return _existing(said[0], texts)
    if contained:
        return max(contained, key=lambda index: (said.index(texts[index]), len(texts[index]), -index))
    containing = [index for index, text in enumerate(texts) if said in text]
    if containing:
        return max(containing, key=lambda index: (len(texts[index]), -index))
    if said[0] in LETTERS and said[1:2] in ("", "\n"):
        return _existing(said[0], texts)
    return None


def _existing(letter: str, texts: Sequence[str]) -> int | None:
    index = LETTERS.index(letter)
    return index if index < len(texts) else None
