"""What is printed: text that may come from a model or a file name, made safe for terminals and pictures; documents."""

from __future__ import annotations

import json
import math
import unicodedata
from typing import Any, TextIO

JOINERS = "\u200c\u200d"  # not printable on their own, needed inside Persian, Indic and emoji text
EMPTY = "(empty answer)"
"""What stands in the place of an answer without text."""
CUT = " [...]"
"""What stands behind an answer that was cut."""
_MAX_COMBINING = 4  # more marks than that on one letter climb into the neighbouring lines


def safe_text(text: str) -> str:
    """The text with everything that cannot be printed written as an escape (`\\x00`, `\\u202e`); newlines stay.

    Model output may hold control characters, terminal escape sequences, text-direction overrides or lone
    surrogates; none of them reaches a terminal or a picture this way.
    """
    out: list[str] = []
    combining = 0
    for char in text.replace("\r\n", "\n").replace("\t", "    "):
        category = unicodedata.category(char)
        combining = combining + 1 if category in ("Mn", "Me") else 0
        if char == "\n" or char in JOINERS:
            out.append(char)
        elif category == "Zs":
            out.append(" ")
        elif char.isprintable() and combining <= _MAX_COMBINING:
            out.append(char)
        else:
            code = ord(char)
            out.append(f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return "".join(out)


def marked_text(text: str, finish_reason: str | None) -> str:
    """An answer as it is printed and drawn: that it is empty, or was cut at the longest one allowed, stands with it."""
    return (text if text.strip() else EMPTY) + (CUT if finish_reason == "length" else "")


def one_line(text: str) -> str:
    """`safe_text` on a single line, for messages."""
    return " ".join(safe_text(text).split())


def write_json(document: Any, file: TextIO) -> None:
    """One document, ASCII only, so that any terminal encoding carries it; NaN and infinities become null."""
    print(json.dumps(_finite(document), indent=2), file=file)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
