"""Categories as sets of words: the Semantic IoU of Osprey."""

from __future__ import annotations

_SEPARATORS = str.maketrans(dict.fromkeys("_:,.()", " "))


def plain_words(text: str) -> str:
    """A category without the marks that part its words, in lower case."""
    return text.translate(_SEPARATORS).strip().lower()


def word_overlap(answer: str, gold: str) -> float:
    """Words that two categories share, as a share of all their words; 0 where neither has a word."""
    first, second = set(plain_words(answer).split()), set(plain_words(gold).split())
    union = first | second
    return len(first & second) / len(union) if union else 0.0
