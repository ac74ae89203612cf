"""The keys of a training's config file, each checked as it is taken."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pixelrefer_fast.checks.fields import MISSING, Fields
from pixelrefer_fast.checks.safe_files import brief, listed


class Keys(Fields):
    """The values of one YAML mapping; `done` refuses what nobody took.

    Args:
        source: the file, and where in it, for messages.
        values: by key.
        folder: that paths are relative to.
    """

    def __init__(self, source: str, values: Mapping[str, Any], folder: Path) -> None:
        super().__init__(source, values)
        self.folder = folder

    def optional_integer(self, key: str, low: int, high: int) -> int | None:
        return self.integer(key, low, high) if self.given(key) else None

    def number(self, key: str, low: float, high: float, default: Any = MISSING) -> float:
        value = self.take(key, default)
        if isinstance(value, str) and re.fullmatch(r"[0-9.]+[eE][+-]?[0-9]+", value):
            value = float(value)  # YAML takes 1e-5 for text: its numbers have a point
        if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:
            raise self.error(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def optional_number(self, key: str, low: float, high: float, default: float | None = None) -> float | None:
        """Above `low`; `default` where the key is missing, None where it is null."""
        self.taken.add(key)
        if key not in self.values:
            return default
        if self.values[key] is None:
            return None
        value = self.number(key, low, high)
        if value <= low:
            raise self.error(key, f"a number above {low:g}")
        return value

    def numbers(self, key: str, default: tuple[float, float]) -> tuple[float, float]:
        value = self.take(key, list(default))
        if (
            not isinstance(value, list)
            or len(value) != 2
            or any(type(v) not in (int, float) or not 0 <= v < 1 for v in value)
        ):
            raise self.error(key, "two numbers from 0 to below 1")
        return float(value[0]), float(value[1])

    def text(self, key: str, default: Any = MISSING) -> str:
        value = self.take(key, default)
        if not isinstance(value, str) or (default is MISSING and not value.strip()):
            raise self.error(key, "a text")
        return value

    def texts(self, key: str, default: tuple[str, ...]) -> tuple[str, ...]:
        value = self.take(key, list(default))
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise self.error(key, "a list of texts")
        return tuple(value)

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        value = self.take(key, default)
        if value not in choices:
            raise self.error(key, f"one of {', '.join(choices)}")
        return value

    def path(self, key: str) -> Path:
        return self.folder / Path(self.text(key)).expanduser()

    def mapping(self, key: str) -> Keys:
        value = self.take(key, None)
        if not isinstance(value, Mapping):
            raise self.error(key, "a mapping of keys")
        return Keys(f"{self.source}: {key}", value, self.folder)

    def entries(self, key: str) -> list[Keys]:
        value = self.take(key, None)
        if not isinstance(value, list) or not value or not all(isinstance(entry, Mapping) for entry in value):
            raise self.error(key, "a list with at least one mapping of keys")
        return [Keys(f"{self.source}: {key} {i}", entry, self.folder) for i, entry in enumerate(value, 1)]

    def done(self) -> None:
        unknown = [str(key) for key in self.values if key not in self.taken]
        if unknown:
            raise ValueError(
                f"{self.source}: expected keys among {', '.join(sorted(self.taken))}, got {listed(map(brief, unknown))}"
            )
