"""Every attempt on a hostile checkpoint has bounded memory and time."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator

import pytest

MEMORY = 2 << 30  # address space for an attempt beside what the process has; torch's threads alone take some


@pytest.fixture(autouse=True)
def _bounded() -> Iterator[None]:
    """Every test here runs with its address space limited, and quickly."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, limits[1]))
    start = time.monotonic()
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    assert time.monotonic() - start < 20
