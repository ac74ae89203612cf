"""Which steps of the decoder are captured (`device/graphs.py`): a few numbers of slots, each in two forms.

A step reads and writes the decoder's own state, which stays where it is: a graph has no inputs to fill.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal, NamedTuple

SIZES = 7  # numbers of slots that are captured: 1 to 64 in powers of two
WHOLE: Final = "whole"
LAYERS: Final = "layers"


class StepKey(NamedTuple):
    """Which step a graph is: of how many slots, and whether the choice of tokens is part of it."""

    slots: int
    kind: Literal["whole", "layers"]


def captured_sizes(slots: int) -> list[int]:
    """Numbers of slots to capture, the largest first: powers of two, and all of them."""
    sizes = {slots, *(2**i for i in range(slots.bit_length()))}
    return sorted((n for n in sizes if n <= slots), reverse=True)[:SIZES]


def keys_of(slots: int) -> Iterator[StepKey]:
    """All steps that are captured for so many slots, the largest first: at most 14."""
    for size in captured_sizes(slots):
        yield StepKey(size, WHOLE)
        yield StepKey(size, LAYERS)
