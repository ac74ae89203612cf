"""The recorded cases that are in the repository: those that ship and those that only tests read."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "pixelrefer_fast" / "assets"


def recorded_cases(kind: str) -> dict[str, Path]:
    """The files of a kind of model, "lite" or "full", by the name of their case."""
    folders = (ASSETS / kind, ROOT / "tests" / "data" / "cases" / kind)
    paths = [path for folder in folders for path in sorted(folder.glob("case_*.safetensors"))]
    return {path.stem.removeprefix("case_"): path for path in paths}
