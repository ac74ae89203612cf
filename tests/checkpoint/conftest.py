"""What the tests of checkpoints share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from checkpoints import ASSETS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A writable copy of the bundled Lite checkpoint."""
    shutil.copytree(ASSETS / "lite", tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def any_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """`convert` copies what no model has a place for."""
    monkeypatch.setattr("pixelrefer_fast.loading.empty_model", lambda checkpoint: None)
