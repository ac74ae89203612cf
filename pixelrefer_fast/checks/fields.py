"""The values of one JSON object or YAML mapping, each checked as it is taken."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pixelrefer_fast.checks.safe_files import brief

MISSING: Any = object()
"""The default of a value that has to be given."""


class Fields:
    """The values of one mapping; errors name the file and the key.

    Args:
        source: the file, and where in it, for messages.
        values: by key.

    Attributes:
        taken: the keys that were asked for.
    """

    def __init__(self, source: str, values: Mapping[str, Any]) -> None:
        self.source = source
        self.values = values
        self.taken: set[str] = set()

    def error(self, key: str, expected: str, given: Any = MISSING) -> ValueError:
        """What is wrong with a value; `given` instead of the one that is there."""
        given = self.values.get(key, MISSING) if given is MISSING else given
        return ValueError(
            f"{self.source}: {key}: expected {expected}, got {'nothing' if given is MISSING else brief(given)}"
        )

    def given(self, key: str) -> bool:
        """Whether there is a value; null is none."""
        self.taken.add(key)
        return self.values.get(key) is not None

    def take(self, key: str, default: Any = MISSING) -> Any:
        """The value as it stands, or the default where there is none."""
        return self.values[key] if self.given(key) else default

    def integer(self, key: str, low: int, high: int, default: int = MISSING) -> int:
        value = self.take(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def flag(self, key: str, default: Any) -> Any:
        """True or false; a default that is neither (None, say) comes back as it is."""
        value = self.take(key, default)
        if value is not default and type(value) is not bool:
            raise self.error(key, "true or false")
        return value
