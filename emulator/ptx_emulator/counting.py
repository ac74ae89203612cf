"""Counts of all that is launched while a block of Python runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from . import triton_driver
from .counters import Counters, Counts
from .machine import WARP
from .options import Options
from .parser import Kernel

Key = tuple[str, str]


@contextmanager
def counting(name: Callable[[], str] | None = None) -> Iterator[dict[Key, Counts]]:
    """What kernels launched within the block cost, by name and configuration; alike launches are added.

    Races are not looked for meanwhile, since that takes half of the time and counts are the same.

    Args:
        name: asked after each launch for the kernel's name; without it, the entry's.
    """
    found: dict[Key, Counts] = {}
    running: list[Counters] = []
    settings = triton_driver.settings
    before = replace(settings)

    def observer(kernel: Kernel, grid: tuple[int, int, int]) -> Counters:
        running.append(Counters(kernel))
        return running[-1]

    def launched(launch: triton_driver.Launched) -> None:
        counts = running.pop().finished()
        blocks = launch.grid[0] * launch.grid[1] * launch.grid[2]
        counts.warps = blocks * -(-launch.threads // WARP)
        key = name() if name is not None else launch.kernel, launch.configuration
        found.setdefault(key, Counts()).add(counts)

    settings.observer, settings.launched, settings.options = observer, launched, Options(races=False)
    try:
        yield found
    finally:
        vars(settings).update(vars(before))
