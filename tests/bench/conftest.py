"""The embedded models, and loads so small that a benchmark takes a second."""

from __future__ import annotations

from typing import Any

import pytest
from bench_rows import TINY, shrink

from pixelrefer_fast.bench.run.effort import Effort


@pytest.fixture(scope="session")
def small_lite() -> Any:
    import pixelrefer_fast

    return pixelrefer_fast.load("embedded:lite", device="cpu", dtype="float32", feature_bytes=0)


@pytest.fixture(scope="session")
def small_full() -> Any:
    import pixelrefer_fast

    return pixelrefer_fast.load("embedded:full", device="cpu", dtype="float32", feature_bytes=0)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Effort:
    """An effort, with a video of two frames and a batch of two."""
    shrink(monkeypatch)
    return TINY
