"""A class's name says one thing in the whole package, so that a reader who meets it knows which one is meant."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("pixelrefer_fast", "kernels")  # the second is a folder of the first in an installation

# Names of several classes that may stay, each with its reason.
SHARED_NAMES: dict[str, str] = {}


def defined_twice(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of classes, nested ones too, that several files define or one file defines again: name to files."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text, path)):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def _sources(folders: Iterable[str]) -> dict[str, str]:
    paths = {path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py")}
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(paths)}


def test_no_class_name_has_two_meanings() -> None:
    twice = defined_twice(_sources(FOLDERS))
    assert not {name: paths for name, paths in twice.items() if name not in SHARED_NAMES}
    assert set(SHARED_NAMES) <= set(twice), "an exception that no longer is one"


def test_a_name_given_twice_is_found() -> None:
    sources = {"a.py": "class Plan: pass", "b/c.py": "def f():\n    class Plan: pass\nclass Work: pass"}
    assert defined_twice(sources) == {"Plan": ["a.py", "b/c.py"]}
