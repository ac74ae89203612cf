"""What a long run found, in a file of its own, which `tools/fuzz_page.py` reads."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from pixelrefer_fast.bench.measure import machine


def write_result(file: Path, found: dict[str, object]) -> None:
    """Write it, with the commit and the time."""
    commit, dirty = machine.commit_of(machine.PACKAGE.parent)
    date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    file.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"date": date, "commit": commit, "dirty": dirty, **found}, indent=1) + "\n"
    file.write_text(text, encoding="utf-8")
