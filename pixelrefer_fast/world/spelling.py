"""A question as other people would have typed it: other words, capitals and marks for the same thing."""

from __future__ import annotations

import re

import numpy as np

OTHER_WORDS = (
    (r"\bcolor\b", ("colour",)),
    (r"\blarger\b", ("bigger",)),
    (r"\bsmaller\b", ("tinier",)),
    (r"\bthe largest\b", ("the biggest", "largest")),
    (r"\bthe smallest\b", ("the tiniest", "smallest")),
    (r"\bthe leftmost\b", ("furthest left", "leftmost", "the furthest to the left")),
    (r"\bthe rightmost\b", ("furthest right", "rightmost", "the furthest to the right")),
    (r"\bthe topmost\b", ("highest", "topmost", "the highest")),
    (r"\bthe bottommost\b", ("lowest", "bottommost", "the lowest")),
    (r"(?<!to the )\bleft of\b", ("on the left of", "to the left of")),
    (r"(?<!to the )\bright of\b", ("on the right of", "to the right of")),
    (r"\bbelow\b", ("under", "beneath")),
    (r"\bis striped\b", ("has stripes",)),
    (r"\bis dotted\b", ("has dots",)),
    (r"\bobject\b", ("thing",)),
    (r"\bobjects\b", ("things",)),
    (r"^What is\b", ("What's", "Whats", "what is")),
    (r"^Tell me\b", ("Please tell me", "Could you tell me", "tell me")),
    (r"^Can you\b", ("Could you", "can you", "Can you please")),
)
_REPLACED = 0.25  # of the words for which there is another
_LOWER, _UNENDED, _POLITE, _DOUBLED = 0.2, 0.2, 0.08, 0.04


def respell(text: str, rng: np.random.Generator) -> str:
    """A question with some of its words, capitals and marks as other people write them; its tags stay."""
    for pattern, others in OTHER_WORDS:
        if rng.random() < _REPLACED:
            text = re.sub(pattern, others[int(rng.integers(len(others)))], text)
    if rng.random() < _LOWER:
        text = text.lower()
    if rng.random() < _UNENDED:
        text = text.rstrip("?.")
    if rng.random() < _POLITE:
        text = f"{text.rstrip('?.')}, please{'?' if text.endswith('?') else ''}"
    if rng.random() < _DOUBLED:
        text = f"{text}?" if text.endswith("?") else f" {text}"
    return text
