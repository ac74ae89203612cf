"""Checkpoints made to hurt, for tests: all are refused, naming the file."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from pixelrefer_fast.checkpoint import open_checkpoint
from pixelrefer_fast.loading import convert

ASSETS = Path(str(files("pixelrefer_fast.assets"))) / "lite"


def refused(folder: Path, name: str, reason: str) -> None:
    """Opening and converting are refused for `reason`, naming the file, and leave every file as it was."""
    before = sorted((path, path.lstat().st_mtime_ns) for path in folder.parent.rglob("*"))
    for attempt in (lambda: open_checkpoint(folder), lambda: convert(folder, folder.parent / "converted")):
        with pytest.raises(ValueError, match=reason) as caught:
            attempt()
        message = str(caught.value)
        assert name in message
        assert message.isprintable()
        assert len(message) < 1500
    assert sorted((path, path.lstat().st_mtime_ns) for path in folder.parent.rglob("*")) == before
