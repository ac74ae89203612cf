"""Seconds: of a call on a CUDA device by events and with a cold L2, of anything by the wall clock."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

Run = Callable[[], torch.Tensor]
# cycles that the device idles before a call, so that the host is ahead of it: about a millisecond, and for a call that
# takes the host longer to issue, about ten
AHEAD = (2_000_000, 20_000_000)
SETS = 8  # of rotating inputs, at the most


class Clock(Protocol):
    """Times single calls."""

    def time(self, prepare: Callable[[], Any], run: Callable[[Any], Any]) -> tuple[float, float]:
        """Seconds of one call of `run` on what `prepare` gives: on the device, and of the host to issue it.

        `prepare` may be called more than once, and is not timed.
        """
        ...


class WallClock:
    """Where device and host are one."""

    def time(self, prepare: Callable[[], Any], run: Callable[[Any], Any]) -> tuple[float, float]:
        given = prepare()
        start = time.perf_counter()
        run(given)
        passed = time.perf_counter() - start
        return passed, passed


class DeviceClock:
    """A CUDA device's own time, with nothing of the call in its L2 cache.

    The time is that between two events around the call. The device idles before it until the host has queued the whole
    call, so that none of the host's time is in it unless the call waits for the host.
    """

    def __init__(self, device: torch.device | str = "cuda") -> None:
        self.device = torch.device(device)
        size = 2 * torch.cuda.get_device_properties(self.device).L2_cache_size
        self._flush = torch.zeros(size, dtype=torch.uint8, device=self.device)
        self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))

    def time(self, prepare: Callable[[], Any], run: Callable[[Any], Any]) -> tuple[float, float]:
        with torch.cuda.device(self.device):
            for cycles in AHEAD:
                given = prepare()
                self.begin(cycles)
                before = time.perf_counter()
                run(given)
                host = time.perf_counter() - before
                passed, ahead = self.end()
                if ahead:
                    break
        return passed, host

    def begin(self, cycles: int = AHEAD[0]) -> None:
        """What comes now is timed, after the device has idled for so many cycles."""
        self._flush.max()  # reads it: written lines would have to leave the cache during the call
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        self._events[0].record()

    def end(self) -> tuple[float, bool]:
        """Seconds since the device began, and whether the host was ahead of it: had queued all before that."""
        start, end = self._events
        ahead = not start.query()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3, ahead


class Stopwatch:
    """A `DeviceClock` for who asks for the time before and after a call and takes the difference (pytest-benchmark).

    The first answer is 0 and starts the clock, the second is the device's seconds since, and so on. A call that the
    host was not ahead of is timed as it was; the next one gets more time for that.
    """

    def __init__(self, clock: DeviceClock) -> None:
        self._clock = clock
        self._running = False
        self._cycles = AHEAD[0]

    def __call__(self) -> float:
        self._running = not self._running
        if self._running:
            self._clock.begin(self._cycles)
            return 0.0
        seconds, ahead = self._clock.end()
        self._cycles = self._cycles if ahead else AHEAD[-1]
        return seconds

    def reset(self) -> None:
        """Forget a call that has failed, and what the calls before have needed."""
        self._running, self._cycles = False, AHEAD[0]


def clock(device: torch.device | str) -> Clock:
    """The clock for calls on this device."""
    device = torch.device(device)
    return DeviceClock(device) if device.type == "cuda" else WallClock()


def synchronize(device: torch.device | str) -> None:
    """Wait until the device has done all that it was asked."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sample(
    run: Callable[[], Any],
    device: torch.device | str,
    repeats: int,
    warmup: int = 1,
    prepare: Callable[[], Any] | None = None,
) -> list[float]:
    """Wall-clock seconds of each of `repeats` calls, the device's work included.

    Args:
        warmup: calls before, which are not counted.
        prepare: called before each, not timed.
    """
    seconds = []
    with quiet():
        for i in range(warmup + repeats):
            if prepare is not None:
                prepare()
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if i >= warmup:
                seconds.append(time.perf_counter() - start)
    return seconds


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection within, other than before."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def interleaved(runs: Mapping[str, Run], repeats: int) -> tuple[dict[str, list[float]], dict[str, torch.Tensor]]:
    """Time the candidates in turn, so that the machine's noise meets all of them.

    Args:
        runs: candidates by name; each has been called before (warm), and returns when its result is there.
        repeats: rounds; the order is reversed every other round.

    Returns:
        Seconds of every call, and the output of each candidate's last call, by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    outputs: dict[str, torch.Tensor] = {}
    names = list(runs)
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            gc.collect()
            start = time.perf_counter()
            outputs[name] = runs[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds, outputs


def copies(arguments: Any, device: torch.device | str) -> list[Any]:
    """The same values in other memory, so that calls in turn on each do not find what the last one has read.

    There are at least two sets, and as many as exceed twice the device's L2 cache, eight at the most. Where host and
    device are one there are two: how much a CPU caches is not asked.
    """
    device = torch.device(device)
    leaves, structure = tree_flatten(arguments)
    size = max(1, sum(x.nbytes for x in leaves if isinstance(x, torch.Tensor)))
    cache = 2 * torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    count = min(SETS, max(2, -(-cache // size)))
    sets = [arguments]
    for _ in range(count - 1):
        sets.append(tree_unflatten([x.clone() if isinstance(x, torch.Tensor) else x for x in leaves], structure))
    return sets


def rotating(arguments: Any, device: torch.device | str) -> Callable[[], Any]:
    """Gives `copies` of the arguments in turn."""
    turn = itertools.cycle(copies(arguments, device))
    return lambda: next(turn)


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """{"q10": ..., "median": ..., "q90": ...}, in the unit of what is given."""
    import numpy as np

    low, middle, high = np.quantile(seconds, (0.1, 0.5, 0.9)).tolist()
    return {"q10": low, "median": middle, "q90": high}
