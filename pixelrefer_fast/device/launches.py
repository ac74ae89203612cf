"""Launches of our kernels, and who hears of them: `kernels/_launch.py` tells, counters and profiles listen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    """One launch, as a counter sees it.

    Attributes:
        kernel: `file.kernel`.
        grid: of programs.
        flops, moved: what its formulas say that it computes, and the bytes to and from device memory.
        function: the compiled kernel's name, which profilers show; several kernels may share a function.
    """

    kernel: str
    grid: tuple[int, ...]
    flops: int
    moved: int
    function: str


_listeners: list[Callable[[Launch], None]] = []
_launching = False
_dry = False


@contextmanager
def listen(listener: Callable[[Launch], None]) -> Iterator[None]:
    """Call `listener` at every launch within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


@contextmanager
def dry_run() -> Iterator[None]:
    """Count launches within the block without running them: their results keep what was in memory."""
    global _dry
    before, _dry = _dry, True
    try:
        yield
    finally:
        _dry = before


def watched() -> bool:
    """Whether anybody is to be told of launches."""
    return _dry or bool(_listeners)


def told(launch: Launch) -> bool:
    """Tell the listeners of a launch; whether it is to run."""
    for listener in _listeners:
        listener(launch)
    return not _dry


@contextmanager
def launched() -> Iterator[None]:
    """Around what runs a kernel."""
    global _launching
    _launching = True
    try:
        yield
    finally:
        _launching = False


def launching() -> bool:
    """Whether a kernel is being launched: what torch does meanwhile is the interpreter's doing, not the caller's."""
    return _launching
