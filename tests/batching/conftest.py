"""What the tests of batches share."""

from __future__ import annotations

from typing import Any

import pytest

import pixelrefer_fast as pf
from pixelrefer_fast.batching import queue as queue_module


@pytest.fixture(autouse=True)
def _batches_depend_on_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is ready waits for all that is being prepared, however long that takes on this machine."""
    monkeypatch.setattr(queue_module, "GATHER", dict.fromkeys(queue_module.GATHER, 60.0))


@pytest.fixture(params=["lite", "full"])
def model(assets: Any, request: pytest.FixtureRequest) -> Any:
    """Each model, new and without features that are kept."""
    return pf.load(assets / request.param, device="cpu", dtype="float32", feature_bytes=0)
