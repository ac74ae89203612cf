"""How many requests are open at one time, and when a caller that is sent away may come again."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from pixelrefer_fast.serving.errors import ApiError

LONGEST_WAIT = 60
"""Most seconds that a caller is asked to wait."""
RECENT = 0.1
"""Part of the mean duration that each request which ends makes up."""


class Gate:
    """Counts open requests; for one event loop.

    Args:
        most: at one time.

    Attributes:
        open: requests now.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._seconds = 1.0
        self.open = 0

    @property
    def full(self) -> bool:
        """Whether another request would be sent away."""
        return self.open >= self._most

    @contextmanager
    def admitted(self, count: int = 1) -> Iterator[Room]:
        """Within it the requests count, and as long after it as threads work for them.

        Raises:
            ApiError: 429, there are too many; 413, so many are never taken at once.
        """
        if count > self._most:
            raise ApiError(413, f"regions: expected at most {self._most} in one request, got {count}", "regions")
        if self.open + count > self._most:
            wait = min(LONGEST_WAIT, max(1, math.ceil(self._seconds)))
            raise ApiError(
                429, f"server: expected at most {self._most} open requests; try again", None, {"Retry-After": str(wait)}
            )
        room = Room(self, count)
        try:
            yield room
        finally:
            room.leave()

    def took(self, seconds: float) -> None:
        """A request has ended."""
        self._seconds += RECENT * (seconds - self._seconds)


class Room:
    """What admitted requests take up, until whoever works for them has left.

    Args:
        gate: which counts it.
        count: of requests.
    """

    def __init__(self, gate: Gate, count: int) -> None:
        self._gate = gate
        self._count = count
        self._inside = 1
        gate.open += count

    def leave(self) -> None:
        self._inside -= 1
        if not self._inside:
            self._gate.open -= self._count

    def with_thread(self, thread: Future[Any]) -> None:
        """Keep it until the thread has ended, too: no thread can be stopped when nobody waits for it any more."""
        self._inside += 1
        loop = asyncio.get_running_loop()

        def ended(_: Future[Any]) -> None:
            with contextlib.suppress(RuntimeError):  # the server has stopped
                loop.call_soon_threadsafe(self.leave)

        thread.add_done_callback(ended)
