"""How much is spent on a benchmark: calls of each row, points of each curve, seconds of the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

# powers of two; of n the model's own number is among them
CURVES: dict[str, tuple[int, ...]] = {
    "objects": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "frames": (1, 2, 4, 8, 16, 32, 64),
    "side": (224, 448, 896, 1792, 4096),
    "n": (1, 2, 4, 8, 16, 32, 64),
    "batch": (1, 2, 4, 8, 16, 32, 64, 128),
}
QUICK_CURVES: dict[str, tuple[int, ...]] = {
    "objects": (1, 8, 64),
    "frames": (1, 8),
    "side": (224, 896),
    "n": (1, 8, 32),
    "batch": (1, 8, 64),
}


@dataclass(frozen=True)
class Effort:
    """How much is spent on a row.

    Attributes:
        repeats: timed calls at the most,
        seconds: and so long about: three calls at least, one where a call takes longer than that.
        tokens: of an answer.
        curve_tokens: of an answer in a curve.
        curves: the points of each curve.
    """

    repeats: int = 20
    seconds: float = 6.0
    tokens: int = 64
    curve_tokens: int = 16
    curves: dict[str, tuple[int, ...]] = field(default_factory=lambda: CURVES)

    def enough(self, seconds: Sequence[float]) -> bool:
        """Whether these timed calls are enough."""
        least = 1 if seconds and seconds[0] > self.seconds else 3
        return len(seconds) >= self.repeats or (len(seconds) >= least and sum(seconds) >= self.seconds)


FULL_EFFORT = Effort()
QUICK_EFFORT = Effort(repeats=7, seconds=1.0, tokens=16, curve_tokens=8, curves=QUICK_CURVES)


class TimeLimit:
    """Seconds that a run may take; None: as long as it takes."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def refuses(self, expected: float = 0.0) -> str | None:
        """Why something that takes so many seconds is left out; None where there is time for it."""
        if self._end is None or time.monotonic() + expected <= self._end:
            return None
        return f"no time left of {self.seconds:g} s"
