"""Who comes next: first come, first served, but what fits may pass what does not, so many times."""

from __future__ import annotations

import bisect
from collections import abc, deque

from pixelrefer_fast.decoding.sequence import Sequence

PASSES = 16  # sequences that may pass one that came before them and found no room
LOOKED_AT = 64  # of those that wait, in one round: each of them asks for room


class WaitingLine:
    """Sequences in the order in which they came.

    A round takes them from the head (`next`). Those that find no room step aside, and others try; once the first of
    those aside was passed PASSES times, nobody behind it starts before it does.
    """

    def __init__(self) -> None:
        self._line: deque[Sequence] = deque()
        self._aside: list[Sequence] = []
        self._came = 0

    def __len__(self) -> int:
        return len(self._line) + len(self._aside)

    def join(self, sequence: Sequence) -> None:
        """A new one, behind all others."""
        sequence.arrival = self._came
        self._came += 1
        self._line.append(sequence)

    def rejoin(self, sequences: abc.Iterable[Sequence]) -> None:
        """Back to where they stood."""
        self._line = deque(sorted((*self._line, *sequences), key=_arrival))

    def peek(self) -> Sequence | None:
        """Who is next; None where nobody is, or may be before those aside."""
        if not self._line or len(self._aside) >= LOOKED_AT or not self.may_pass(self._line[0]):
            return None
        return self._line[0]

    def next(self) -> Sequence:
        """The one that `peek` tells, who leaves the line."""
        return self._line.popleft()

    def may_pass(self, sequence: Sequence) -> bool:
        """Whether it may start before those that stepped aside."""
        before = self._first_aside(sequence)
        return before is None or before.passed < PASSES

    def started(self, sequence: Sequence) -> None:
        """It found room."""
        before = self._first_aside(sequence)
        if before is not None:
            before.passed += 1

    def step_aside(self, sequence: Sequence) -> None:
        """It found no room in this round."""
        bisect.insort(self._aside, sequence, key=_arrival)

    def close_ranks(self) -> None:
        """Those aside are back at their places, for the next round."""
        if self._aside:
            aside, self._aside = self._aside, []
            self.rejoin(aside)

    def leave(self) -> list[Sequence]:
        """Those that were cancelled, who wait no longer."""
        gone = [s for s in (*self._line, *self._aside) if s.cancelled]
        if gone:
            self._line = deque(s for s in self._line if not s.cancelled)
            self._aside = [s for s in self._aside if not s.cancelled]
        return gone

    def _first_aside(self, sequence: Sequence) -> Sequence | None:
        first = self._aside[0] if self._aside else None
        return first if first is not None and first.arrival < sequence.arrival else None


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
