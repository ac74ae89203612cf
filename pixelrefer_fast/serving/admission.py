"""How many requests are open at one time, and when a caller that is sent away may come again."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

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
    def admitted(self, count: int = 1) -> Iterator[None]:
        """Within it the requests count.

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
        self.open += count
        try:
            yield
        finally:
            self.open -= count

    def took(self, seconds: float) -> None:
        """A request has ended."""
        self._seconds += RECENT * (seconds - self._seconds)
