"""Docstrings as the site reads them: names that share a description get a line each, which griffe wants.

In the package one line says it: `rows, columns: (P,) int32, each patch's place`.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.+(?:\n\1 .*)*)", re.M)


def apart(docstring: str) -> str:
    """`a, b: text` as two lines."""

    def lines(found: re.Match[str]) -> str:
        return "\n".join(f"{found[1]}{name}: {found[3]}" for name in found[2].split(", "))

    return SHARED.sub(lines, docstring)


class SharedNames(Extension):
    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = apart(obj.docstring.value)
