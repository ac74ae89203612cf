"""Bounds on the memory and time of hostile examples."""

from __future__ import annotations

import time
import tracemalloc

from hypothesis import HealthCheck, settings

MEGABYTE = 2**20
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class bounded:
    """Fail if the block takes more than `megabytes` at its peak (as Python and NumPy count) or `seconds`."""

    def __init__(self, megabytes: float, seconds: float) -> None:
        self.megabytes, self.seconds = megabytes, seconds

    def __enter__(self):
        tracemalloc.start()
        self.start = time.perf_counter()

    def __exit__(self, kind, *_):
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        if kind is None:
            assert peak < self.megabytes * MEGABYTE
            assert time.perf_counter() - self.start < self.seconds
