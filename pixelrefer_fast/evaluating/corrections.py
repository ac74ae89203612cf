"""What the authors' scripts do that is not what was meant, where the numbers they recorded depend on it.

The recorded way is the default, so that numbers can stand beside the paper's; `--correct NAME` does what was meant.
docs/evaluation.md has these and what the scripts do that nobody can repeat.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ALL = "all"


@dataclass(frozen=True)
class Correction:
    """One of them: what is recorded, what is meant, and whether it changes what is asked or only how it is scored."""

    recorded: str
    meant: str
    asks: bool = False


CORRECTIONS: dict[str, Correction] = {
    "vg-mask": Correction("a region is its box, filled", "a region is its mask, which the file has", asks=True),
    "caption-length": Correction("a caption is cut after 100 words", "captions are scored whole"),
    "clair-letters": Correction(
        "the judge sees the reference caption a letter a line", "the judge sees it as one caption"
    ),
    "choice-letter": Correction(
        "an answer without parentheses is its first character",
        "it is a letter that stands alone, or the option it says",
    ),
    "missing-masks": Correction(
        "a frame without a mask gets the mask read last", "a frame without a mask marks nothing", asks=True
    ),
    "rating-marks": Correction("ratings whose names are in bold are left out", "they are read without their Markdown"),
    "review-line": Correction(
        "a review that is not two numbers with one separator counts as -1 against -1",
        "two numbers with any separators are read; what has none is left out",
    ),
    "review-boxes": Correction(
        "boxes in brackets are taken from the reference answer alone", "they are taken from both answers"
    ),
}


def chosen_corrections(names: Iterable[str], offered: Sequence[str]) -> frozenset[str]:
    """The corrections that `--correct` names; `all` is every one that the benchmark has.

    Raises:
        ValueError: one that the benchmark has not.
    """
    wanted: set[str] = set()
    for name in names:
        if name == ALL:
            wanted |= set(offered)
        elif name in offered:
            wanted.add(name)
        else:
            raise ValueError(f"--correct: expected some of {', '.join([*offered, ALL])}, got {name!r}")
    return frozenset(wanted)
