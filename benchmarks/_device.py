"""Timing on a CUDA device: events, a cold L2, and the two rates that results are set against."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

AHEAD = 2_000_000  # cycles (about a millisecond) that the device idles before a call, so that the host is ahead of it


class Clock:
    """Times calls on the device with nothing of theirs in its L2 cache."""

    def __init__(self) -> None:
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(size, dtype=torch.uint8, device="cuda")

    def time(self, prepare: Callable[[], Any], run: Callable[[Any], Any]) -> tuple[float, float]:
        """Seconds of one call of `run` on what `prepare` gives: on the device, and of the host to issue it.

        The device time is that between two events around the call; launches are queued ahead, so it holds none of the
        host's time unless the call waits for the host.
        """
        given = prepare()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda.synchronize()
        torch.cuda._sleep(AHEAD)
        start.record()
        before = time.perf_counter()
        run(given)
        host = time.perf_counter() - before
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, host


def copy_rate() -> float:
    """Bytes a second, read plus written, of a copy within the device's memory."""
    source = torch.randint(0, 255, (1 << 31,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / _median(lambda: target.copy_(source))


def matrix_rate(dtype: torch.dtype) -> float:
    """FLOP a second of a large matrix product by the vendor library, on random data."""
    size = 8192 if dtype != torch.float32 else 4096
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))
    return 2 * size**3 / _median(lambda: a @ b)


def _median(run: Callable[[], Any], repeats: int = 20) -> float:
    for _ in range(3):
        run()
    seconds = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return sorted(seconds)[repeats // 2]
