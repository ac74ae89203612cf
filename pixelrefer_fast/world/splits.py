"""What training never sees: held-out combinations of shape, colour and pattern; and separate seeds for each split."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter

import numpy as np

from pixelrefer_fast.world.things import COLORS, PATTERNS, SHAPES

SPLITS = ("train", "heldout")

_STREAMS = {"train": 0x7A11, "heldout": 0x4E1D}  # first word of the generator's seed: no scene is in both splits
_HELD_PER_SHAPE = 4
_HELD_PER_COLOR = 4
_HELD_PER_PATTERN = 12

Combination = tuple[str, str, str]  # shape, color, pattern


def _order(combination: Combination) -> bytes:
    return hashlib.sha256("/".join(combination).encode()).digest()


@functools.lru_cache(maxsize=1)
def held_out() -> frozenset[Combination]:
    """The combinations that occur in no training scene, about 12 % of all.

    They are chosen in the order of a hash of their words, so that the choice never changes: at most four of every shape
    and colour, at most twelve of every pattern, and at most one pattern of a coloured shape, so that each word stays
    frequent in training.
    """
    taken: set[Combination] = set()
    counts: Counter[str] = Counter()
    pairs: set[tuple[str, str]] = set()
    for combination in sorted(itertools.product(SHAPES, COLORS, PATTERNS), key=_order):
        shape, color, pattern = combination
        if (
            counts[shape] < _HELD_PER_SHAPE
            and counts[color] < _HELD_PER_COLOR
            and counts[pattern] < _HELD_PER_PATTERN
            and (shape, color) not in pairs
        ):
            taken.add(combination)
            pairs.add((shape, color))
            counts.update(combination)
    return frozenset(taken)


def generator(seed: int, split: str, *purpose: int) -> np.random.Generator:
    """The random generator of one scene of one split; `purpose` separates what is drawn for different ends.

    Raises:
        ValueError: the split has another name, or the seed is not an integer of at least 0.
    """
    if split not in _STREAMS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed: expected an integer from 0 on, got {seed!r}")
    return np.random.default_rng([_STREAMS[split], int(seed), *purpose])
