"""The site as `make docs` has built it: complete, in one piece, and of nobody else's files."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from pages import OUTSIDE, shown

ROOT = Path(__file__).parents[2]
SITE = ROOT / "out" / "site"
PAGES = sorted(SITE.rglob("*.html"))
NOTEBOOKS = [path for path in shown() if path.endswith(".ipynb")]

pytestmark = pytest.mark.skipif(find_spec("mkdocs") is None, reason="make test-docs builds it and runs this")


def article(page: Path) -> str:
    """What a page says, without code."""
    found = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), re.S)
    return re.sub(r"<pre.*?</pre>|<code.*?</code>", "", found[0] if found else "", flags=re.S)


def test_every_page_is_built() -> None:
    assert {path.relative_to(SITE).as_posix() for path in PAGES} >= {
        Path(OUTSIDE.get(path, path.removeprefix("docs/"))).with_suffix(".html").as_posix() for path in shown()
    }


def test_a_browser_loads_nothing_from_elsewhere() -> None:
    tags = re.compile(r"<(?:script|link|img|iframe|source|video)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^>]*>")
    assert {str(page): found for page in PAGES if (found := tags.findall(page.read_text(encoding="utf-8")))} == {}
    assert not [
        page.name for page in PAGES if 'class="mermaid"' in page.read_text(encoding="utf-8")
    ]  # a script draws these
    styles = [path.read_text(encoding="utf-8") for path in SITE.rglob("*.css")]
    assert styles
    assert not any(re.search(r"url\(\"?(?:https?:)?//", style) for style in styles)


def test_lists_and_tables_are_lists_and_tables() -> None:
    """Some Markdown that GitHub reads as a list is text to mkdocs."""
    raw = re.compile(r"<p>(?:(?!</p>).)*?(?<=[\n>])(?:- |\| |```)", re.S)
    assert {page.name: found for page in PAGES if (found := raw.findall(article(page)))} == {}


def test_pictures_are_there() -> None:
    missing = []
    for page in PAGES:
        for source in re.findall(r"<img[^>]*\bsrc=\"([^\"]+)\"", page.read_text(encoding="utf-8")):
            if not source.startswith("data:") and not (page.parent / source).is_file():
                missing.append((page.name, source))
    assert missing == []


@pytest.mark.parametrize("notebook", NOTEBOOKS)
def test_notebooks_show_what_they_made(notebook: str) -> None:
    page = (SITE / notebook.removeprefix("docs/")).with_suffix(".html").read_text(encoding="utf-8")
    assert page.count("<img") >= 2 or "profiling" in notebook
    assert "<img" in page
