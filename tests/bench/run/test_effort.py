"""How many calls are enough, and for what there is no time left."""

from __future__ import annotations

from pixelrefer_fast.bench.run.effort import Effort, TimeLimit


def test_as_many_calls_as_are_worth_it() -> None:
    effort = Effort(repeats=5, seconds=1.0)
    assert not effort.enough([])
    assert effort.enough([1.5])  # slower than all that may be spent: once
    assert not effort.enough([0.6, 0.6])
    assert effort.enough([0.6, 0.6, 0.6])
    assert not effort.enough([0.01] * 4)
    assert effort.enough([0.01] * 5)


def test_what_would_end_too_late_is_refused() -> None:
    assert TimeLimit().refuses(1e9) is None
    assert TimeLimit(60.0).refuses(30.0) is None
    assert TimeLimit(60.0).refuses(90.0) == "no time left of 60 s"
