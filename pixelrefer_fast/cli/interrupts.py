"""Signals that end the process without a chance to clean up, turned into exceptions."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ENDING = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP


@contextlib.contextmanager
def clean_end() -> Iterator[None]:
    """Inside the block SIGTERM and SIGHUP raise SystemExit with 128 plus their number, where they would just end."""
    numbers = [getattr(signal, name) for name in _ENDING if hasattr(signal, name)]
    mine = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    if threading.current_thread() is not threading.main_thread():
        mine = []  # only the main thread may handle signals

    def end(number: int, _: FrameType | None) -> None:
        for other in mine:
            signal.signal(other, signal.SIG_IGN)  # a second one must not end the cleaning up
        raise SystemExit(128 + number)

    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
