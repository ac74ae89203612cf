"""The two small trained models that ship inside the package, by name."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

PREFIX = "embedded:"  # no id on the hub has a colon in it; a folder of such a name is ./embedded:...
EMBEDDED_LITE = PREFIX + "lite"
EMBEDDED_FULL = PREFIX + "full"
TITLES = {EMBEDDED_LITE: "PixelRefer-Lite-mini", EMBEDDED_FULL: "PixelRefer-mini"}
"""What each is called; their folders have these names."""

LIMITS = "it was trained on a synthetic world of plain shapes and knows nothing of photographs"


def is_embedded(name: str) -> bool:
    """Whether the name has the form of an embedded model's, even if no such model exists."""
    return name.startswith(PREFIX)


def embedded_folder(name: str = EMBEDDED_LITE) -> Path:
    """The folder of an embedded model: a checkpoint in the released layout, its model card and its results.

    Args:
        name: EMBEDDED_LITE or EMBEDDED_FULL.

    Raises:
        ValueError: there is no such model.
    """
    if name not in TITLES:
        raise ValueError(f"model: expected {' or '.join(TITLES)} of the embedded ones, got {name!r}")
    folder = Path(str(files("pixelrefer_fast.assets"))) / TITLES[name]
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: expected the embedded model {name}, found no such folder; install the package again"
        )
    return folder
