"""Models whose cost is estimated and counted."""

from __future__ import annotations

from typing import Any

import pytest

import pixelrefer_fast as pf


@pytest.fixture(scope="module")
def models(lite: Any, full: Any) -> dict[str, Any]:
    """The two trained models, and the recorded ones, which have the released views and numbers of tokens."""
    return {
        "embedded:lite": pf.load("embedded:lite", device="cpu", dtype="float32"),
        "embedded:full": pf.load("embedded:full", device="cpu", dtype="float32"),
        "lite": lite,
        "full": full,
    }
