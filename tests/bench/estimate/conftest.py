"""Models whose cost is estimated and counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import pixelrefer_fast as pf


@pytest.fixture(scope="module")
def models(lite: Any, full: Any) -> dict[str, Any]:
    """The two trained models, and the recorded ones, which have the released views and numbers of tokens."""
    loaded = {
        "embedded:lite": pf.load("embedded:lite", device="cpu", dtype="float32", feature_bytes=0),
        "embedded:full": pf.load("embedded:full", device="cpu", dtype="float32", feature_bytes=0),
        "lite": lite,
        "full": full,
    }
    for model in loaded.values():  # weights are laid together by the first answer, which no stage is charged for
        model.ask(np.zeros((40, 40, 3), np.uint8), "<region>?", [[4, 4, 30, 30]], max_new_tokens=2)
    return loaded
